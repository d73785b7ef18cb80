"""Record the demo's whole run, on its own server, and the hashes of what it made: `python -m tests.record_demo`.

    cassettes/demo/full/    manifest.json, exchanges.jsonl.gz   the cassette
                            artifacts.json                      sha256 of every artifact, and pyarrow's version

The same run is replayed by tests/e2e/test_cassette_run.py. Nothing here is about any vendor.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path

import pyarrow
import pyarrow.parquet

ROOT = Path(__file__).resolve().parent.parent
FULL = ROOT / "cassettes" / "demo" / "full"
ARTIFACTS = "artifacts.json"
NOT_ARTIFACTS = ("journal", "stamps", "config_key", ".lock", "jobs", "oracle", "spend")


def artifact_hashes(folder: Path) -> dict[str, str]:
    """The sha256 of every artifact's bytes by its path in the run folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not str(path.relative_to(folder)).startswith(NOT_ARTIFACTS)
    }


def content_hashes(folder: Path) -> dict[str, str]:
    """The same, of what the tables hold, since every version of pyarrow writes other bytes."""
    return {name: _content_hash(folder / name) for name in artifact_hashes(folder)}


def _content_hash(path: Path) -> str:
    if path.suffix != ".parquet":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    table = pyarrow.parquet.read_table(path)
    content = [str(table.schema.remove_metadata()), table.to_pydict()]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode()).hexdigest()


def record(into: Path, folder: Path, *, quick: bool = False) -> None:
    """Run the demo in `folder` and keep its exchanges and hashes in `into`."""
    from semievol_api.cli.demo import HERE, QUICK
    from semievol_api.config.settings import load_config
    from semievol_api.demo.embedded_server import serving
    from semievol_api.session import run_async, run_blocking

    with serving(HERE / "model", "demo-llama", folder / "server") as base_url:
        changes: dict[str, object] = {
            "run.folder": str(folder / "run"),
            "providers.server.base_url": base_url,
            "cassette.path": str(into.resolve()),
            "cassette.mode": "record",
        }
        run_blocking(run_async(load_config(HERE / "demo.toml", changes | (QUICK if quick else {}))))
    told = {
        "pyarrow": pyarrow.__version__,
        "bytes": artifact_hashes(folder / "run"),
        "content": content_hashes(folder / "run"),
    }
    (into / ARTIFACTS).write_text(json.dumps(told, indent=1, sort_keys=True) + "\n", "utf-8")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, default=FULL, help="the cassette's folder")
    parser.add_argument("--quick", action="store_true", help="the small demo")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record(chosen.into, Path(folder), quick=chosen.quick)
    sizes = {path.name: path.stat().st_size for path in sorted(chosen.into.iterdir())}
    sys.stdout.write(f"{chosen.into}: {sizes}\n")


if __name__ == "__main__":
    main()
