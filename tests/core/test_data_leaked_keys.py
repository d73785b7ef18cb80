"""Keys in a person's data: taken out where the data are read, told with their rows, and nowhere behind that."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from semievol_api.cassettes.scrub import find_key_shapes
from semievol_api.config.settings import DataSettings
from semievol_api.data import read_data, read_source
from semievol_api.data.examples import mask_keys
from semievol_api.data.read_files import read_table
from semievol_api.errors import ConfigError
from semievol_api.tasks import load_task

KEY = "sk-proj-" + "Ab1_" * 10
OTHER = "hf_" + "aB3" * 10
TASK = 'name = "t"\nkind = "multiple_choice"\ninstruction = "Which?"\n[columns]\noptions = "options"\nid = "id"\n'


def _write(folder: Path, **parts: list[dict[str, object]]) -> DataSettings:
    (folder / "task.toml").write_text(TASK)
    for name, rows in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSettings(
        task=str(folder / "task.toml"), labeled=folder / "labeled.jsonl", unlabeled=folder / "unlabeled.jsonl"
    )


def test_a_key_in_any_cell_is_gone_behind_the_reader_and_its_row_is_told(tmp_path: Path) -> None:
    settings = _write(
        tmp_path,
        labeled=[
            {"id": "a", "question": "Fine?", "options": ["x", "y"], "answer": "A"},
            {"id": f"row {KEY}", "question": f"Is {KEY} in use?", "options": [OTHER, "y"], "answer": "B"},
        ],
        unlabeled=[{"id": "c", "question": f"ö {KEY}", "options": ["x", f"Bearer {OTHER}"]}],
    )
    raw = read_data(settings, load_task(settings.task))
    assert not find_key_shapes(repr(raw).encode())
    (first, second), (third,) = raw.labeled, raw.unlabeled
    assert first.question == "Fine?"
    marker = second.id.removeprefix("row ")
    assert marker.startswith("[removed-key-") and second.question == f"Is {marker} in use?"
    assert third.question == f"ö {marker}", "equal keys, equal markers"
    assert marker not in second.options[0], "other keys, other markers"
    assert [note.rows for note in raw.notes] == ["line 2", "line 1"]
    assert all("looks like an API key" in remark for remark in raw.remarks)


@pytest.mark.parametrize(
    "text", ["sk-learn-classification-report", "the bearer instrumentation", "task-sk-1", "", "ümläut"]
)
def test_words_that_only_resemble_a_key_stay(text: str) -> None:
    assert mask_keys(text) == text


def test_a_key_in_a_tasks_instruction_is_refused_without_being_quoted(tmp_path: Path) -> None:
    (tmp_path / "task.toml").write_text(TASK.replace("Which?", f"Use {KEY}. Which?"))
    with pytest.raises(ConfigError, match="looks like an API key") as caught:
        load_task(str(tmp_path / "task.toml"))
    assert KEY not in str(caught.value)


def test_looking_for_keys_costs_little(tmp_path: Path) -> None:
    row = {"id": "a", "question": "What is the boiling point of water at sea level?" * 5, "options": ["x", "y"]}
    (tmp_path / "many.jsonl").write_text((json.dumps(row) + "\n") * 50_000)
    begun = time.process_time()
    read_table(tmp_path / "many.jsonl")
    bare_s = time.process_time() - begun
    assert len(read_source(tmp_path / "many.jsonl").rows) == 50_000
    assert time.process_time() - begun - bare_s < 8 * bare_s
