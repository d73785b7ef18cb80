"""What a worker is told, once: the config, who is asked, and the work; and what it tells of each shard.

Values that can be pickled. Knows nothing of Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semievol_api.config import Config
from semievol_api.engine import StageBill
from semievol_api.errors import SemievolError
from semievol_api.stages.spread import Shard, Work

SHARDS = "journal-shards"


@dataclass(frozen=True)
class Asked:
    """The student without its clients: a role's model, what it is, and the name of its provider in the config."""

    models: Mapping[str, str]
    identities: Mapping[str, str]
    provider: str
    guests: Mapping[str, str]
    seed: int
    max_failed_share: float
    abilities: tuple[str, ...]
    """The fields of the provider's table that are filled: the run may have found that it lacks one."""


@dataclass(frozen=True)
class Embedding:
    """The embedding tool without its client."""

    provider: str
    model: str


@dataclass(frozen=True)
class Order:
    """One stage's work for one tool."""

    config: Config
    tool: Asked | Embedding
    work: Work[Any]

    def journal(self, shard: Shard) -> Path:
        """The shard's own journal: named by the first bits of its ids' hashes, so that an id's is always the same one
        while the pool keeps its number of shards."""
        return self.config.run.folder / SHARDS / f"{shard_name(shard, len(self.work.sizes))}.sqlite"


@dataclass(frozen=True)
class Done:
    """What became of a shard: its table as an Arrow stream, or the error that ended it; the bill either way."""

    shard: Shard
    table: bytes = b""
    error: SemievolError | None = None
    bills: Mapping[str, StageBill] = field(default_factory=dict[str, StageBill])


def shard_name(shard: Shard, sizes: int) -> str:
    """`parts-NNNN-MMMM` for the M-th of N hash prefixes, `beside-...` for examples that are in no part."""
    parts = max(1, sizes - 1)
    if sizes > 1 and shard.part == parts:
        return f"beside-{shard.of:04d}-{shard.index:04d}"
    return f"parts-{parts * shard.of:04d}-{shard.part * shard.of + shard.index:04d}"


def journals_of(folder: Path) -> tuple[Path, ...]:
    """The shards' journals of a run."""
    return tuple(sorted((folder / SHARDS).glob("*.sqlite")))


def shards_of(work: Work[Any], shard_rows: int) -> list[Shard]:
    """All shards of a work; a part's are a power of two, of about so many rows each."""
    found: list[Shard] = []
    sizes = work.sizes
    whole = max(sizes, default=0)
    of = 1
    while of * shard_rows < whole:
        of *= 2
    for part in range(len(sizes)):
        found += [Shard(part, index, of) for index in range(of)]
    return found
