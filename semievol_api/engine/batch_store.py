"""Open batches in the journal: written down before they are submitted, so that a crash loses none.

Knows nothing of providers and of what a batch asks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from semievol_api.engine.budget import Spend
from semievol_api.engine.journal import Journal


class BatchLine(NamedTuple):
    """One request of a batch: the journal key and the first sample that it asks for."""

    key: bytes
    first: int
    ask_id: str

    @property
    def custom_id(self) -> str:
        """The name of the line in the batch's files."""
        return f"{self.key.hex()}-{self.first}"


class OpenBatch(NamedTuple):
    """A batch that has not been collected. `batch_id` is None where its submission was not confirmed."""

    id: int
    run: str
    run_key: str
    provider: str
    model: str
    stage: str
    batch_id: str | None
    need: Spend


class NewBatch(NamedTuple):
    """A batch about to be submitted."""

    run: str
    content_hash: str
    provider: str
    model: str
    stage: str
    need: Spend
    lines: Sequence[BatchLine]


_COLUMNS = "id, run, run_key, provider, model, stage, batch_id, usd, tokens"


def write_down(journal: Journal, new: NewBatch) -> OpenBatch:
    """Store a batch before it is submitted; its run key differs from every earlier batch with the same lines."""
    execute = journal.connection.execute
    execute("BEGIN IMMEDIATE")
    try:
        (earlier,) = execute("SELECT count(*) FROM batches WHERE run_key LIKE ?", (f"{new.content_hash}-%",)).fetchone()
        run_key = f"{new.content_hash}-{earlier}"
        values = (run_key, new.provider, new.model, new.stage, new.run, *new.need, int(time.time()))
        cursor = execute(
            "INSERT INTO batches (run_key, provider, model, stage, run, usd, tokens, at) VALUES (?,?,?,?,?,?,?,?)",
            values,
        )
        number = int(cursor.lastrowid or 0)
        journal.connection.executemany(
            "INSERT INTO batch_lines (batch, key, first, ask_id) VALUES (?, ?, ?, ?)",
            ((number, *line) for line in new.lines),
        )
        execute("COMMIT")
    except BaseException:
        execute("ROLLBACK")
        raise
    return OpenBatch(number, new.run, run_key, new.provider, new.model, new.stage, None, new.need)


def set_batch_id(journal: Journal, batch: int, batch_id: str) -> None:
    """The vendor has accepted the batch."""
    journal.connection.execute("UPDATE batches SET batch_id = ? WHERE id = ?", (batch_id, batch))


def close_batch(journal: Journal, batch: int) -> None:
    """Everything the batch gave is stored; its lines are forgotten."""
    execute = journal.connection.execute
    execute("BEGIN IMMEDIATE")
    execute("UPDATE batches SET open = 0 WHERE id = ?", (batch,))
    execute("DELETE FROM batch_lines WHERE batch = ?", (batch,))
    execute("COMMIT")


def open_batches(journal: Journal, provider: str) -> list[OpenBatch]:
    """What earlier processes submitted, or were about to, and did not collect."""
    query = f"SELECT {_COLUMNS} FROM batches WHERE open = 1 AND provider = ? ORDER BY id"
    found: list[OpenBatch] = []
    for row in journal.connection.execute(query, (provider,)):
        number, run, run_key, name, model, stage, batch_id, usd, tokens = row
        found.append(OpenBatch(number, run, run_key, name, model, stage, batch_id, Spend(usd, tokens)))
    return found


def lines_of(journal: Journal, batch: int) -> list[BatchLine]:
    """The lines of an open batch."""
    query = "SELECT key, first, ask_id FROM batch_lines WHERE batch = ?"
    return [BatchLine(*row) for row in journal.connection.execute(query, (batch,))]


def set_aside(journal: Journal, run: str) -> Spend:
    """The sum of what a run's open batches may cost."""
    usd, tokens = journal.connection.execute(
        "SELECT coalesce(sum(usd), 0.0), coalesce(sum(tokens), 0) FROM batches WHERE open = 1 AND run = ?", (run,)
    ).fetchone()
    return Spend(usd, tokens)
