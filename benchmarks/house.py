"""How large the house is and whether its lasting rules hold: `python -m benchmarks.house --json --check`.

Counts lines, modules, public names and exports of the product (`semievol_api` and its providers), and asks
import-linter for the layers of pyproject.toml. `--check` ends with 1 where a rule that lasts is broken; the aims of
the rebuilding are printed as met or not and fail only with `--closing`. Knows nothing of what the code does.
"""

from __future__ import annotations

import argparse
import ast
import json
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("semievol_api", "semievol_providers")
FOLDERS = ("semievol_api", "providers/semievol_providers")


@dataclass(frozen=True)
class House:
    """What was counted; lengths in lines, public names those of the product with its providers."""

    product_lines: int
    modules: int
    public_names: int
    public_names_of_providers: int
    median_lines: float
    longest_file: str
    longest_lines: int
    pipeline_lines: int
    exports: int
    floors: int
    layers_kept: bool
    import_rings: list[tuple[str, ...]]
    rings_by_imports_in_functions: list[tuple[str, ...]]


Rules = Mapping[str, tuple[str, Callable[[House], bool]]]
LASTING: Rules = {
    "no file over 600 lines": ("longest_lines", lambda house: house.longest_lines <= 600),
    "at most 40 exports": ("exports", lambda house: house.exports <= 40),
    "the pipeline under 80 lines": ("pipeline_lines", lambda house: house.pipeline_lines < 80),
    "at most ten floors": ("floors", lambda house: house.floors <= 10),
    "imports go one way": ("layers_kept", lambda house: house.layers_kept),
    "no import cycles": ("import_rings", lambda house: not house.import_rings),
}
AIMS: Rules = {
    "at most 36,000 lines": ("product_lines", lambda house: house.product_lines <= 36_000),
    "at most 210 modules": ("modules", lambda house: house.modules <= 210),
    "at most 800 public names": ("public_names", lambda house: house.public_names <= 800),
    "the median module at least 130 lines": ("median_lines", lambda house: house.median_lines >= 130),
}


def main() -> None:
    """Print the figures; with `--check`, end with 1 where a rule is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--check", action="store_true", help="end with 1 where a lasting rule is broken")
    parser.add_argument("--closing", action="store_true", help="let the aims of the rebuilding count as rules too")
    chosen = parser.parse_args()
    house = measure()
    rules, aims = verdicts(house, LASTING), verdicts(house, AIMS)
    if chosen.json:
        print(json.dumps({**asdict(house), "rules": rules, "aims": aims}, indent=2))
    else:
        print(as_text(house, rules, aims))
    failed = [name for name, met in {**rules, **(aims if chosen.closing else {})}.items() if not met]
    if chosen.check and failed:
        sys.exit(f"broken: {', '.join(failed)}")


def measure(root: Path = ROOT) -> House:
    """Count the product under `root` and check its imports."""
    files = sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py"))
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in files}
    trees = {path: ast.parse(path.read_text("utf-8")) for path in files}
    names = {path: len(public_names(tree)) for path, tree in trees.items()}
    longest = max(files, key=lengths.__getitem__)
    return House(
        product_lines=sum(lengths.values()),
        modules=len(files),
        public_names=sum(names.values()),
        public_names_of_providers=sum(n for path, n in names.items() if path.is_relative_to(root / "providers")),
        median_lines=statistics.median(lengths.values()),
        longest_file=str(longest.relative_to(root)),
        longest_lines=lengths[longest],
        pipeline_lines=lengths[root / "semievol_api/pipeline.py"],
        exports=len(exports(trees[root / "semievol_api/__init__.py"])),
        floors=len(layers(root)),
        layers_kept=layers_kept(root),
        import_rings=import_rings(root),
        rings_by_imports_in_functions=import_rings(root, deferred=True),
    )


def public_names(tree: ast.Module) -> set[str]:
    """Functions, classes and constants that a module itself defines at its top, without a leading underscore."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif sys.version_info >= (3, 12) and isinstance(node, ast.TypeAlias):
            names.add(node.name.id)
    return {name for name in names if not name.startswith("_")}


def exports(package: ast.Module) -> list[str]:
    """The names in a package's `__all__`."""
    for node in package.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return [str(name) for name in ast.literal_eval(node.value)]
    raise ValueError("semievol_api/__init__.py has no `__all__`, written as a plain list")


def layers(root: Path = ROOT) -> list[list[str]]:
    """The floors of pyproject.toml from the top to the bottom, each with its modules."""
    contracts = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    stack = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[module.strip() for module in floor.replace("|", ":").split(":")] for floor in stack]


def layers_kept(root: Path = ROOT) -> bool:
    """Whether import-linter finds every contract kept."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=root, capture_output=True, check=False).returncode == 0


def import_rings(
    root: Path = ROOT, packages: Sequence[str] = PACKAGES, *, deferred: bool = False
) -> list[tuple[str, ...]]:
    """One ring of modules that import each other, or none; imports for types alone never count.

    An import inside a function happens after loading and can't break it: it counts only where `deferred`.
    """
    import grimp

    graph = grimp.build_graph(*packages, exclude_type_checking_imports=True, cache_dir=None)
    lines = {
        module: path.read_text("utf-8").splitlines()
        for module in graph.modules
        if (path := source_of(module, root)) is not None
    }
    needs: dict[str, set[str]] = {}
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            places = graph.get_import_details(importer=module, imported=imported)
            if deferred or any(not lines[module][place["line_number"] - 1].startswith(" ") for place in places):
                needs.setdefault(module, set()).add(imported)
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as ring:
        return [tuple(ring.args[1])]
    return []


def source_of(module: str, root: Path = ROOT) -> Path | None:
    """The file of a module of the product, if there is one."""
    parts = Path(*module.split("."))
    places = [top / name for top in (root, root / "providers") for name in (f"{parts}.py", parts / "__init__.py")]
    return next((path for path in places if path.is_file()), None)


def verdicts(house: House, rules: Rules) -> dict[str, bool]:
    """Which rules the house keeps."""
    return {name: holds(house) for name, (_, holds) in rules.items()}


def as_text(house: House, rules: Mapping[str, bool], aims: Mapping[str, bool]) -> str:
    """The figures for a reader: one rule a line."""
    figures = asdict(house)
    lines = [f"longest file: {house.longest_file}; names of the providers: {house.public_names_of_providers}"]
    for title, kept, table in (("rules that last", rules, LASTING), ("aims of the rebuilding", aims, AIMS)):
        lines.append(f"{title}:")
        for name, (figure, _) in table.items():
            lines.append(f"  {'met    ' if kept[name] else 'not met'}  {name}: {figures[figure]}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
