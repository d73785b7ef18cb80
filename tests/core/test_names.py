"""The private words of the first house are gone from the product: the field's terms of docs/glossary.md stand instead.

Looked for over the syntax tree, so that prose may use an English word; a lasting name that is stored or hashed
(`@fingerprinted("said", ...)`) is no identifier and stays.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("semievol_api", "providers/semievol_providers")
OLD = frozenset(
    (
        *("said", "Heard", "Beside", "lessons", "views", "circumstances", "call_crew", "settled", "taught"),
        *("Opinions", "voices", "Tone", "Guest", "Tools", "Spread", "Here", "Remote", "Desk", "Station"),
        *("Piece", "Customer", "Order", "Keeper", "Lane", "Growing"),
    )
)
ALLOWED: Mapping[str, tuple[str, ...]] = {}
"""Old names that are still there, by file. It only shrinks: take a line out when its file is clean."""


def names_in(tree: ast.AST) -> Iterator[str]:
    """Every identifier of a module and every text that is a key: of a mapping, of a subscript."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.alias(name=name, asname=other):
                yield from (*name.split("."), *([other] if other else []))
            case ast.ImportFrom(module=str(module)):
                yield from module.split(".")
            case ast.Subscript(slice=ast.Constant(value=str(name))):
                yield name
            case ast.Dict(keys=keys):
                yield from (key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str))
            case _:
                pass


def old_names(source: str) -> set[str]:
    """The old names among a module's identifiers and keys; a leading underscore hides none."""
    return {name.lstrip("_") for name in names_in(ast.parse(source))} & OLD


def test_no_old_name_is_an_identifier_or_a_key() -> None:
    found = {
        str(path.relative_to(ROOT)): names
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (names := old_names(path.read_text("utf-8")))
    }
    new = {file: sorted(left) for file, names in found.items() if (left := names - set(ALLOWED.get(file, ())))}
    assert new == {}, "docs/glossary.md has the term to use"


def test_no_file_or_folder_has_an_old_name() -> None:
    old = {name.lower() for name in OLD}
    assert [
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*"))
        if path.stem in old and "__pycache__" not in path.parts
    ] == []


def test_an_old_name_is_found_wherever_code_can_hold_it() -> None:
    places = {
        "said = 1": {"said"},
        "x.taught": {"taught"},
        "def f(voices, *, _views=()): ...": {"voices", "views"},
        "f(lessons=1)": {"lessons"},
        "class Lane: ...": {"Lane"},
        "async def settled(): ...": {"settled"},
        "from a.Tools import b as Guest": {"Tools", "Guest"},
        "{'circumstances': 1}": {"circumstances"},
        "row['Tone']": {"Tone"},
        "x: Remote": {"Remote"},
        "'''what was said''' # said": set(),
        "fingerprinted('said')": set(),
        "unsaid = order = tools": set(),
    }
    assert {source: old_names(source) for source in places} == places
