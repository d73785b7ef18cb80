"""The user's three sources as examples: any file kind, folder or hub address, thinned out as the config says.

    data = read_data(config.data, load_task(config.data.task))

Knows nothing of hygiene or of the method.
"""

from __future__ import annotations

import filecmp
import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from semievol_api.config.settings import DataSettings
from semievol_api.data import table as tables
from semievol_api.data.delimited import PLAIN, FileFormat
from semievol_api.data.examples import DataRole, Note, Reading, columns_of, mask_keys, read_examples, without_keys
from semievol_api.data.read_files import Row, Table, is_large, read_chunks, read_table, with_class_names
from semievol_api.data.schemas import chunked_examples
from semievol_api.data.splits import order_of, split, subsample
from semievol_api.data.table import ChunkedTable
from semievol_api.errors import DataError
from semievol_api.records import Example
from semievol_api.tasks import Task
from semievol_api.tasks.definition import Archive, Hub

_ADDRESS = re.compile(
    r"(?:^|/)hf:(?P<dataset>[^/@:]+/[^/@:]+)(?:/(?P<config>[^@:]+))?(?:@(?P<revision>[^:]+))?(?::(?P<split>.+))?$"
)


@dataclass(frozen=True)
class HubAddress:
    """Where a dataset of the hub lies."""

    dataset: str
    config: str | None
    revision: str | None
    split: str | None


def hub_address(source: str) -> HubAddress | None:
    """The address in a source such as `hf:owner/name@revision:split`; None for any other source.

    Raises:
        DataError: the source begins like an address and is none.
    """
    if not re.search(r"(?:^|/)hf:", source):
        return None
    found = _ADDRESS.search(source)
    if found is None:
        raise DataError(f"{source!r} is no hub address. Write it as hf:owner/name@revision:split.")
    return HubAddress(found["dataset"], found["config"], found["revision"], found["split"])


def read_folder(path: Path, split: str | None) -> Table:
    """The rows of a folder written by `Dataset.save_to_disk` or, with a split, `DatasetDict.save_to_disk`."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (FileNotFoundError, ValueError, OSError) as error:
        raise DataError(
            f"The folder {str(path)!r} cannot be read as data: it holds no dataset that save_to_disk wrote "
            f"({_first_line(error)}). Name a file, or such a folder."
        ) from None
    if isinstance(loaded, datasets.DatasetDict):
        names = [str(name) for name in loaded]
        if split not in names:
            raise DataError(
                f"The dataset in {str(path)!r} has the splits {', '.join(names)}. "
                f"Name one of them, as in '{path}:{names[0]}'."
            )
        loaded = loaded[split]
    return _table(path.name, loaded)


def read_address(address: HubAddress) -> Table:
    """The rows of a dataset of the hub; downloads it where the local cache lacks it."""
    import datasets
    from datasets.exceptions import DatasetsError

    if address.split is None:
        raise DataError(f"The hub address of {address.dataset!r} names no split. Add one, such as ':train'.")
    try:
        loaded = datasets.load_dataset(address.dataset, address.config, revision=address.revision, split=address.split)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise DataError(
            f"The dataset {address.dataset!r} cannot be loaded from the hub ({_first_line(error)}). "
            "Check its name, config, revision and split, and the network."
        ) from None
    return _table(f"hf:{address.dataset}:{address.split}", loaded)


def read_task_dataset(hub: Hub) -> Table:
    """The whole public dataset of a task: its splits one after the other."""
    if hub.archive is not None:
        return _read_archive(hub, hub.archive)
    return read_address(HubAddress(hub.dataset, hub.config, hub.revision, "+".join(hub.splits)))


def archive_rows(data: bytes, archive: Archive) -> tuple[Row, ...]:
    """The rows of a text file inside a zip archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        text = opened.read(archive.member).decode(archive.encoding)
    splits = len(archive.names) - 1
    lines = [line.rstrip("\r") for line in text.split("\n") if line.strip()]
    return tuple(dict(zip(archive.names, line.rsplit(archive.separator, splits), strict=True)) for line in lines)


def _read_archive(hub: Hub, archive: Archive) -> Table:
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(hub.dataset, archive.path, repo_type="dataset", revision=hub.revision)
        rows = archive_rows(Path(path).read_bytes(), archive)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"The archive {archive.path!r} of the dataset {hub.dataset!r} cannot be read ({_first_line(error)}). "
            "Check the network and the task's [hub] section."
        ) from None
    return Table(f"hf:{hub.dataset}", "row", archive.names, rows, tuple(range(1, len(rows) + 1)))


