"""The house rules that no linter checks: lengths, doors, exports, floors, rings of imports, light imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.house import AIMS, LASTING, House, exports, import_rings, measure, public_names, verdicts

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    path for folder in ("semievol_api", "providers/semievol_providers") for path in (ROOT / folder).rglob("*.py")
)
HEAVY = (
    *("torch", "openai", "litellm", "datasets", "transformers", "vllm", "peft"),
    *("faiss", "pandas", "pyarrow", "scipy"),
)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_has_a_door_and_short_functions(path: Path) -> None:
    source = path.read_text("utf-8")
    tree = ast.parse(source)
    assert ast.get_docstring(tree), "every module opens with what it does"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1 - _docstring_lines(node)
            assert length <= 50, f"{node.name} has {length} lines; a function has at most 50, its docstring apart"


def _docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[0]
    return (first.end_lineno or first.lineno) - first.lineno + 1 if ast.get_docstring(node) else 0


def test_what_lasts_of_the_house_holds() -> None:
    """File lengths, exports, the pipeline, floors, layers, rings: what `python -m benchmarks.house --check` holds."""
    kept = verdicts(measure(ROOT), LASTING)
    assert [rule for rule, met in kept.items() if not met] == []


@pytest.mark.parametrize(
    ("changed", "broken"),
    [
        ({"longest_lines": 601}, "no file over 600 lines"),
        ({"exports": 41}, "at most 40 exports"),
        ({"pipeline_lines": 80}, "the pipeline under 80 lines"),
        ({"floors": 11}, "at most ten floors"),
        ({"layers_kept": False}, "imports go one way"),
        ({"import_rings": [("a", "b", "a")]}, "no import cycles"),
    ],
)
def test_a_broken_rule_is_named(changed: dict[str, Any], broken: str) -> None:
    house = House(36_000, 210, 800, 0, 130, "a.py", 600, 79, 40, 10, True, [], [])
    assert all(verdicts(house, {**LASTING, **AIMS}).values())
    assert [rule for rule, met in verdicts(replace(house, **changed), LASTING).items() if not met] == [broken]


def test_the_house_counts_what_a_module_itself_defines() -> None:
    source = "import os\nLIMIT = 1\n_low = 2\nsize: int = 3\nasync def ask(): x = 1\nclass Row: y = 1\ndef _no(): ..."
    assert public_names(ast.parse(source)) == {"LIMIT", "size", "ask", "Row"}
    assert exports(ast.parse('__all__ = ["a", "b"]')) == ["a", "b"]


def test_a_ring_of_imports_is_found_and_told_from_one_inside_functions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "ringed"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "one.py").write_text("from ringed import two")
    (package / "two.py").write_text("def late():\n    from ringed import one")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert import_rings(tmp_path, ["ringed"]) == []
    assert [set(ring) for ring in import_rings(tmp_path, ["ringed"], deferred=True)] == [{"ringed.one", "ringed.two"}]
    (package / "two.py").write_text("from ringed import one")
    assert [set(ring) for ring in import_rings(tmp_path, ["ringed"])] == [{"ringed.one", "ringed.two"}]


@pytest.mark.parametrize("statement", ["import semievol_api", "import semievol_api.cli.app"])
def test_importing_the_package_imports_nothing_heavy(statement: str, child_env: dict[str, str]) -> None:
    code = f"{statement}; import sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], env=child_env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_public_run_is_a_function_before_and_after_its_first_call(child_env: dict[str, str]) -> None:
    code = (
        "import semievol_api\n"
        "for _ in range(2):\n"
        "    try:\n"
        "        semievol_api.run('nowhere.toml')\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=child_env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ConfigError", "ConfigError"]


def test_no_module_asks_objects_what_they_have() -> None:
    offenders = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hasattr"
    ]
    assert offenders == []


def test_tests_bring_their_data_along_but_for_the_papers_data_sets() -> None:
    """What lies beside the checkout is the maintainers' alone: only `released_data` looks there, and it skips."""
    beside = f"{'sha'}red"
    looking = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Div)
        and isinstance(node.right, ast.Constant)
        and str(node.right.value).removeprefix("../").split("/")[0] == beside
    ]
    assert looking == ["tests/conftest.py"]
