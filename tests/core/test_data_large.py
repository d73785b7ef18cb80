"""A file that is too large to be held gives what it gives when it is read whole: data, notes, hygiene, faults."""

from __future__ import annotations

import asyncio
import csv
import errno
import gc
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from semievol_api.config.settings import DataSettings
from semievol_api.data import RawData, examples, read_data, read_files, table
from semievol_api.data.prepare import prepare
from semievol_api.data.schemas import as_examples, examples_table, kept_table
from semievol_api.data.table import ChunkedTable
from semievol_api.errors import DataError, RunFolderError
from semievol_api.records import Example
from semievol_api.session import _with_reviewed
from semievol_api.store.artifacts import EvidenceTable, Folds, Neighbours, Prepared, Selection
from semievol_api.store.run_store import RunStore
from semievol_api.store.verdict import PaperSummary
from semievol_api.tasks import Task, TaskDefinition

COLUMNS = {"options": "options", "category": "kind"}
TASK = Task(
    TaskDefinition.model_validate(
        {"name": "t", "kind": "multiple_choice", "instruction": "I.", "columns": COLUMNS},
    )
)
NAMED = Task(
    TaskDefinition.model_validate(
        {"name": "t", "kind": "multiple_choice", "instruction": "I.", "columns": {**COLUMNS, "id": "name"}},
    )
)
Rows = list[dict[str, object]]


def questions(count: int) -> Rows:
    """Unlike each other, but for the plants: repeats, near repeats, one question with other options, a key."""
    rng = np.random.default_rng(3)
    words = ["".join(rng.choice(list("abcdefghij"), 7)) for _ in range(400)]
    rows: Rows = [
        {
            "question": " ".join(rng.choice(words, 25)) + "?",
            "options": json.dumps([f"one {row}", f"two {row}"]),
            "answer": "AB"[row % 2] if row % 3 else ("1" if row % 2 else "nonsense"),
            "kind": f"kind {row % 4}",
            "name": f"name-{row}",
        }
        for row in range(count)
    ]
    for row in range(5, count, 17):
        rows[row] |= {"question": rows[row - 4]["question"], "options": rows[row - 4]["options"]}
    for row in range(11, count, 19):
        rows[row] |= {"question": f"{rows[row - 7]['question']}!!", "options": rows[row - 7]["options"]}
    for row in range(13, count, 23):
        rows[row]["question"] = rows[row - 6]["question"]
    for row in range(7, count, 29):
        rows[row] |= {"question": f"{rows[row - 3]['question']} so", "options": rows[row - 3]["options"]}
    rows[2]["question"] = f"{rows[2]['question']} sk-abcdefghijklmnopqrstuv1234567890"
    return rows


def on_disk(raw: RawData) -> bool:
    """Whether the unlabelled examples lie in several parts of a scratch folder."""
    assert isinstance(raw.unlabeled, ChunkedTable)
    return raw.unlabeled.n_parts > 1 and raw.unlabeled.scratch is not None


