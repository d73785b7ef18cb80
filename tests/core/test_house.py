"""The house rules that no linter checks: file and function length, doors, the pipeline's size, light imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    path for folder in ("semievol_api", "providers/semievol_providers") for path in (ROOT / folder).rglob("*.py")
)
HEAVY = ("torch", "openai", "litellm", "datasets", "transformers", "vllm", "peft", "faiss", "pandas", "pyarrow")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_has_a_door_and_fits_the_house(path: Path) -> None:
    source = path.read_text("utf-8")
    tree = ast.parse(source)
    assert ast.get_docstring(tree), "every module opens with what it does"
    assert len(source.splitlines()) <= 600, "a file has at most 600 lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 50, f"{node.name} has {length} lines; a function has at most 50"


def test_the_pipeline_reads_in_under_eighty_lines() -> None:
    assert len((ROOT / "semievol_api/pipeline.py").read_text("utf-8").splitlines()) < 80


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
