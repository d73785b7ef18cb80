"""Work on the parts of a stage: in this process, one part after the other; `ray_executor.py` does it on a cluster.

A stage's work is a value: called with its tool and a shard it gives that shard's table, whoever calls it and
wherever. Knows nothing of what stages do.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from semievol_api.data.table import ChunkedTable, shard_of
from semievol_api.records import Example

if TYPE_CHECKING:
    import pyarrow as pa


ToolT = TypeVar("ToolT")
ToolT_contra = TypeVar("ToolT_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class Shard:
    """One part of a stage's work, or by their ids' hashes the `index`-th of its `of` shards; `of` is a power of two."""

    part: int
    index: int = 0
    of: int = 1

    def has(self, example_id: str, parts: int) -> bool:
        """Whether an id of this part is in the shard; `parts` is how many of them ids are spread over."""
        return self.of == 1 or shard_of(example_id, parts, self.of) == self.index

    def examples(self, table: ChunkedTable[Example]) -> Sequence[Example]:
        """The shard's examples in a table of which the last of several parts is about ids that are in no part."""
        examples = table.part(self.part)
        parts = table.n_parts - 1 if self.part < table.n_parts - 1 else 1
        return examples if self.of == 1 else [e for e in examples if self.has(e.id, parts)]


class Work(Protocol[ToolT_contra]):
    """A stage's work on one shard; a value that can be sent elsewhere."""

    @property
    def stage(self) -> str:
        """The stage's name, for bills and bars."""
        ...

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of examples of each part."""
        ...

    def joined(self, part: int, tables: Sequence[pa.Table]) -> pa.Table:
        """A part's table from those of all its shards, in any order."""
        ...

    async def __call__(self, tool: ToolT_contra, shard: Shard, /) -> pa.Table:
        """The shard's table."""
        ...


class Executor(Protocol):
    """Walks the parts of a work."""

    def run(self, tool: ToolT, work: Work[ToolT]) -> AsyncGenerator[pa.Table]:
        """The table of every part, in the parts' order."""
        ...


@dataclass(frozen=True)
class LocalExecutor:
    """This process, one part after the other."""

    async def run(self, tool: ToolT, work: Work[ToolT]) -> AsyncGenerator[pa.Table]:
        """See `Executor`."""
        for part in range(len(work.sizes)):
            yield await work(tool, Shard(part))
