"""Every seed's own labelled and unlabelled rows, drawn from one labelled pool and written as files.

A larger draw of one seed holds a smaller one's unlabelled rows. Knows nothing of arms or runs.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from semievol_api.config import DataSettings
from semievol_api.data import read_examples, read_table, subsample
from semievol_api.data.examples import columns_of
from semievol_api.errors import DataError
from semievol_api.experiments.grid import DrawSettings
from semievol_api.tasks import Task


@dataclass(frozen=True, slots=True)
class Drawn:
    """The two files of one seed."""

    labeled: Path
    unlabeled: Path


def draw(settings: DrawSettings, task: Task, data: DataSettings, seed: int, folder: Path) -> Drawn:
    """Write the files of a seed: labelled rows with the pool's class shares, unlabelled ones from the rest.

    Raises:
        DataError: the pool has too few rows.
    """
    table = read_table(settings.pool)
    examples = read_examples(table, task, "labeled", columns_of(task, data.columns)).examples
    if len(examples) < settings.labeled + settings.unlabeled:
        raise DataError(
            f"[draw] asks for {settings.labeled} labelled and {settings.unlabeled} unlabelled rows, and "
            f"{settings.pool.name!r} has {len(examples)}. Draw fewer."
        )
    labeled = {e.id for e in subsample(examples, settings.labeled, seed)}
    rest = sorted((e.id for e in examples if e.id not in labeled), key=lambda name: _order(seed, name))
    unlabeled = set(rest[: settings.unlabeled])
    rows = [(e.id, dict(row)) for e, row in zip(examples, table.rows, strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    drawn = Drawn(folder / f"labeled-{settings.labeled}.jsonl", folder / f"unlabeled-{settings.unlabeled}.jsonl")
    for path, chosen in ((drawn.labeled, labeled), (drawn.unlabeled, unlabeled)):
        lines = [json.dumps(row, ensure_ascii=False, default=str) for name, row in rows if name in chosen]
        path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return drawn


def _order(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"draw\n{seed}\n{name}".encode(), digest_size=16).digest()
