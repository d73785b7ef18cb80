"""The user's three sources as examples: any file kind, folder or hub address, thinned out as the config says.

    data = read_data(config.data, load_task(config.data.task))

Knows nothing of hygiene or of the method.
"""

from __future__ import annotations

import filecmp
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from semievol_api import parts
from semievol_api.config import DataSettings
from semievol_api.data.chunks import is_large, read_chunks
from semievol_api.data.examples import DataRole, Note, Reading, columns_of, read_examples
from semievol_api.data.hub import hub_address, read_address, read_folder, read_task_dataset
from semievol_api.data.large import SAME_ID, held, read_large, with_other_ids
from semievol_api.data.leaked_keys import without_keys
from semievol_api.data.pool import Pool
from semievol_api.data.reviewed import read_reviewed
from semievol_api.data.splits import order_of, split, subsample
from semievol_api.data.table import Table, read_table
from semievol_api.errors import DataError
from semievol_api.records import Example
from semievol_api.tasks import Task


@dataclass(frozen=True, slots=True)
class RawData:
    """The three parts as read, before hygiene; `test` is empty where the config names none."""

    labeled: tuple[Example, ...]
    unlabeled: Sequence[Example]
    """A `Pool` where they are too many to be held."""
    test: tuple[Example, ...]
    notes: tuple[Note, ...] = ()
    development: tuple[Example, ...] = ()
    taught: tuple[Example, ...] = ()
    """Pseudo-labelled examples of earlier rounds."""
    reviewed: Mapping[str, str] = field(default_factory=dict[str, str])
    """A person's answers by example id, in the task's canonical form."""

    @property
    def aside(self) -> tuple[tuple[Example, ...], tuple[Example, ...], tuple[str, ...]]:
        """What the split has to know: the user's own gate, what earlier rounds taught, and ids that a person chose."""
        return self.development, self.taught, tuple(sorted(self.reviewed))

    @property
    def gold(self) -> Mapping[str, str]:
        """The hidden answers of the unlabelled part by example id: for the oracle report alone."""
        if isinstance(self.unlabeled, Pool):
            return self.unlabeled.gold
        return {e.id: e.hidden_answer for e in self.unlabeled if e.hidden_answer is not None}

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was put right while reading, as sentences."""
        return tuple(note.sentence for note in self.notes)


def read_source(source: str | Path) -> Table:
    """The rows of a file, a saved dataset's folder (`folder` or `folder:split`) or a hub address (`hf:...`).

    What looks like an API key is taken out of them: nothing behind this door ever sees it.

    Raises:
        DataError: the source is missing, unreadable, empty or malformed.
    """
    return without_keys(_read_as_it_is(str(source)))


def _read_as_it_is(text: str) -> Table:
    address = hub_address(text)
    if address is not None:
        return read_address(address)
    path = Path(text)
    folder, _, name = text.rpartition(":")
    if folder and not path.exists() and Path(folder).is_dir():
        return read_folder(Path(folder), name)
    return read_folder(path, None) if path.is_dir() else read_table(path)


def read_data(settings: DataSettings, task: Task, seed: int = 0) -> RawData:
    """Read the labelled, the unlabelled and the test source.

    Where `labeled` is a hub address of the task's own pinned dataset, its hub columns apply.

    Raises:
        DataError: a source or a row cannot be used, or two parts are the same file.
    """
    _refuse_same_file(settings)
    sources: list[tuple[DataRole, Path]] = [("labeled", settings.labeled), ("unlabeled", settings.unlabeled)]
    if settings.test is not None:
        sources.append(("test", settings.test))
    development = () if settings.dev is None else _read("test", settings.dev, settings, task).examples
    readings = {role: _read(role, source, settings, task) for role, source in sources}
    test = readings["test"].examples if "test" in readings else ()
    labeled = tuple(_thinned(readings["labeled"].examples, settings.max_labeled, seed))
    unlabeled = _thinned(readings["unlabeled"].examples, settings.max_unlabeled, seed)
    test = tuple(_thinned(test, settings.max_test, seed))
    notes = [note for reading in readings.values() for note in reading.notes]
    whole = _distinct_ids(labeled, unlabeled, test, notes)
    reviewed = {} if settings.reviewed is None else read_reviewed(settings.reviewed, task, whole.unlabeled)
    return replace(whole, development=_apart(development, whole), reviewed=reviewed)


def read_task_data(task: Task) -> RawData:
    """The task's public dataset, split labelled : unlabelled : test as its file says (the paper: 2 : 6 : 2).

    Raises:
        DataError: the task names no dataset, or it cannot be loaded.
    """
    hub = task.definition.hub
    if hub is None:
        raise DataError(f"The task {task.name!r} names no public dataset: its file has no [hub] section.")
    reading = read_examples(without_keys(read_task_dataset(hub)), task, "test", hub.columns)
    labeled, unlabeled, test = split(reading.examples, hub.ratio, hub.seed)
    hidden = tuple(replace(e, answer=None, hidden_answer=e.answer) for e in unlabeled)
    return RawData(labeled, hidden, test, reading.notes)


def _read(role: DataRole, source: Path, settings: DataSettings, task: Task) -> Reading:
    columns = columns_of(task, settings.columns)
    address = hub_address(str(source))
    hub = task.definition.hub
    if address is not None and hub is not None and address.dataset == hub.dataset and not settings.columns:
        columns = hub.columns
    if role == "unlabeled" and is_large(source):
        return read_large(map(without_keys, read_chunks(source)), task, columns)
    return read_examples(read_source(source), task, role, columns)


def _thinned(examples: Sequence[Example], size: int | None, seed: int) -> Sequence[Example]:
    if isinstance(examples, Pool):
        chosen = examples if size is None else examples.sampled(size, lambda name: order_of(seed, name))
        return held(chosen, parts.PART_ROWS)
    return tuple(examples) if size is None else subsample(examples, size, seed)


def _refuse_same_file(settings: DataSettings) -> None:
    named = {
        "labeled": settings.labeled,
        "unlabeled": settings.unlabeled,
        "test": settings.test,
        "dev": settings.dev,
    }
    present = [(name, path.resolve()) for name, path in named.items() if path is not None]
    for i, (name, path) in enumerate(present):
        for other, other_path in present[i + 1 :]:
            if path == other_path or _same_bytes(path, other_path):
                raise DataError(
                    f"The {name} and the {other} file are the same ({other_path.name}). "
                    "Nothing could be learned or measured that way; name two files with different examples."
                )


def _same_bytes(a: Path, b: Path) -> bool:
    if not (a.is_file() and b.is_file()) or a.stat().st_size != b.stat().st_size:
        return False
    return filecmp.cmp(a, b, shallow=False)


def _apart(development: Sequence[Example], others: RawData) -> tuple[Example, ...]:
    """Development examples under ids of their own."""
    unlabeled = others.unlabeled
    taken = {e.id for e in (*others.labeled, *others.test)}
    if isinstance(unlabeled, Pool):
        taken |= unlabeled.known({e.id for e in development})
    else:
        taken |= {e.id for e in unlabeled}
    return tuple(replace(e, id=f"{e.id}@dev") if e.id in taken else e for e in development)


def _distinct_ids(
    labeled: Sequence[Example], unlabeled: Sequence[Example], test: Sequence[Example], notes: Sequence[Note]
) -> RawData:
    """Ids that mean one thing: where two parts give one id to different questions, the later part's is renamed."""
    taken = {e.id: (e.question, e.options) for e in test}
    changed: list[Note] = []

    def renamed(part: str, examples: Sequence[Example]) -> tuple[Example, ...]:
        result = tuple(
            replace(e, id=f"{e.id}@{part}")
            if taken.get(e.id, (e.question, e.options)) != (e.question, e.options)
            else e
            for e in examples
        )
        moved = tuple(e.id for e in result if e.id.endswith(f"@{part}"))
        if moved:
            changed.append(Note(part, SAME_ID, moved))
        taken.update({e.id: (e.question, e.options) for e in result})
        return result

    known = renamed("labeled", labeled)
    if isinstance(unlabeled, Pool):
        pool, moved = with_other_ids(unlabeled, taken, "unlabeled")
        return RawData(known, pool, tuple(test), (*notes, *changed, *moved))
    return RawData(known, renamed("unlabeled", unlabeled), tuple(test), (*notes, *changed))
