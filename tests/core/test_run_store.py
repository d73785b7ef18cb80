"""The run store: what is computed again, what is not, and who may hold a folder."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from semievol_api.errors import RunFolderError
from semievol_api.store.artifacts import Abilities, TrainingFile
from semievol_api.store.fingerprints import Stage
from semievol_api.store.fingerprints import stage as known_as
from semievol_api.store.run_store import RunStore


@dataclass(frozen=True)
class Tool:
    """A tool known by its identity."""

    identity: str


class Counted:
    """A stage that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    @property
    def make(self) -> Stage[..., Abilities]:
        return Stage("make", self._make)

    async def _make(self, *inputs: object) -> Abilities:
        self.calls += 1
        return Abilities({"inputs": str(len(inputs))})


async def test_an_artifact_is_made_once_for_the_same_inputs(tmp_path: Path) -> None:
    stage = Counted()
    for _ in range(2):
        with RunStore.open(tmp_path / "run", "key") as store:
            found = await store.once("probe", Abilities, stage.make, Tool("a"), 1)
    assert found.of == {"inputs": "2"}
    assert stage.calls == 1


@pytest.mark.parametrize("changed", [(Tool("b"), 1), (Tool("a"), 2), (Tool("a"), 1, None)])
async def test_a_changed_input_makes_it_anew(tmp_path: Path, changed: tuple[object, ...]) -> None:
    stage = Counted()
    with RunStore.open(tmp_path / "run", "key") as store:
        await store.once("probe", Abilities, stage.make, Tool("a"), 1)
        await store.once("probe", Abilities, stage.make, *changed)
    assert stage.calls == 2


async def test_an_artifact_enters_a_fingerprint_by_its_content(tmp_path: Path) -> None:
    @known_as("file")
    async def file(content: bytes) -> TrainingFile:
        return TrainingFile(content)

    stage = Counted()
    with RunStore.open(tmp_path / "run", "key") as store:
        for content in (b"one", b"one", b"two"):
            store.forget("file")
            made = await store.once("file", TrainingFile, file, content)
            await store.once("probe", Abilities, stage.make, made)
    assert stage.calls == 2


async def test_a_crash_while_making_leaves_no_artifact(tmp_path: Path) -> None:
    @known_as("crash")
    async def crash() -> Abilities:
        raise RuntimeError

    stage = Counted()
    with RunStore.open(tmp_path / "run", "key") as store:
        with pytest.raises(RuntimeError):
            await store.once("probe", Abilities, crash)
        await store.once("probe", Abilities, stage.make)
    assert stage.calls == 1


async def test_a_value_without_an_identity_cannot_enter_a_fingerprint(tmp_path: Path) -> None:
    with RunStore.open(tmp_path / "run", "key") as store, pytest.raises(TypeError, match="identity"):
        store.fingerprint(object())


def test_another_config_is_refused_unless_accepted(tmp_path: Path) -> None:
    with RunStore.open(tmp_path / "run", "key"):
        pass
    with pytest.raises(RunFolderError, match="another config"), RunStore.open(tmp_path / "run", "other"):
        pass
    with RunStore.open(tmp_path / "run", "other", accept_change=True):
        pass


def test_a_folder_in_use_by_another_process_is_refused(tmp_path: Path, child_env: dict[str, str]) -> None:
    code = (
        "import sys; from pathlib import Path; from semievol_api.store.run_store import RunStore\n"
        "with RunStore.open(Path(sys.argv[1]), 'key'):\n print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        env=child_env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdin and child.stdout
    with child:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError, match="in use"), RunStore.open(tmp_path / "run", "key"):
            pass
        child.stdin.close()


def test_a_folder_that_cannot_be_written_is_a_calm_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written"), RunStore.open(tmp_path / "file" / "run", "key"):
        pass


@pytest.mark.parametrize("name", ["stamps.json", "config_key.json"])
@pytest.mark.parametrize("text", ['{"annotations": {"finger', '["a list"]', ""])
def test_a_document_cut_in_half_is_a_calm_error_and_stays_as_it_is(tmp_path: Path, name: str, text: str) -> None:
    with RunStore.open(tmp_path, "key"):
        pass
    (tmp_path / name).write_text(text)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RunFolderError, match="is damaged"), RunStore.open(tmp_path, "key"):
        pass
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_stamp_of_another_version_is_a_calm_error(tmp_path: Path) -> None:
    (tmp_path / "stamps.json").write_text('{"annotations": {"digest": "x"}}')
    with pytest.raises(RunFolderError, match="'annotations' is none of this version"), RunStore.open(tmp_path, "key"):
        pass
    assert not (tmp_path / "config_key.json").exists()
