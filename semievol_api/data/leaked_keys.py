"""Take API keys out of a person's rows, before anything is written down or sent to a vendor.

    table = without_keys(table)        # table.held_keys: the rows that held some

What looks like a key (by the shapes of `transport/scrub.py`, with at least one digit) is replaced by a marker; equal
keys get equal markers, so that rows and ids stay as distinct as they were. Knows nothing of what the columns mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

from semievol_api.data.table import Row, Table
from semievol_api.transport.scrub import replace_key_shapes

KEYS_REMOVED = "what looks like an API key was taken out; if it is one, revoke it: it stands in the file in clear"


def without_keys(table: Table) -> Table:
    """The same rows without keys; the very same table where it holds none."""
    rows = tuple(_row(row) for row in table.rows)
    held = frozenset(i for i, (new, old) in enumerate(zip(rows, table.rows, strict=True)) if new is not old)
    return replace(table, rows=rows, held_keys=held) if held else table


def mask_keys(text: str) -> str:
    """The text with a marker in the place of each key; the very same text where there is none."""
    if not text.isascii():
        return replace_key_shapes(text.encode("utf-8", "surrogatepass"), _marker).decode("utf-8", "surrogatepass")
    return replace_key_shapes(text.encode("ascii"), _marker).decode("ascii")


def _row(row: Row) -> Row:
    cells = {name: _cell(value) for name, value in row.items()}
    return row if all(cells[name] is row[name] or cells[name] == row[name] for name in row) else cells


def _cell(value: object) -> object:
    if isinstance(value, str):
        return mask_keys(value)
    if isinstance(value, Mapping):
        return {name: _cell(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_cell(part) for part in value]
    return value


def _marker(key: bytes) -> bytes:
    """Keys without a digit are words, such as `sk-learn-some-long-name`."""
    if not any(48 <= byte <= 57 for byte in key):
        return key
    return b"[removed-key-" + hashlib.blake2b(key, digest_size=3).hexdigest().encode() + b"]"
