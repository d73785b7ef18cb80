"""Shared by the end-to-end tests: a small config of the user's, and the command line in this process."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from semievol_api.cli import app
from semievol_api.session import run

WORDS = ("red", "green", "blue", "gold")


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str


Semievol = Callable[..., Done]


@pytest.fixture
def semievol(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Semievol:
    """The command line as a function: arguments in, exit code and output out."""

    def call(*arguments: object) -> Done:
        monkeypatch.setattr("sys.argv", ["semievol", *map(str, arguments)])
        try:
            app.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        shown = capsys.readouterr()
        return Done(code, shown.out, shown.err)

    return call


def write_rows(path: Path, count: int, *, start: int = 0, gold: bool = True) -> None:
    """Questions that the scripted provider can answer: each names its option as a cue."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "question", "options", *(["answer"] if gold else [])])
        for i in range(start, start + count):
            word = WORDS[i * 7 % 4]
            row = [f"q{i}", f"Item number {i} of the survey has cue: {word}", json.dumps(list(WORDS))]
            writer.writerow([*row, *(["ABCD"[WORDS.index(word)]] if gold else [])])


CONFIG = """
[run]
folder = "out"
mode = "paper"
ceiling = true

[data]
task = "task.toml"
labeled = "labeled.csv"
unlabeled = "unlabeled.csv"
test = "test.csv"
near_duplicates = false

[providers.mine]
kind = "scripted"
state = "server"

[roles]
student = { provider = "mine", model = "tiny" }
embedder = { provider = "mine", model = "tiny" }

[train]
poll_s = 0.01
"""

TASK = """
name = "colours"
kind = "multiple_choice"
instruction = "Which colour?"

[columns]
id = "id"
options = "options"
"""


@dataclass(frozen=True)
class Project:
    """A user's folder."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "semievol.toml"

    def change(self, *pairs: tuple[str, str], file: str = "semievol.toml") -> Path:
        """Replace text in a file; every replacement must hit."""
        path = self.folder / file
        text = path.read_text("utf-8")
        for old, new in pairs:
            assert old in text
            text = text.replace(old, new, 1)
        path.write_text(text, "utf-8")
        return self.config


def new_project(folder: Path) -> Project:
    """40 labelled, 60 unlabelled and 40 test questions, and a config over the scripted provider."""
    write_rows(folder / "labeled.csv", 40)
    write_rows(folder / "unlabeled.csv", 60, start=40)
    write_rows(folder / "test.csv", 40, start=100)
    (folder / "semievol.toml").write_text(CONFIG, "utf-8")
    (folder / "task.toml").write_text(TASK, "utf-8")
    return Project(folder)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """See `new_project`."""
    return new_project(tmp_path)


@pytest.fixture(scope="session")
def _done_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with 240 test questions."""
    made = new_project(tmp_path_factory.mktemp("done"))
    write_rows(made.folder / "test.csv", 240, start=100)
    run(made.config)
    return made.folder


@pytest.fixture
def done(_done_once: Path, tmp_path: Path) -> Project:
    """A finished run with 240 test questions, in a copy of one's own."""
    return Project(shutil.copytree(_done_once, tmp_path / "project"))


def tree(folder: Path, *, without: Sequence[str] = ()) -> dict[str, bytes]:
    """Every artifact's bytes by relative path."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not any(str(p.relative_to(folder)).startswith(w) for w in without)
    }
