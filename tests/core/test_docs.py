"""What the documentation names exists: links, headings, files, modules and their names, modules that are run."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.house import layers

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "providers/*.md", "examples/**/*.md", "benchmarks/**/*.md")
    for path in ROOT.glob(pattern)
)
SOURCES = [
    path.as_posix()
    for top in ("semievol_api", "providers", "tests", "benchmarks")
    for path in ROOT.glob(f"{top}/**/*.py")
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(
    r"(?:semievol_api|semievol_providers|providers|docs|tests|benchmarks|examples|cassettes)/[\w./-]*\w/?"
)
DOTTED = re.compile(r"\b(?:semievol_api|semievol_providers|benchmarks)(?:\.\w+)+")
BARE = re.compile(r"(?<![\w./-])(?:\w+/)*\w+\.py\b")
COMMAND = re.compile(r"\bpython -m ((?:semievol_api|semievol_providers|benchmarks|tests)[\w.]*)")


def links(page: Path) -> Iterator[str]:
    """The page's links to files of this repository."""
    for target in LINK.findall(page.read_text("utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            yield target


def headings(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def missing_links(page: Path) -> list[str]:
    """Links whose file or heading is not there."""
    missing: list[str] = []
    for target in links(page):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in headings(file)):
            missing.append(target)
    return missing


def missing_files(text: str) -> list[str]:
    """Paths in code that exist neither in the repository nor below `providers`; with `/NAME` a placeholder."""
    places = [path for code in CODE.findall(text) for path in FILE.findall(code)]
    named = [path for path in places if not re.search(r"[A-Z]{3,}(/|$)", path)]
    missing = [path for path in named if not any((ROOT / top / path).exists() for top in ("", "providers"))]
    bare = [name for code in CODE.findall(text) for name in BARE.findall(code) if not FILE.match(name)]
    return missing + [name for name in bare if not any(path.endswith(f"/{name}") for path in SOURCES)]


def without_what_it_makes(text: str) -> str:
    """The page without the names of files that it has its reader write."""
    for made in re.findall(r"\*\*1\. Write the \w+\*\*,? ?(?:here)? `([^`]+)`", text):
        text = text.replace(made, "").replace(made.removesuffix(".py").replace("/", "."), "")
    return text


def missing_modules(text: str) -> list[str]:
    """Dotted names that are no module and no name in one."""
    return [name for name in sorted(set(DOTTED.findall(text))) if not resolves(name)]


def missing_commands(text: str) -> list[str]:
    """Modules that are said to run and do not exist."""
    return [name for name in COMMAND.findall(text) if not is_module(name.rstrip("."))]


def resolves(dotted: str) -> bool:
    """Whether it is a module, or an attribute of the longest part that is one."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        if is_module(".".join(parts[:end])):
            found: object = importlib.import_module(".".join(parts[:end])) if end < len(parts) else None
            for name in parts[end:]:
                try:
                    found = getattr(found, name)
                except AttributeError:
                    return False
            return True
    return False


def is_module(dotted: str) -> bool:
    """Whether a module of this name can be found, without importing it."""
    try:
        return importlib.util.find_spec(dotted) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page: Path) -> None:
    text = without_what_it_makes(page.read_text("utf-8"))
    assert missing_links(page) == []
    assert missing_files(text) == []
    assert missing_commands(text) == []
    assert missing_modules(text) == []


def test_a_dead_link_and_a_stale_path_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One, two\n[a](#one-two) [b](#three) [c](gone.md) [d](https://example.org) [e](page.md#one-two)\n"
    )
    assert missing_links(page) == ["#three", "gone.md"]
    assert missing_files(
        "`semievol_api/errors.py` `semievol_api/gone.py` `semievol_providers/openai` docs/gone.md"
    ) == ["semievol_api/gone.py"]
    assert missing_files("`errors.py`, `engine/journal.py`, `engine/gone.py`, `python my_gone.py`") == [
        "engine/gone.py",
        "my_gone.py",
    ]
    assert missing_modules("semievol_api.errors semievol_api.errors.UserError semievol_api.run") == []
    assert missing_modules("semievol_api.gone.x semievol_api.errors.Gone") == [
        "semievol_api.errors.Gone",
        "semievol_api.gone.x",
    ]
    assert missing_commands("python -m benchmarks.house, python -m benchmarks.gone") == ["benchmarks.gone"]


def test_the_floors_of_the_architecture_are_those_that_are_checked() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", (ROOT / "docs/architecture.md").read_text("utf-8"), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, len(layers()) + 1))
    for (number, said), floor in zip(rows, layers(), strict=True):
        named = set(re.findall(r"[\w.]+", " ".join(CODE.findall(said))))
        for module in floor:
            path = module.removeprefix("semievol_api.")
            room, _, inside = path.partition(".")
            assert named & {path, room, inside}, f"floor {number} does not name {module}"
