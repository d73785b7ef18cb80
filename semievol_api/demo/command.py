"""`semievol demo`: run the shipped config against a server of its own, and show the verdict.

Knows nothing of the server's insides: it is asked over HTTP, as any other would be.
"""

from __future__ import annotations

from pathlib import Path

from semievol_api.config import load_config
from semievol_api.demo.embedded_server import serving
from semievol_api.errors import MissingExtraError
from semievol_api.session import RunResult, run_async, run_blocking
from semievol_api.terminal.bars import Bars, err
from semievol_api.terminal.verdict import show_result

HERE = Path(__file__).parent
QUICK: dict[str, object] = {"data.max_unlabeled": 60, "data.max_test": 60, "train.n_epochs": 3, "train.final_epochs": 2}


def run_demo(folder: Path, *, quick: bool, as_json: bool) -> None:
    """Run the demo in `folder` and print its table; a second run finds everything done."""
    need_local_packages()
    with serving(HERE / "model", "demo-llama", folder / "server") as base_url:
        result = _run(folder, base_url, quick)
    show_result(result, as_json=as_json)


def _run(folder: Path, base_url: str, quick: bool) -> RunResult:
    changes: dict[str, object] = {"run.folder": str(folder.resolve() / "run"), "providers.server.base_url": base_url}
    config = load_config(HERE / "demo.toml", changes | (QUICK if quick else {}))
    with Bars(err()) as bars:
        return run_blocking(run_async(config, watcher=bars))


def need_local_packages() -> None:
    """Refuse to start without what the demo's server is made of.

    Raises:
        MissingExtraError: a package of the extra `serve` is not installed.
    """
    from importlib.util import find_spec

    for package in ("torch", "transformers", "peft", "starlette", "uvicorn"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "serve", "The demo's own server")
