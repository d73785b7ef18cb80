"""`semievol experiment`: a grid over a config of the user's, or over the demo's with one server for all of its runs.

Knows nothing of arms or tables; the server is asked over HTTP, as any other would be.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from semievol_api.cli.run import show_result
from semievol_api.cli.screen import Bars, err
from semievol_api.config.settings import load_config
from semievol_api.demo.embedded_server import serving
from semievol_api.errors import MissingExtraError, UserError
from semievol_api.experiments.grid import DEMO, Cell, Experiment, load_experiment
from semievol_api.experiments.results import Results, write_results
from semievol_api.experiments.runner import DoneCell, ExperimentContext, run_experiment, tree_cpu_s
from semievol_api.session import NullWatcher, RunResult, Watcher, run_async, run_blocking

HERE = Path(__file__).parents[1] / "demo"
QUICK: dict[str, object] = {"data.max_unlabeled": 60, "data.max_test": 60, "train.n_epochs": 3, "train.final_epochs": 2}
_PACKAGED = ("smollm2", "minilm")
"""The models of the demo with a real language model, by the names of `semievol models`."""


def run_demo(folder: Path, *, real: bool, quick: bool, as_json: bool) -> None:
    """Run the demo in `folder` and print its table; a second run finds everything done.

    `real` takes SmolLM2 and customers' messages in place of the small model and exam questions.

    Raises:
        UserError: a package is missing, or the models cannot be fetched.
    """
    _need_local_packages()
    if real:
        _fetch_models()
    model, name = (Path(_PACKAGED[0]), _PACKAGED[0]) if real else (HERE / "model", "demo-llama")
    with serving(model, name, folder / "server") as base_url:
        result = _run(HERE / ("llm/demo.toml" if real else "demo.toml"), folder, base_url, quick)
    show_result(result, as_json=as_json)
    if not real and not as_json:
        err().print("With a real language model and customers' messages: semievol demo --model smollm2", markup=False)


def _fetch_models() -> None:
    """Have the models in the cache before the server starts, which would not wait for a download.

    Raises:
        UserError: one cannot be fetched; what `semievol models get` says stands above.
    """
    for name in _PACKAGED:
        command = [sys.executable, "-m", "semievol_api.cli", "models", "get", name]
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode != 0:
            raise UserError(f"The demo needs the model {name!r}, which could not be fetched: see above.")


def _run(config_file: Path, folder: Path, base_url: str, quick: bool) -> RunResult:
    changes: dict[str, object] = {"run.folder": str(folder.resolve() / "run"), "providers.server.base_url": base_url}
    config = load_config(config_file, changes | (QUICK if quick else {}))
    with Bars(err()) as bars:
        return run_blocking(run_async(config, watcher=bars))


def _need_local_packages() -> None:
    """Refuse to start without what the demo's server is made of.

    Raises:
        MissingExtraError: a package of the extra `serve` is not installed.
    """
    from importlib.util import find_spec

    for package in ("torch", "transformers", "peft", "prometheus_client", "python_multipart"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "serve", "The demo's own server")


_PROCESSES = "processes"
"""Folder of what each process took, in seconds, as far as it came: also a killed one's, to its last cell."""
_SERVED = re.compile(r'semievol_requests_total\{method="POST",route="([a-z_]+)",status="200"\} ([0-9.e+]+)')


@dataclass(frozen=True)
class _CellLines:
    """Says one line per cell; `run` hears the stages within."""

    say: Callable[[str], None]
    note: Callable[[], None]
    run: Watcher

    def on_cell(self, cell: Cell, number: int, of: int, done: DoneCell | None) -> None:
        """See `CellWatcher`."""
        at = "" if cell.value is None else f" at {cell.value}"
        state = "..." if done is None else f"{100 * done.row.accuracy:.1f} % in {done.row.seconds:.0f} s"
        self.say(f"[{number}/{of}] {cell.arm.name}{at}, seed {cell.seed}: {state}")
        self.note()


def run_grid(
    path: Path,
    say: Callable[[str], None],
    *,
    quick: bool = False,
    folder: Path | None = None,
    threads: int = 1,
    accept_lost_journal: bool = False,
) -> Results:
    """Run what is not done yet of an experiment and write its results.

    Raises:
        UserError: the experiment, a config or the data needs mending.
    """
    experiment = load_experiment(path, quick=quick, folder=folder)
    place = experiment.experiment.folder / experiment.experiment.name
    place.mkdir(parents=True, exist_ok=True)
    wall, cpu = time.monotonic(), tree_cpu_s()
    mine = place / _PROCESSES / f"{time.time_ns()}.json"
    mine.parent.mkdir(exist_ok=True)
    with _ground(experiment, threads) as found:
        ground = replace(found, accept_lost_journal=accept_lost_journal)

        def note() -> None:
            spent = {"wall_s": round(time.monotonic() - wall, 1), "cpu_s": round(tree_cpu_s() - cpu, 1)}
            mine.write_text(json.dumps({**spent, "served": _served(ground)}) + "\n", "utf-8")

        done = run_blocking(run_experiment(experiment, ground, _CellLines(say, note, NullWatcher())))
    return write_results(experiment, done, load_config(ground.base).data.task)


@contextmanager
def _ground(experiment: Experiment, threads: int) -> Generator[ExperimentContext]:
    """The base config; for the demo's with a server of its own, whose state lies with the experiment."""
    head = experiment.experiment
    if head.base != DEMO:
        yield ExperimentContext(Path(head.base))
        return
    _need_local_packages()
    with serving(HERE / "model", "demo-llama", head.folder / "server", _threaded(head.folder, threads)) as url:
        yield ExperimentContext(HERE / "demo.toml", {"providers.server.base_url": url})


def _threaded(folder: Path, threads: int) -> list[str]:
    """Options of a server whose engine and trainings take so many threads; none for its own default."""
    if threads == 1:
        return []
    own: dict[str, object] = json.loads((HERE / "model/semievol_train.json").read_text("utf-8"))
    settings = folder / "train.toml"
    settings.write_text("".join(f"{name} = {value}\n" for name, value in {**own, "threads": threads}.items()), "utf-8")
    return ["--threads", str(threads), "--train-config", str(settings)]


def _served(ground: ExperimentContext) -> dict[str, int]:
    """What the demo's server says that it answered since it started, by route; nothing for another's server."""
    url = ground.changes.get("providers.server.base_url")
    if not isinstance(url, str):
        return {}
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/metrics", timeout=30) as reply:
        return {route: int(float(count)) for route, count in _SERVED.findall(reply.read().decode())}
