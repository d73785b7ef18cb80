"""A stored sample as JSON: what the journal's blobs hold, readable.

Knows nothing of files and of SQLite.
"""

from __future__ import annotations

import numpy as np

from semievol_api.engine.kinds import decode_extra
from semievol_api.engine.rows import Record
from semievol_api.records import JsonValue


def as_json(record: Record) -> dict[str, JsonValue]:
    """One line of an export; log-probabilities and vectors are lists of numbers, null where unknown."""
    source, found = record.source, record.found
    line: dict[str, JsonValue] = {
        "key": record.key.hex(),
        "sample": found.sample,
        "ask_id": record.ask_id,
        "stage": source.stage,
        "kind": source.kind,
        "model": source.model,
        "provider": source.provider,
        "run": source.run,
        "mode": source.mode,
        "prompt_tokens": found.prompt_tokens,
        "cached_tokens": found.cached_tokens,
        "completion_tokens": found.completion_tokens,
        "usd": record.usd,
        "at": record.at,
    }
    content = found.content
    if source.kind == "chat":
        line |= {"text": content.text, "finish": content.finish, "token_logprobs": None, "tokens": None, "top": None}
        if content.numbers is not None:
            line["token_logprobs"] = _numbers(content.numbers, "float32")
        if content.extra is not None:
            tokens, top = decode_extra(content.extra)
            line["tokens"] = None if tokens is None else list(tokens)
            line["top"] = None if top is None else [[[text, value] for text, value in row] for row in top]
    else:
        kind = "float64" if source.kind == "options" else "float32"
        line["values"] = _numbers(content.numbers or b"", kind)
    return line


def _numbers(blob: bytes, kind: str) -> list[JsonValue]:
    values = np.frombuffer(blob, np.dtype(kind))
    return [float(value) if np.isfinite(value) else None for value in values]