def write_csv(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(path: Path, rows: Rows) -> None:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", "utf-8")


def write_parquet(path: Path, rows: Rows) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


WRITERS = {"csv": write_csv, "jsonl": write_jsonl, "parquet": write_parquet}


@pytest.fixture
def settings(tmp_path: Path) -> DataSettings:
    rows = questions(300)
    write_jsonl(tmp_path / "test.jsonl", [{**row, "answer": "A", "name": f"t{i}"} for i, row in enumerate(rows[:20])])
    known = [{**row, "answer": "A"} for row in rows[15:60]]
    write_jsonl(tmp_path / "labeled.jsonl", known)
    for kind, write in WRITERS.items():
        write(tmp_path / f"pool.{kind}", rows)
    return DataSettings(
        labeled=tmp_path / "labeled.jsonl", unlabeled=tmp_path / "pool.jsonl", test=tmp_path / "test.jsonl", task="t"
    )


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def small() -> None:
        monkeypatch.setattr(table, "PART_ROWS", 40)
        monkeypatch.setattr(read_files, "LARGE_BYTES", 0)
        monkeypatch.setattr(read_files, "CHUNK_ROWS", 7)
        monkeypatch.setattr(examples, "STORED_ROWS", 30)

    return small


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("task", [TASK, NAMED], ids=["content ids", "ids of a column"])
@pytest.mark.parametrize("most", [None, 120, 30])
def test_a_large_file_gives_the_same_data(
    settings: DataSettings, cut: Callable[[], None], kind: str, task: Task, most: int | None
) -> None:
    named = settings.model_copy(update={"unlabeled": settings.unlabeled.with_suffix(f".{kind}"), "max_unlabeled": most})
    whole = read_data(named, task, seed=5)
    cut()
    large = read_data(named, task, seed=5)
    assert on_disk(large) is (most != 30)
    assert replace(large, unlabeled=tuple(large.unlabeled)) == replace(whole, unlabeled=tuple(whole.unlabeled))
    assert large.gold == whole.gold
    assert large.unlabeled[3] == whole.unlabeled[3]
    assert large.unlabeled[2:9:3] == whole.unlabeled[2:9:3]


def prepared(raw: RawData, folder: Path, near: bool) -> dict[str, bytes]:
    async def make() -> None:
        with RunStore.open(folder, "k") as store:
            inputs = (raw.labeled, raw.unlabeled, raw.test, raw.development, near, raw.notes)
            await store.once("prepare", Prepared, prepare, *inputs)

    asyncio.run(make())
    place = folder / "prepare"
    return {str(p.relative_to(place)): p.read_bytes() for p in place.rglob("*") if p.is_file()}


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("task", [TASK, NAMED], ids=["content ids", "ids of a column"])
def test_hygiene_of_a_large_file_gives_the_same_bytes(
    settings: DataSettings, cut: Callable[[], None], near: bool, task: Task, tmp_path: Path
) -> None:
    whole = read_data(settings, task)
    cut()
    large = read_data(settings, task)
    assert on_disk(large) and not on_disk(whole)
    expected = prepared(whole, tmp_path / "whole", near)
    assert prepared(large, tmp_path / "large", near) == expected
    assert len([name for name in expected if name.startswith("unlabeled/")]) == 8
    counts = json.loads(expected["report.json"])["counts"]
    assert counts["unlabeled: duplicate"] and counts["unlabeled: in test"]
    assert bool(counts.get("unlabeled: duplicate (near)")) is near


def test_a_pool_s_fingerprint_knows_its_questions_and_not_its_hidden_answers(
    settings: DataSettings, cut: Callable[[], None], tmp_path: Path
) -> None:
    cut()
    rows = questions(300)
    for name, changed in (("other answers", {"answer": "B"}), ("other kind", {"kind": "new"})):
        write_jsonl(tmp_path / f"{name}.jsonl", [*rows[:-1], {**rows[-1], **changed}])
    pools = {
        name: read_data(settings.model_copy(update={"unlabeled": tmp_path / f"{name}.jsonl"}), TASK).unlabeled
        for name in ("pool", "other answers", "other kind")
    }
    identities = {name: pool.identity for name, pool in pools.items() if isinstance(pool, ChunkedTable)}
    assert identities["pool"] == identities["other answers"] != identities["other kind"]


@pytest.mark.parametrize(
    ("large", "most", "expected"),
    [
        (False, None, ("918f8db44d26c8063d28888022c67721517159b7", "7c6dfb01084a6ea4c3a284a4f52a40439ac04817")),
        (True, None, ("aa0bff938ae6246f9c3e1ec50f97a0f8944a747e", "ebcda91e662b7a1ff899a6b954dabf930f3daf53")),
        (True, 120, ("7e4e1adb86c352ae5cd6fb3eb2b354bc8067c8c9", "75973792d658cdb212299f602c9b47b7ad289b9a")),
        (True, 30, ("25a2be543493f2ad8cc346f1a064bd80af90e878", "84019c262222d6984823720240d4a10905508c66")),
    ],
)
def test_fingerprints_of_read_data_are_those_of_0_1(
    settings: DataSettings, cut: Callable[[], None], tmp_path: Path, *, large: bool, most: int | None, expected: object
) -> None:
    if large:
        cut()
    raw = read_data(settings.model_copy(update={"max_unlabeled": most}), TASK, seed=5)
    reviewed = _with_reviewed(replace(raw, reviewed=dict.fromkeys([e.id for e in raw.unlabeled][3:9], "A")))
    with RunStore.open(tmp_path / "run", "k") as store:
        found = tuple(
            store.fingerprint("prepare", one.labeled, one.unlabeled, one.test, one.notes) for one in (raw, reviewed)
        )
    assert found == expected


def test_several_stored_parts_stand_in_fingerprints_by_their_files_and_one_part_by_its_rows(tmp_path: Path) -> None:
    few = tuple(Example(id=name, question=f"{name}?") for name in "abcd")
    paths = [tmp_path / f"part-{place}.parquet" for place in range(2)]
    for path, some in zip(paths, (few[:2], few[2:]), strict=True):
        pq.write_table(examples_table(some), path)
    both = ChunkedTable.stored(paths).typed(as_examples)
    hashed = hashlib.blake2b(b"".join(path.read_bytes() for path in paths), digest_size=20).hexdigest()
    with RunStore.open(tmp_path / "run", "k") as store:
        assert both.identity == hashed
        assert store.fingerprint(ChunkedTable.stored(paths[:1]).typed(as_examples)) == store.fingerprint(few[:2])
        assert store.fingerprint(both.where(np.array([True, False, True, True]))) == store.fingerprint(
            (few[0], *few[2:])
        )


def test_the_scratch_folder_goes_with_its_pool(settings: DataSettings, cut: Callable[[], None]) -> None:
    cut()
    raw = read_data(settings, TASK)
    assert isinstance(raw.unlabeled, ChunkedTable) and raw.unlabeled.scratch is not None
    place = raw.unlabeled.scratch.path
    assert place.is_dir()
    del raw
    gc.collect()
    assert not place.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bytes.jsonl", b'{"question": "q"}\n{"question": "\xff"}\n', "line 2 holds the byte 0xff"),
        ("bytes.csv", b"question,options\nq,\xff\n", "line 2 holds the byte 0xff"),
        (
            "broken.jsonl",
            b'{"question": "q", "options": ["a", "b"], "kind": ""}\n{"question',
            "line 2: this is not JSON",
        ),
        ("broken.csv", b"question,options,kind\nq,x\n", "line 2: 2 fields where the header has 3"),
        ("open.csv", b'question,options\nq,"x\n', "the CSV is broken there"),
        ("twice.csv", b"question,question\nq,x\n", "names the column 'question' twice"),
        ("empty.jsonl", b"\n\n", "is empty: it holds no row"),
        ("nothing.csv", b"\n", "is empty"),
        ("column.jsonl", b'{"query": "q"}\n', "has no column 'question'"),
        ("damaged.parquet", b"PAR1", "is no Parquet file, or a damaged one"),
        (
            "ids.jsonl",
            b"".join(
                b'{"question": "q%d", "options": ["a", "b"], "kind": "", "name": "n%d"}\n' % (i, i % 60)
                for i in range(99)
            ),
            "the id 'n0' stands in line 1 and again in line 61",
        ),
    ],
)
def test_a_large_file_has_the_faults_of_a_small_one(
    settings: DataSettings, cut: Callable[[], None], name: str, content: bytes, message: str
) -> None:
    path = settings.unlabeled.with_name(name)
    path.write_bytes(content)
    named = settings.model_copy(update={"unlabeled": path})
    task = NAMED if name == "ids.jsonl" else TASK
    with pytest.raises(DataError, match=message) as whole:
        read_data(named, task)
    cut()
    with pytest.raises(DataError) as large:
        read_data(named, task)
    assert str(large.value) == str(whole.value)


