"""A run from Python: a config as a path, a mapping or a `Config`, and data as frames.

    result = run({"data": {"task": "task.toml"}, ...}, labeled=df, unlabeled=pool, test=test, run_dir="runs/first")

What `semievol_api` offers of whole runs, each function beside its command. Frames are kept in the run's folder, so that
later calls need the config alone. Knows nothing of how a run is walked, estimated or shown.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, Unpack

from semievol_api.config.settings import Config, nearest, parse_config, read_toml
from semievol_api.data.frames import Frame, write_frame, write_task
from semievol_api.errors import ConfigError
from semievol_api.notebook import CellProgress, cell_display, run_blocking
from semievol_api.run_result import RunResult
from semievol_api.session import NullWatcher, Watcher, refuse_lost_journal, run_async

if TYPE_CHECKING:
    from semievol_api.planning.checking import CheckedConfig
    from semievol_api.planning.estimating import Estimate
    from semievol_api.report.comparison import PairComparison
    from semievol_api.report.prediction import Predictions

ConfigLike: TypeAlias = str | Path | Mapping[str, Any] | Config
"""A config file, its tables as a mapping, or a `Config`."""
Data: TypeAlias = Frame | str | Path
"""Rows, or the path or hub address of a file with rows."""
FRAMES = "frames"
"""Folder of a run that keeps what was given as frames."""


class RunOptions(TypedDict, total=False):
    """What `run` may be told besides; see there."""

    watcher: Watcher
    accept_change: bool
    accept_lost_journal: bool


def run(
    config: ConfigLike,
    *,
    labeled: Data | None = None,
    unlabeled: Data | None = None,
    test: Data | None = None,
    dev: Data | None = None,
    run_dir: str | Path | None = None,
    **options: Unpack[RunOptions],
) -> RunResult:
    """Run the method from labelled and unlabelled rows to a better model and a verdict.

    A run that was interrupted goes on where it stopped: the same config and the same rows ask nothing again that was
    paid for. Works in a script and inside a running event loop; a notebook shows progress.

    Parameters
    ----------
    config : path, mapping or Config
        A config file; its tables as a mapping, whose relative paths start at the working folder; or a `Config`. In a
        mapping `data.task` may be the task's own table, such as `{"kind": "labels", "labels": [...]}`.
    labeled, unlabeled, test, dev : data frame, list of mappings, or path, optional
        Rows in place of the files of `[data]`: pandas, polars or pyarrow tables. They are kept in the run's folder.
    run_dir : path, optional
        The run's folder, in place of `[run] folder`.
    **options
        `watcher`: a `Watcher` that hears of stages, rows and jobs. `accept_change` (default False): go on in a folder
        that another config made. `accept_lost_journal` (default False): pay again for answers whose journal is gone.

    Returns
    -------
    RunResult
        The verdict (accuracies in [0, 1], differences in points), the folder, what this call paid in USD and tokens.

    Raises
    ------
    UserError
        Something in the config, the data or the folder needs mending: `ConfigError`, `DataError`, `RunFolderError`,
        `JournalError`, `MissingAbilityError`, `MissingExtraError`.
    BudgetError
        A cap of `[limits]` is reached; everything paid for is kept.
    ProviderError
        The provider refused or failed; run again to go on.
    StageError
        Too many rows of a stage failed.

    Notes
    -----
    SemiEvol, arXiv 2410.14745 v2, algorithm 1.

    Examples
    --------
    >>> result = semievol_api.run("semievol.toml")
    >>> result.verdict.document["n_test"]
    40
    """
    strange = next((name for name in options if name not in RunOptions.__annotations__), None)
    if strange is not None:
        known = ["labeled", "unlabeled", "test", "dev", "run_dir", *RunOptions.__annotations__]
        raise ConfigError(f"run() has no option {strange!r}. {nearest(strange, known)}")
    settings = configured(config, run_dir, labeled=labeled, unlabeled=unlabeled, test=test, dev=dev)
    if not options.get("accept_lost_journal"):
        refuse_lost_journal(settings)
    with _watching(options.get("watcher"), f"Run {settings.run.folder.name}") as seen:
        return run_blocking(run_async(settings, watcher=seen, accept_change=options.get("accept_change", False)))


def check(
    config: ConfigLike,
    *,
    labeled: Data | None = None,
    unlabeled: Data | None = None,
    test: Data | None = None,
    dev: Data | None = None,
    run_dir: str | Path | None = None,
) -> CheckedConfig:
    """Check a config, its data and its providers' settings without the network.

    Parameters
    ----------
    config, labeled, unlabeled, test, dev, run_dir
        See `run`.

    Returns
    -------
    CheckedConfig
        Row counts, and what is worth knowing: rows that will be left out, models that end.

    Raises
    ------
    UserError
        Something needs mending; the message says what.

    Examples
    --------
    >>> semievol_api.check("semievol.toml")
    CheckedConfig(colours: 120 labelled, 60 unlabelled, 40 test rows; 0 notices)
    """
    from semievol_api.planning.checking import check_run

    return check_run(configured(config, run_dir, labeled=labeled, unlabeled=unlabeled, test=test, dev=dev))


def plan(
    config: ConfigLike,
    *,
    labeled: Data | None = None,
    unlabeled: Data | None = None,
    test: Data | None = None,
    dev: Data | None = None,
    run_dir: str | Path | None = None,
) -> Estimate:
    """Estimate requests, tokens, cost and duration of a run; sends nothing and needs no key.

    Parameters
    ----------
    config, labeled, unlabeled, test, dev, run_dir
        See `run`.

    Returns
    -------
    Estimate
        `usd` (None where a price is not known) and `tokens` as low, expected and high values; `rows` by stage.

    Raises
    ------
    UserError
        Something in the config or the data needs mending.

    Examples
    --------
    >>> planned = semievol_api.plan("semievol.toml")
    >>> planned.tokens.low <= planned.tokens.expected <= planned.tokens.high
    True
    """
    from semievol_api.planning.estimating import estimate

    settings = configured(config, run_dir, labeled=labeled, unlabeled=unlabeled, test=test, dev=dev)
    return run_blocking(estimate(settings))


def predict(
    config: ConfigLike,
    data: Data,
    model: str = "semievol",
    *,
    alpha: float | None = None,
    run_dir: str | Path | None = None,
) -> Predictions:
    """Label new rows with a run's model, each with a confidence; doubtful rows are left to a person.

    Parameters
    ----------
    config : path, mapping or Config
        The finished run's; see `run`.
    data : data frame, list of mappings, or path
        The rows, with the columns of the run's data; answers are not needed.
    model : str, default "semievol"
        `semievol`, `sft`, `warm` or `base` of the run, or a model of its provider.
    alpha : float, optional
        The tolerated share of wrong answers among the accepted, in (0, 1); default: `[select] alpha`.
    run_dir : path, optional
        The run's folder, in place of `[run] folder`.

    Returns
    -------
    Predictions
        One row each, in order: the answer, a confidence in [0, 1] and whether it is accepted.

    Raises
    ------
    DataError
        The rows cannot be read as the task's data.
    RunFolderError
        The run has no such model.

    Examples
    --------
    >>> result = semievol_api.run("semievol.toml")
    >>> rows = [{"id": "n1", "question": "The new item has cue: red", "options": ["red", "green", "blue", "gold"]}]
    >>> found = semievol_api.predict("semievol.toml", rows)
    >>> len(found.rows), 0 <= found.rows[0].confidence <= 1
    (1, True)
    """
    from semievol_api.report.prediction import predict as label

    settings = configured(config, run_dir)
    path = Path(data) if isinstance(data, str | Path) else write_frame(data, settings.run.folder / FRAMES / "new.jsonl")
    with _watching(None, f"Labelling {path.name}") as seen:
        return run_blocking(label(settings, model, path, alpha=alpha, watcher=seen))


def evaluate(
    ours: str | Path | RunResult,
    theirs: str | Path | RunResult,
    *,
    config: ConfigLike | None = None,
    run_dir: str | Path | None = None,
) -> PairComparison:
    """Compare two models on the same test questions, with a paired interval and test.

    Parameters
    ----------
    ours, theirs : path, str or RunResult
        A run, its folder, or `folder:model` (base, warm, sft, semievol, ceiling): compared by what they answered. With
        `config`, models of that run or of its provider, which are asked.
    config : path, mapping or Config, optional
        Whose test questions are asked; see `run`.
    run_dir : path, optional
        That run's folder, in place of `[run] folder`.

    Returns
    -------
    PairComparison
        Both accuracies and `gain` in [0, 1] with 95 % intervals, McNemar's test, and `sentence`.

    Raises
    ------
    RunFolderError
        A side is no run, or has no such model.
    DataError
        The two share no test question.

    Notes
    -----
    Paired bootstrap intervals and McNemar's exact test.

    Examples
    --------
    >>> result = semievol_api.run("semievol.toml")
    >>> comparison = semievol_api.evaluate(f"{result.folder}:semievol", f"{result.folder}:base")
    >>> comparison.gain.n
    40
    """
    from semievol_api.report.comparison import ask_sides, compare_pairs, compare_sides

    names = [str(side.folder) if isinstance(side, RunResult) else str(side) for side in (ours, theirs)]
    if config is None:
        (comparison,) = compare_pairs([(names[0], names[1])])
        return comparison
    settings = configured(config, run_dir)
    with _watching(None, "Comparing") as seen:
        first, second = run_blocking(ask_sides(settings, names, seen))
    (comparison,) = compare_sides([(first, second)])
    return comparison


def configured(config: ConfigLike, run_dir: str | Path | None = None, **data: Data | None) -> Config:
    """The config of a call: rows that were given as frames are in files of the run's folder, and named there.

    Raises:
        ConfigError: the config is wrong, or nothing says where the run is kept.
        DataError: a frame cannot be used.
    """
    tree, base, where = _tables(config)
    section = tree.get("run", {})
    folder = section.get("folder") if isinstance(section, Mapping) else None
    if run_dir is None and folder is None:
        raise ConfigError(f"{where} does not say where the run is kept. Pass run_dir=..., or set folder in [run].")
    place = Path(run_dir).resolve() if run_dir is not None else base / str(folder)
    changes: dict[str, object] = {"run.folder": place}
    parts = tree.get("data", {})
    task = parts.get("task") if isinstance(parts, Mapping) else None
    if isinstance(task, Mapping):
        changes["data.task"] = str(write_task(task, place / FRAMES / "task.toml"))
    for part in ("labeled", "unlabeled", "test", "dev"):
        found, kept = data.get(part), place / FRAMES / f"{part}.jsonl"
        if isinstance(found, str | Path):
            changes[f"data.{part}"] = found if str(found).startswith("hf:") else Path(found).resolve()
        elif found is not None:
            changes[f"data.{part}"] = write_frame(found, kept)
        elif kept.is_file() and isinstance(parts, Mapping) and part not in parts:
            changes[f"data.{part}"] = kept
        elif part in ("labeled", "unlabeled") and isinstance(parts, Mapping) and part not in parts:
            raise ConfigError(f"{where} names no {part} data. Pass {part}=..., or set {part} in [data].")
    return parse_config(tree, base, changes, where=where)


def _tables(config: object) -> tuple[Mapping[str, Any], Path, str]:
    """A config's tables, the folder that its relative paths start at, and what messages call it."""
    if isinstance(config, Config):
        return config.model_dump(exclude_unset=True), Path.cwd(), "config"
    if isinstance(config, Mapping):
        return config, Path.cwd(), "config"
    if not isinstance(config, str | Path):
        raise ConfigError(f"A config is a path, a mapping or a Config, and not {type(config).__name__}.")
    path = Path(config)
    return read_toml(path), path.resolve().parent, path.name


@contextmanager
def _watching(watcher: Watcher | None, caption: str) -> Generator[Watcher]:
    """The caller's watcher, or a notebook's cell, or nobody."""
    show = cell_display() if watcher is None else None
    if show is None:
        yield watcher or NullWatcher()
        return
    bars = CellProgress(show, caption)
    yield bars
    bars.finish()
