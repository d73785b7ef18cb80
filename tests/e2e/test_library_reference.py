"""Every public name says what it takes, gives and raises, with an example that runs; the notebook page runs too."""

from __future__ import annotations

import ast
import asyncio
import doctest
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import semievol_api
from benchmarks.house import exports
from semievol_api.cassettes.cassette import CassetteSettings, open_cassette
from semievol_api.cassettes.http import HttpResponse
from semievol_api.records import Example
from semievol_api.report.page import report
from tests.e2e.conftest import new_project, write_rows
from tests.transport_server import small_server

ROOT = Path(__file__).resolve().parents[2]
NAMES = [name for name in semievol_api.__all__ if name != "__version__"]
SECTION = re.compile(r"^(\w[\w ]*)\n-{3,}$", re.MULTILINE)
RAISES_NOTHING = ("CheckedConfig", "ChosenLabels", "Nearest", "Replies")
"""Values that are only handed out."""


def public(name: str) -> Any:
    """The object of a public name; the package that can be called stands for its function."""
    return report if name == "report" else vars(semievol_api).get(name) or semievol_api.__getattr__(name)


def sections(text: str) -> dict[str, str]:
    """The numpydoc sections of a docstring."""
    parts = SECTION.split(text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with a project, whose run is walked once, and a cassette of a server that always says red."""
    project = new_project(tmp_path_factory.mktemp("notebook"))
    write_rows(project.folder / "labeled.csv", 120, start=200)
    project.change(('mode = "paper"', 'mode = "calibrated"'), ("ceiling = true", "ceiling = false"))

    async def says_red(
        method: str, url: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> HttpResponse:
        message = {"role": "assistant", "content": "Answer: red"}
        usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
        answer = {"choices": [{"index": 0, "finish_reason": "stop", "message": message}], "usage": usage}
        return HttpResponse(200, {"content-type": "application/json"}, json.dumps(answer).encode())

    async def record() -> None:
        place = project.folder / "cassettes/colours"
        async with open_cassette(place, "record", CassetteSettings(live=says_red)) as tape:
            server = semievol_api.connect("openai", base_url="http://127.0.0.1:8000/v1", api_key_env="", cassette=tape)
            await semievol_api.aask(server, ["Which colour? cue: red"], "tiny", journal=None)

    asyncio.run(record())
    return project.folder


@pytest.fixture
def notebook(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the examples use, in that folder."""
    monkeypatch.chdir(folder)
    return {"semievol_api": semievol_api, "np": np, "Example": Example}


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_a_public_name_runs(name: str, notebook: dict[str, Any]) -> None:
    found = public(name)
    test = doctest.DocTestParser().get_doctest(inspect.getdoc(found) or "", notebook, name, None, None)
    assert test.examples, "a public name shows how it is used"
    lines: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(test, out=lines.append)
    assert not lines, "".join(lines)


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_says_what_it_takes_gives_and_raises(name: str) -> None:
    found = public(name)
    told = sections(inspect.getdoc(found) or "")
    assert "Examples" in told
    if inspect.isclass(found):
        if issubclass(found, Exception):
            return
        assert "Attributes" in told
        assert "Raises" in told or name in RAISES_NOTHING
        return
    assert {"Parameters", "Raises"} <= told.keys()
    assert "Returns" in told or "Yields" in told
    heads = [line.partition(" : ")[0] for line in told["Parameters"].splitlines() if line[:1].strip()]
    named = {name.strip(" *") for head in heads for name in head.split(",")}
    assert set(inspect.signature(found).parameters) - named == set()


def test_the_public_names_are_at_most_forty_and_each_is_there_for_a_type_checker() -> None:
    source = (ROOT / "semievol_api/__init__.py").read_text("utf-8")
    assert exports(ast.parse(source)) == sorted(semievol_api.__all__) == dir(semievol_api)
    assert len(semievol_api.__all__) <= 40
    (block,) = [node for node in ast.parse(source).body if isinstance(node, ast.If)]
    typed = {alias.asname or alias.name for node in block.body for alias in node.names}  # type: ignore[attr-defined]
    assert typed == set(NAMES)
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        semievol_api.runn  # type: ignore[attr-defined]  # noqa: B018


def test_a_public_name_is_the_same_before_and_after_its_room_is_imported(child_env: dict[str, str]) -> None:
    code = (
        "import semievol_api, sys\n"
        "for name in sorted(semievol_api.__all__):\n"
        "    if name != '__version__':\n"
        "        first = getattr(semievol_api, name)\n"
        "        assert callable(first) and getattr(semievol_api, name) is first, name\n"
        "import semievol_api.report.page, semievol_api.planning.estimating\n"
        "assert callable(semievol_api.report) and semievol_api.report is sys.modules['semievol_api.report']\n"
        "try:\n    semievol_api.report('nowhere')\n"
        "except semievol_api.UserError as error:\n    print('refused')"
    )
    done = subprocess.run([sys.executable, "-c", code], env=child_env, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("refused", "")


def blocks() -> list[str]:
    """The Python of the notebook page."""
    page = (ROOT / "docs/notebooks.md").read_text("utf-8")
    return re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def test_a_run_is_selected_anew_and_two_hundred_requests_are_asked_as_the_page_says(
    notebook: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run, anew, requests, again, _ = blocks()
    names: dict[str, Any] = {}
    for block in (run, anew, requests, again):
        exec(block, names)  # noqa: S102 - the page's own code
    assert isinstance(names["more"], pd.DataFrame)
    looser, kept = names["looser"], names["result"].labels["kept"].to_numpy()
    assert looser.rule == "fdr"
    assert np.all(looser.kept[kept])
    same = semievol_api.select(names["result"].scores, names["result"].calibration, alpha=0.1)
    assert np.array_equal(same.kept, kept)
    assert len(names["replies"].texts) == names["replies"].requests == 200
    assert names["again"].texts == names["replies"].texts
    assert capsys.readouterr().out.endswith("0 requests were sent\n")


async def test_a_test_with_a_cassette_is_recorded_and_replayed_as_the_page_says(
    tmp_path: Path, child_env: dict[str, str]
) -> None:
    *_, block = blocks()
    test, changed = tmp_path / "test_colour.py", tmp_path / "test_pear.py"
    async with small_server() as server:
        test.write_text(block.replace("http://127.0.0.1:8000/v1", server.base_url))
        recorded = await _pytest(tmp_path, child_env, "--cassette-mode=record")
    assert "1 passed" in recorded
    test.write_text(block)
    changed.write_text(block.replace("An apple", "A pear"))
    replayed = await _pytest(tmp_path, child_env)
    assert "1 failed, 1 passed" in replayed
    assert "nearest:" in replayed, "a miss shows the nearest request"


async def _pytest(folder: Path, environ: dict[str, str], *options: str) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    child = await asyncio.create_subprocess_exec(*command, cwd=folder, env=environ, stdout=subprocess.PIPE)
    output, _ = await child.communicate()
    return output.decode()


@pytest.mark.parametrize(
    ("given", "variable", "mode"), [(None, None, "replay"), (None, "off", "off"), ("off", "x", "off")]
)
def test_a_cassettes_mode_is_the_callers_or_the_variables_or_replay(
    given: Any, variable: str | None, mode: str, notebook: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEMIEVOL_CASSETTE_MODE", raising=False)
    if variable is not None:
        monkeypatch.setenv("SEMIEVOL_CASSETTE_MODE", variable)
    with semievol_api.cassette("cassettes/colours", given, allow_unplayed=True) as tape:
        assert tape.mode == mode


def test_the_minimal_loop_runs_and_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import minimal_loop  # type: ignore[import-not-found]

    def walked() -> dict[str, float]:
        provider = semievol_api.connect("scripted", state=str(tmp_path / "server"))
        return minimal_loop.main(tmp_path, unlabeled_rows=60, test_rows=40, provider=provider)

    assert len((ROOT / "examples/minimal_loop.py").read_text("utf-8").splitlines()) < 60
    found = walked()
    jobs = sorted(path.name for path in (tmp_path / "tuned/jobs").iterdir())
    assert len(jobs) == 4, "two receipts, two models"
    assert list(found) == ["base", "warm", "evolved"]
    assert all(0.0 <= share <= 1.0 for share in found.values())
    assert walked() == found
    assert sorted(path.name for path in (tmp_path / "tuned/jobs").iterdir()) == jobs
