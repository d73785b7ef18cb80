"""The documentation as a site: complete, without links that leave it, and built with warnings as errors."""

from __future__ import annotations

import importlib
import logging
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import semievol_api

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NAMES = [name for name in semievol_api.__all__ if name != "__version__"]
DIRECTIVE = re.compile(r"^::: (\S+)$", re.MULTILINE)
SITE = "mkdocs, mkdocs-material and mkdocstrings are not installed (extra `docs`)"


def documented() -> list[str]:
    """What the reference describes, by its dotted path."""
    return [path for page in sorted((DOCS / "reference").glob("*.md")) for path in DIRECTIVE.findall(page.read_text())]


def test_every_page_but_the_decisions_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r"^ +- (\S+\.md)$", nav, re.MULTILINE)
    there = [page.relative_to(DOCS).as_posix() for page in PAGES if "decisions" not in page.parts]
    assert sorted(listed) == sorted(there)


def test_the_reference_describes_every_public_name_and_nothing_else() -> None:
    paths = documented()
    assert sorted(path.rpartition(".")[2] for path in paths) == sorted(NAMES)
    for path in paths:
        home, _, name = path.rpartition(".")
        assert callable(getattr(importlib.import_module(home), name)), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_no_link_leaves_the_site(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s#]+)[^)]*\)", page.read_text("utf-8"))
    outside = [t for t in targets if "://" not in t and not (page.parent / t).resolve().is_relative_to(DOCS)]
    assert outside == [], "name a file outside of docs/ in code, not as a link"


@pytest.mark.skipif(find_spec("griffe") is None, reason=SITE)
def test_the_docstrings_of_the_reference_are_read_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    import griffe

    with caplog.at_level(logging.WARNING):
        package = griffe.load("semievol_api", search_paths=[ROOT], resolve_aliases=True, allow_inspection=False)
        for path in documented():
            found = package[path.removeprefix("semievol_api.")]
            found = found.final_target if found.is_alias else found
            sections = found.docstring.parse("numpy") if found.docstring else []
            assert "examples" in {section.kind.value for section in sections}, path
    assert [record.getMessage() for record in caplog.records] == []


@pytest.mark.skipif(not all(map(find_spec, ("mkdocs", "material", "mkdocstrings"))), reason=SITE)
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site/reference/pieces.html").read_text("utf-8")
    assert "calibration_probs" in page
    assert "array-like" in page