def _table(source: str, dataset: Any) -> Table:
    """A dataset's rows; class numbers become their names."""
    import datasets

    names: dict[str, Sequence[str]] = {
        column: feature.names
        for column, feature in dataset.features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    rows = tuple(with_class_names(row, names) for row in dataset)
    if not rows:
        raise DataError(f"The dataset {source!r} is empty: it holds no row of data.")
    return Table(source, "row", tuple(dataset.column_names), rows, tuple(range(1, len(rows) + 1)))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def read_reviewed(path: Path, task: Task, unlabeled: Sequence[Example]) -> Mapping[str, str]:
    """Answers by example id, in the task's canonical form; rows whose answer is empty were left out by the person.

    Raises:
        DataError: the file cannot be read, or a line is no object, names no unlabelled example or no possible answer.
    """
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The reviewed file {str(path)!r} cannot be read: {error}.") from None
    standing = list(_standing(path, lines))
    named = {name for _, name, _ in standing}
    known = {e.id: e for e in unlabeled if e.id in named}
    answers: dict[str, str] = {}
    for number, name, cell in standing:
        answer = task.read_gold(cell, known[name]) if name in known else None
        if answer is None:
            raise DataError(
                f"{path.name}, line {number}: {cell!r} is no answer to the unlabelled example {name!r}. Take ids and "
                f"options from review_queue.jsonl, and leave `answer` empty where you do not know."
            )
        answers[name] = answer
    return answers


def _standing(path: Path, lines: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Line, id and answer of what holds in the end: a later line replaces an earlier one, an undo takes back one."""
    given: dict[str, list[tuple[int, str]]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, cell, action = _row(path, number, mask_keys(line))
        if action == "undo":
            given[name] = given.get(name, [])[:-1]
        elif cell or action:
            given.setdefault(name, []).append((number, cell))
    for name, stack in given.items():
        if stack and stack[-1][1]:
            yield stack[-1][0], name, stack[-1][1]


def _row(path: Path, number: int, line: str) -> tuple[str, str, str]:
    """Id, answer and, in a `review.jsonl`, what was done."""
    try:
        row = json.loads(line)
        name = row["example_id"] if "action" in row else row["id"]
        return str(name), str(row.get("answer") or "").strip(), str(row.get("action") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{path.name}, line {number} is no JSON object with an `id` and an `answer`. Each line of the queue looks "
            f'like {{"id": "q1", "question": "...", "answer": ""}}.'
        ) from None


@dataclass(frozen=True, slots=True)
class RawData:
    """The three parts as read, before hygiene; `test` is empty where the config names none."""

    labeled: tuple[Example, ...]
    unlabeled: Sequence[Example]
    """A `ChunkedTable` as far as they come from a file; in the order of the file."""
    test: tuple[Example, ...]
    notes: tuple[Note, ...] = ()
    development: tuple[Example, ...] = ()
    pseudo_labeled: tuple[Example, ...] = ()
    """Pseudo-labelled examples of earlier rounds."""
    reviewed: Mapping[str, str] = field(default_factory=dict[str, str])
    """A person's answers by example id, in the task's canonical form."""

    @property
    def aside(self) -> tuple[tuple[Example, ...], tuple[Example, ...], tuple[str, ...]]:
        """What the split has to know: the user's own gate, what earlier rounds kept, and ids that a person chose."""
        return self.development, self.pseudo_labeled, tuple(sorted(self.reviewed))

    @property
    def gold(self) -> Mapping[str, str]:
        """The hidden answers of the unlabelled part by example id: for the oracle report alone."""
        return {e.id: e.hidden_answer for e in self.unlabeled if e.hidden_answer is not None}

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was put right while reading, as sentences."""
        return tuple(note.sentence for note in self.notes)


def read_source(source: str | Path, how: FileFormat = PLAIN) -> Table:
    """The rows of a file, a saved dataset's folder (`folder` or `folder:split`) or a hub address (`hf:...`).

    What looks like an API key is taken out of them: nothing behind this door ever sees it.

    Raises:
        DataError: the source is missing, unreadable, empty or malformed.
    """
    return without_keys(_read_as_it_is(str(source), how))


def _read_as_it_is(text: str, how: FileFormat) -> Table:
    address = hub_address(text)
    if address is not None:
        return read_address(address)
    path = Path(text)
    folder, _, name = text.rpartition(":")
    if folder and not path.exists() and Path(folder).is_dir():
        return read_folder(Path(folder), name)
    return read_folder(path, None) if path.is_dir() else read_table(path, how)


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
    development = () if settings.dev is None else tuple(_read("test", settings.dev, settings, task).examples)
    readings = {role: _read(role, source, settings, task) for role, source in sources}
    notes = [note for reading in readings.values() for note in reading.notes]
    labeled, test = (tuple(readings[role].examples) if role in readings else () for role in ("labeled", "test"))
    unlabeled = _thinned(readings["unlabeled"].examples, settings.max_unlabeled, seed)
    if settings.max_labeled is not None:
        labeled = subsample(labeled, settings.max_labeled, seed)
    if settings.max_test is not None:
        test = subsample(test, settings.max_test, seed)
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
    labeled, unlabeled, test = split(tuple(reading.examples), hub.ratio, hub.seed)
    hidden = tuple(replace(e, answer=None, hidden_answer=e.answer) for e in unlabeled)
    return RawData(labeled, hidden, test, reading.notes)


def _read(role: DataRole, source: Path, settings: DataSettings, task: Task) -> Reading:
    columns = columns_of(task, settings.columns)
    address = hub_address(str(source))
    hub = task.definition.hub
    if address is not None and hub is not None and address.dataset == hub.dataset and not settings.columns:
        columns = hub.columns
    if role == "unlabeled" and is_large(source):
        return read_examples(map(without_keys, read_chunks(source)), task, role, columns)
    return read_examples(read_source(source), task, role, columns)


def _thinned(unlabeled: ChunkedTable[Example], size: int | None, seed: int) -> ChunkedTable[Example]:
    """At most `size` examples, those that come first by their ids' order; few of a large file come into memory."""
    if size is not None and size < len(unlabeled):
        order = (int.from_bytes(order_of(seed, name)[:8], "big") for name in unlabeled.values("id"))
        chosen = np.argsort(np.fromiter(order, np.uint64, len(unlabeled)), kind="stable")[:size]
        mask = np.zeros(len(unlabeled), dtype=np.bool_)
        mask[chosen] = True
        unlabeled = unlabeled.where(mask)
    return unlabeled.in_memory() if unlabeled.content and len(unlabeled) <= tables.PART_ROWS else unlabeled


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
    wanted = {e.id for e in development}
    taken = {e.id for e in (*others.labeled, *others.test)}
    if wanted:
        taken.update(name for name in chunked_examples(others.unlabeled).values("id") if name in wanted)
    return tuple(replace(e, id=f"{e.id}@dev") if e.id in taken else e for e in development)


SAME_ID = "ids that another file gives to another question got the suffix of their file"


def _distinct_ids(
    labeled: Sequence[Example], unlabeled: ChunkedTable[Example], test: Sequence[Example], notes: Sequence[Note]
) -> RawData:
    """Ids that mean one thing: where two parts give one id to different questions, the later part's is renamed."""
    taken = {e.id: (e.question, e.options) for e in test}

    def moved(part: str, examples: Iterable[tuple[int, Example]]) -> dict[int, str]:
        return {
            place: f"{e.id}@{part}"
            for place, e in examples
            if taken.get(e.id, (e.question, e.options)) != (e.question, e.options)
        }

    of_labeled = moved("labeled", enumerate(labeled))
    known = tuple(replace(e, id=of_labeled.get(place, e.id)) for place, e in enumerate(labeled))
    taken.update({e.id: (e.question, e.options) for e in known})
    same = np.fromiter((name in taken for name in unlabeled.values("id")), np.bool_, len(unlabeled))
    of_unlabeled = moved("unlabeled", zip(np.flatnonzero(same).tolist(), unlabeled.where(same), strict=True))
    changed = (("labeled", of_labeled), ("unlabeled", of_unlabeled))
    told = (Note(part, SAME_ID, tuple(names.values())) for part, names in changed if names)
    return RawData(known, unlabeled.with_values("id", of_unlabeled), tuple(test), (*notes, *told))