def test_examples_are_stored_in_one_part_where_they_are_few(settings: DataSettings) -> None:
    raw = read_data(settings, TASK)
    assert not on_disk(raw)
    assert len(examples_table(raw.unlabeled)) == 300


def test_a_full_disk_is_told_in_a_paragraph(
    settings: DataSettings, cut: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(RunFolderError, match=r"No space left on device.*TMPDIR"):
        read_data(settings, TASK)


def test_a_small_table_is_stored_as_one_part_of_the_type_that_a_large_one_has() -> None:
    few = (Example(id="a", question="One?", answer="1"), Example(id="b", question="Two?"))
    nothing = Selection(
        kept=(),
        scores=ChunkedTable.of(kept_table(())),
        summary=PaperSummary(
            rule="percentile", share=0.5, threshold_mean_nll=None, unlabeled=4, answered=4, kept=2, messages=()
        ),
        calibration=kept_table(()),
    )
    packed = (
        Prepared(few, few, few, {}).pack(),
        Folds(few, few, few, tunable=True, note="").pack(),
        Neighbours({"a": ("b",)}, {"a": (0.5,)}).pack(),
        EvidenceTable.of([]).pack(),
        nothing.pack(),
    )
    kinds = [(name, type(table)) for one in packed for name, table in one.tables.items()]
    assert len(kinds) == 11
    assert [name for name, kind in kinds if kind is not ChunkedTable] == []
    assert {one.parts(name).n_parts for one in packed for name in one.tables} == {1}
