"""A pytest fixture that records a test's HTTP exchanges once and replays them ever after.

    async def test_my_pipeline(cassette):
        client = AsyncOpenAI(http_client=httpx2.AsyncClient(transport=cassette.httpx2_transport()))

`pytest --cassette-mode=record` records (a failing test leaves the old recording alone); plain `pytest`
replays, strictly. The folder is `cassettes/MODULE/TEST` beside the test file, or the one that
`@pytest.mark.cassette("a/folder")` names, relative to the test file. Knows nothing of what is tested.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from semievol_api.cassettes.miss import MODE_VARIABLE

if TYPE_CHECKING:
    from semievol_api.cassettes.cassette import Cassette
    from semievol_api.cassettes.miss import CassetteMode as Mode

MODES = ("replay", "record", "record-missing", "off")
_FAILED = pytest.StashKey[bool]()
_NOT_IN_NAMES = re.compile(r"[^\w.=-]+")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--cassette-mode`."""
    parser.getgroup("semievol").addoption(
        "--cassette-mode",
        choices=MODES,
        default=os.environ.get(MODE_VARIABLE, "replay"),
        help="what cassettes do: %(choices)s (default: %(default)s)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, and tell `semievol_api.cassette` the mode."""
    before = os.environ.get(MODE_VARIABLE)
    mode = str(config.getoption("--cassette-mode"))
    if mode != (before or "replay"):
        os.environ[MODE_VARIABLE] = mode
        config.add_cleanup(lambda: _restore(before))
    config.addinivalue_line("markers", "cassette(folder): where the test's `cassette` is kept")


def _restore(mode: str | None) -> None:
    if mode is None:
        os.environ.pop(MODE_VARIABLE, None)
    else:
        os.environ[MODE_VARIABLE] = mode


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember whether the test passed, since a failed one is not worth recording."""
    report = yield
    if report.when == "call":
        item.stash[_FAILED] = not report.passed
    return report


@pytest.fixture
def cassette(request: pytest.FixtureRequest) -> Generator[Cassette, None, None]:
    """The test's own cassette, opened in the mode of `--cassette-mode`."""
    from semievol_api.cassettes.cassette import CassetteSettings, open_cassette
    from semievol_api.cassettes.http import AiohttpSend
    from semievol_api.cassettes.miss import CassetteMiss
    from semievol_api.cassettes.scrub import secret_values
    from semievol_api.errors import UserError

    # A connection per request: nothing is left to be closed in an event loop that has gone by then.
    settings = CassetteSettings(secrets=secret_values(os.environ), live=AiohttpSend(keep_alive=False))
    mode = cast("Mode", request.config.getoption("--cassette-mode"))
    try:
        opened = open_cassette(_folder(request), mode, settings)
    except UserError as error:
        raise pytest.fail.Exception(f"{error} In pytest: --cassette-mode=record.", pytrace=False) from None
    yield opened
    if request.node.stash.get(_FAILED, True):
        return
    try:
        opened.finish()
    except (UserError, CassetteMiss) as problem:
        raise pytest.fail.Exception(str(problem), pytrace=False) from None


def _folder(request: pytest.FixtureRequest) -> Path:
    marker = request.node.get_closest_marker("cassette")
    if marker is not None:
        return request.path.parent / str(marker.args[0])
    name = _NOT_IN_NAMES.sub("-", request.node.name).strip("-")
    return request.path.parent / "cassettes" / request.path.stem / name
