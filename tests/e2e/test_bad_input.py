"""Bad input gets one clear paragraph and exit code 2, and nothing is left half-written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import Project, Semievol, write_rows


@dataclass(frozen=True)
class Case:
    """A mistake, and words that the message must hold."""

    name: str
    spoil: Callable[[Project], object]
    words: tuple[str, ...]


def put(file: str, content: bytes) -> Callable[[Project], object]:
    return lambda p: (p.folder / file).write_bytes(content)


def swap(old: str, new: str, file: str = "semievol.toml") -> Callable[[Project], object]:
    return lambda p: p.change((old, new), file=file)


HEAD = b"id,question,options,answer\n"
ROW = b'q1,Which?,"[""red"", ""green""]",A\n'

CASES = [
    Case("a missing file", lambda p: (p.folder / "labeled.csv").unlink(), ("labeled.csv",)),
    Case("a folder in place of a file", swap('test = "test.csv"', 'test = "."'), ("cannot be read", "test")),
    Case("a wrong column", put("labeled.csv", b"id,query,options,answer\n" + ROW * 1), ("'question'", "query")),
    Case("not UTF-8", put("labeled.csv", HEAD + ROW + "q2,Où?,[],A\n".encode("latin-1")), ("UTF-8",)),
    Case("an empty file", put("labeled.csv", b""), ("empty", "labeled.csv")),
    Case("a header without rows", put("unlabeled.csv", HEAD), ("unlabeled.csv",)),
    Case("a ragged CSV", put("labeled.csv", HEAD + ROW + b"q2,Which?\n"), ("line 3",)),
    Case("options that are no list", put("labeled.csv", HEAD + b"q1,Which?,red or green,A\n"), ("options", "list")),
    Case("an answer outside the options", put("labeled.csv", HEAD + ROW.replace(b"A\n", b"E\n")), ("'E'", "line 2")),
    Case("duplicate ids", put("labeled.csv", HEAD + ROW + ROW.replace(b"Which", b"What")), ("q1", "id")),
    Case("labelled = unlabelled", swap('unlabeled = "unlabeled.csv"', 'unlabeled = "labeled.csv"'), ("labeled.csv",)),
    Case("an unknown key", swap("ceiling = true", "celing = true"), ("'run.celing'", "'ceiling'")),
    Case("a wrong type", swap("ceiling = true", 'seed = "one"'), ("'run.seed'", "integer")),
    Case("an unknown section", swap("[train]", "[trian]"), ("'trian'", "'train'")),
    Case("broken TOML", swap("[run]", "[run"), ("TOML", "line 2")),
    Case("an unknown provider kind", swap('kind = "scripted"', 'kind = "scriptd"'), ("'scriptd'", "'scripted'")),
    Case("a role without its provider", swap('provider = "mine"', 'provider = "yours"'), ("'yours'", "mine")),
    Case("an unknown task", swap('task = "task.toml"', 'task = "mlmu"'), ("'mlmu'", "mmlu")),
    Case("an unknown key in a task", swap('kind = "mul', 'knd = "x"\nkind = "mul', "task.toml"), ("'knd'", "'kind'")),
    Case(
        "a missing key variable",
        swap('kind = "scripted"\nstate = "server"', 'kind = "openai"\napi_key_env = "NO_SUCH_KEY"'),
        ("NO_SUCH_KEY",),
    ),
    Case("too few labels for a job", lambda p: write_rows(p.folder / "labeled.csv", 9), ("9 labelled", "10")),
    Case("a provider that cannot train", swap('state = "server"', "can_train = false"), ("'mine'", "fine-tuning")),
    Case("an unknown key of a provider", swap('state = "server"', 'stat = "server"'), ("'providers.mine.stat'",)),
    Case("no embedder", swap('embedder = { provider = "mine", model = "tiny" }', ""), ("embedder", "bm25")),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name.replace(" ", "-"))
def test_bad_input_is_one_clear_paragraph_and_exit_code_2(case: Case, project: Project, semievol: Semievol) -> None:
    case.spoil(project)
    done = semievol("run", project.config)
    assert done.code == 2, done.err
    for word in case.words:
        assert word in done.err
    message = done.err.strip()
    assert message.startswith("semievol: ")
    assert "Traceback" not in message
    assert "\n\n" not in message
    assert not (project.folder / "out").exists(), "nothing is half-written"


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name.replace(" ", "-"))
def test_check_refuses_what_run_refuses(case: Case, project: Project, semievol: Semievol) -> None:
    case.spoil(project)
    assert semievol("check", project.config).code == 2


def test_a_run_folder_in_use_is_refused(project: Project, semievol: Semievol, child_env: dict[str, str]) -> None:
    code = (
        "import sys; from pathlib import Path; from semievol_api.store.run_store import RunStore\n"
        "with RunStore.open(Path(sys.argv[1]), 'key'):\n print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(project.folder / "out")]
    with subprocess.Popen(command, env=child_env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin and child.stdout
        assert child.stdout.readline() == "held\n"
        done = semievol("run", project.config)
        child.stdin.close()
    assert done.code == 2
    assert "in use by another process" in done.err


def test_a_run_folder_of_another_config_is_refused(project: Project, semievol: Semievol) -> None:
    assert semievol("run", project.config).code == 0
    project.change(("ceiling = true", "seed = 3"))
    done = semievol("run", project.config)
    assert done.code == 2
    assert "made by another config" in done.err
    assert semievol("run", project.config, "--accept-config-change").code == 0


def test_a_missing_extra_names_the_pip_line(
    project: Project, semievol: Semievol, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WithoutTorch:
        def load(self) -> object:
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("semievol_api.registry.provider_kinds", lambda: {"scripted": WithoutTorch()})
    done = semievol("check", project.config)
    assert done.code == 2
    assert 'pip install "semievol-api[local]"' in done.err


def test_a_missing_config_says_how_to_make_one(tmp_path: Path, semievol: Semievol) -> None:
    done = semievol("run", tmp_path / "nowhere.toml")
    assert done.code == 2
    assert "semievol init" in done.err
