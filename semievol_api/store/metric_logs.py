"""A run's numbers for _TensorBoard, W&B and MLflow: training metrics step by step, the verdict's figures at the end.

    with open_logs(config) as log:
        log.job("warm", event)

Each is imported only where `[log] to` names it. Knows nothing of stages or providers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any, Protocol

from msgspec import to_builtins

from semievol_api.capabilities import JobEvent
from semievol_api.config.settings import Config, LogTarget
from semievol_api.errors import MissingExtraError
from semievol_api.store.verdict import Verdict


class _Sink(Protocol):
    """Where numbers go."""

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Some named numbers of one step."""
        ...

    def close(self) -> None:
        """Nothing more will come."""
        ...


class Logs:
    """All sinks of a run; none where nothing was asked for."""

    def __init__(self, sinks: Sequence[_Sink]) -> None:
        self._sinks = sinks

    def job(self, name: str, event: JobEvent) -> None:
        """A training's metrics, under its name."""
        values = {f"{name}/{key}": float(value) for key, value in event.metrics.items() if key != "step"}
        if values:
            self._write(values, round(event.metrics.get("step", 0)))

    def verdict(self, verdict: Verdict) -> None:
        """Accuracies, gains and what was kept."""
        values = {f"accuracy/{model.name}": model.accuracy for model in verdict.models}
        values |= {f"gain_points/{gain.of}-{gain.against}": gain.points for gain in verdict.differences}
        numbers = to_builtins(verdict.selection).items() if verdict.selection else ()
        values |= {f"selection/{name}": float(n) for name, n in numbers if type(n) in (int, float)}
        self._write(values, 0)

    def _write(self, values: Mapping[str, float], step: int) -> None:
        for sink in self._sinks:
            sink.write(values, step)


def check_logs(targets: Sequence[LogTarget]) -> None:
    """Refuse a target whose package is not installed.

    Raises:
        MissingExtraError: it says what to install.
    """
    for target in targets:
        if find_spec(target) is None:
            raise MissingExtraError(target, "log", f'[log] to = ["{target}"]')


@contextmanager
def open_logs(config: Config) -> Generator[Logs]:
    """The sinks that `[log]` names, closed when the block ends."""
    check_logs(config.log.to)
    makers: Mapping[LogTarget, Callable[[Config], _Sink]] = {
        "tensorboard": _TensorBoard,
        "wandb": _WeightsAndBiases,
        "mlflow": _MlFlow,
    }
    with ExitStack() as stack:
        sinks: list[_Sink] = []
        for target in config.log.to:
            sink = makers[target](config)
            stack.callback(sink.close)
            sinks.append(sink)
        yield Logs(sinks)


class _TensorBoard:
    """Event files in `tensorboard/` of the run's folder; needs neither torch nor TensorFlow."""

    def __init__(self, config: Config) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(config.run.folder / "tensorboard"))

    def write(self, values: Mapping[str, float], step: int) -> None:
        """See `_Sink`."""
        from tensorboard.compat.proto import event_pb2, summary_pb2

        events: Any = event_pb2  # their classes are made when they are imported, which no type checker sees
        summaries: Any = summary_pb2
        rows = [summaries.Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        event = events.Event(wall_time=time.time(), step=step, summary=summaries.Summary(value=rows))
        self._writer.add_event(event)

    def close(self) -> None:
        """See `_Sink`."""
        self._writer.close()


class _WeightsAndBiases:
    """A W&B run named after the run's folder; `WANDB_MODE=offline` keeps it on this machine.

    Trainings follow each other, each counting its steps from one, so every job's steps are an axis of their own.
    """

    def __init__(self, config: Config) -> None:
        import wandb

        settings = config.model_dump(mode="json", exclude={"providers"})
        config.run.folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=config.log.project, name=config.run.folder.name, dir=str(config.run.folder), config=settings
        )
        self._jobs: set[str] = set()

    def write(self, values: Mapping[str, float], step: int) -> None:
        """See `_Sink`."""
        group = next(iter(values), "").partition("/")[0]
        if group not in self._jobs:
            self._jobs.add(group)
            self._run.define_metric(f"{group}/step")
            self._run.define_metric(f"{group}/*", step_metric=f"{group}/step")
        self._run.log({**values, f"{group}/step": step})

    def close(self) -> None:
        """See `_Sink`."""
        self._run.finish()


class _MlFlow:
    """An MLflow run named after the run's folder, where MLFLOW_TRACKING_URI says."""

    def __init__(self, config: Config) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        found = self._client.get_experiment_by_name(config.log.project)
        place = found.experiment_id if found is not None else self._client.create_experiment(config.log.project)
        self._id = self._client.create_run(place, run_name=config.run.folder.name).info.run_id
        self._client.log_param(self._id, "mode", config.run.mode)
        self._client.log_param(self._id, "seed", config.run.seed)
        self._client.log_param(self._id, "student", config.roles.student.model)

    def write(self, values: Mapping[str, float], step: int) -> None:
        """See `_Sink`."""
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def close(self) -> None:
        """See `_Sink`."""
        self._client.set_terminated(self._id)
