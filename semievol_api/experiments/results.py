"""Results of an experiment: each arm's mean over seeds, and its gain over the baseline, both with intervals.

Paired: the same questions on both sides, resampled, and nested in it the seeds, each with both sides' trainings and
draws. Knows nothing of files or tables.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semievol_api.config.settings import read_toml
from semievol_api.engine.journal import Journal
from semievol_api.errors import DataError
from semievol_api.evaluation import BootstrapSettings, Interval, paired_bootstrap, smallest_detectable_effect
from semievol_api.experiments.grid import Experiment, Scalar, cells
from semievol_api.experiments.runner import JOURNAL, DoneCell
from semievol_api.training.jobs import jobs_under


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSummary:
    """One arm at one value of the axis; accuracies are shares in [0, 1].

    `gain` is None for the baseline. `detectable` is the smallest gain that a test of this size shows, at the
    discordance that was observed. `skipped` counts seeds in which too little was kept to train on.
    """

    arm: str
    value: Scalar | None
    seeds: int
    accuracy: Interval
    gain: Interval | None
    detectable: float | None
    kept: float | None
    unlabeled: float | None
    false_share: float | None
    skipped: int
    published: str | None


def summarise(experiment: Experiment, done: Sequence[DoneCell]) -> tuple[ArmSummary, ...]:
    """Every arm at every value, in the grid's order.

    Raises:
        DataError: two arms were measured on different questions.
    """
    settings = BootstrapSettings(resamples=experiment.experiment.resamples)
    found: list[ArmSummary] = []
    for value in experiment.values:
        baseline = _cells(done, experiment.experiment.baseline, value)
        for arm in experiment.arms:
            mine = _cells(done, arm.name, value)
            if mine:
                against = baseline if arm.name != experiment.experiment.baseline else []
                found.append(_summary(mine, against, settings, arm.published))
    return tuple(found)


def compare_arms(ours: Sequence[DoneCell], theirs: Sequence[DoneCell], settings: BootstrapSettings) -> Interval:
    """The gain of one arm over another, seeds paired.

    Raises:
        DataError: the arms have no seed in common, or were measured on different questions.
    """
    other = {cell.row.seed: cell for cell in theirs}
    pairs = [(cell, other[cell.row.seed]) for cell in ours if cell.row.seed in other]
    if not pairs:
        raise DataError("Two arms can only be compared over seeds that both have run.")
    rows = np.vstack([_right(a, list(a.correct)) - _right(b, list(a.correct)) for a, b in pairs])
    return paired_bootstrap(rows, np.zeros_like(rows[:1]), settings)


def _summary(
    mine: Sequence[DoneCell], baseline: Sequence[DoneCell], settings: BootstrapSettings, published: str | None
) -> ArmSummary:
    ids = list(mine[0].correct)
    right = np.vstack([_right(cell, ids) for cell in mine])
    gain = compare_arms(mine, baseline, settings) if baseline else None
    return ArmSummary(
        arm=mine[0].row.arm,
        value=mine[0].row.value,
        seeds=len(mine),
        accuracy=paired_bootstrap(right, np.zeros_like(right[:1]), settings),
        gain=gain,
        detectable=_detectable(mine, baseline) if baseline else None,
        kept=_mean([cell.row.kept for cell in mine]),
        unlabeled=_mean([cell.row.unlabeled for cell in mine]),
        false_share=_mean([cell.row.false_share for cell in mine]),
        skipped=sum(cell.row.kept is not None and cell.row.model != "semievol" for cell in mine),
        published=published,
    )


def _cells(done: Sequence[DoneCell], arm: str, value: Scalar | None) -> list[DoneCell]:
    return [cell for cell in done if cell.row.arm == arm and cell.row.value == value]


def _right(cell: DoneCell, ids: Sequence[str]) -> NDArray[np.float64]:
    if set(cell.correct) != set(ids):
        raise DataError(
            f"The arm {cell.row.arm!r} was measured on other questions than the arm it is compared with; an "
            f"experiment compares on one test file."
        )
    return np.array([cell.correct[i] for i in ids], dtype=np.float64)


def _detectable(mine: Sequence[DoneCell], baseline: Sequence[DoneCell]) -> float:
    """At the mean discordance of the seeds."""
    other = {cell.row.seed: cell for cell in baseline}
    shares = [
        sum(cell.correct[i] != other[cell.row.seed].correct[i] for i in cell.correct) / len(cell.correct)
        for cell in mine
        if cell.row.seed in other
    ]
    n = len(mine[0].correct)
    return smallest_detectable_effect(n, discordant=max(1 / n, sum(shares) / len(shares)))


def _mean(values: Sequence[float | int | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What all arms needed against what was paid for.

    `answers_repeated`: samples that were paid for although the journal held them. `jobs_repeated`: jobs beyond one
    per training file, base, hyper-parameters and seed.
    """

    answers_needed: int
    answers_paid: int
    answers_repeated: int
    requests_paid: int
    trainings_needed: int
    jobs_paid: int
    jobs_repeated: int


def count(experiment: Experiment, done: Sequence[DoneCell]) -> Counters:
    """The counters of a finished experiment, or of one on its way."""
    folder = experiment.experiment.folder
    runs = [folder / "runs" / cell.name for cell in cells(experiment)]
    journals = [folder / JOURNAL] if experiment.experiment.share else [run / JOURNAL for run in runs]
    counted = [_journal(path, {str(run) for run in runs}) for path in journals]
    jobs = [job for run in runs for job in jobs_under(run)]
    ids, keys = {job.job_id for job in jobs}, {job.run_key for job in jobs}
    return Counters(
        answers_needed=sum(cell.row.answers for cell in done),
        answers_paid=sum(one.answers for one in counted),
        answers_repeated=sum(one.repeated for one in counted),
        requests_paid=sum(cell.row.paid_requests for cell in done),
        trainings_needed=len(jobs),
        jobs_paid=len(ids),
        jobs_repeated=len(ids) - len(keys),
    )


@dataclass(frozen=True, slots=True)
class _Counted:
    """One journal: answers that were paid for by some runs, and those that any run paid for a second time."""

    answers: int
    repeated: int


def _journal(path: Path, runs: set[str]) -> _Counted:
    with closing(Journal.read_only(path)) as journal:
        totals = journal.totals()
        (stored,) = journal.connection.execute(
            "SELECT count(*) FROM samples JOIN sources ON sources.id = samples.source WHERE sources.kind <> 'embed'"
        ).fetchone()
    chats = [total for total in totals if total.source.kind != "embed"]
    mine = sum(total.samples for total in chats if total.source.run in runs)
    return _Counted(mine, sum(total.samples for total in chats) - int(stored))


_PUBLISHED = Path(__file__).parent / "published.toml"
NONE = "–"


@dataclass(frozen=True, slots=True)
class ResultTable:
    """A table of text cells, the first column left, the others right."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def result_table(experiment: Experiment, summary: Sequence[ArmSummary], task: str) -> ResultTable:
    """Arms by accuracy, gain, what was kept and how false it was."""
    figures: dict[str, float] = read_toml(_PUBLISHED).get(task, {})
    axis = (experiment.axis.label,) if experiment.axis is not None else ()
    published = ("paper %",) if figures else ()
    head = ("arm", *axis, "accuracy %", "95 % interval", f"gain over {experiment.experiment.baseline}", "95 % interval")
    rows = [
        (
            arm.arm,
            *((str(arm.value),) if axis else ()),
            f"{100 * arm.accuracy.estimate:.1f}",
            _range(arm.accuracy, signed=False),
            NONE if arm.gain is None else f"{100 * arm.gain.estimate:+.1f}",
            NONE if arm.gain is None else _range(arm.gain, signed=True),
            NONE if arm.detectable is None else f"{100 * arm.detectable:.1f}",
            _kept(arm),
            NONE if arm.false_share is None else f"{100 * arm.false_share:.1f}",
            *((f"{figures[arm.published]:.1f}" if arm.published in figures else NONE,) if published else ()),
        )
        for arm in summary
    ]
    return ResultTable((*head, "detectable", "kept", "false %", *published), tuple(rows))


def markdown(table: ResultTable) -> str:
    """The table in Markdown."""
    lines = [f"| {' | '.join(table.head)} |", f"|---{'|---:' * (len(table.head) - 1)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in table.rows)])


def latex(table: ResultTable, caption: str) -> str:
    """The table in LaTeX, for `booktabs`."""
    lines = [
        r"\begin{table}",
        rf"\caption{{{_escaped(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}",
        r"\toprule",
        " & ".join(map(_escaped, table.head)) + r" \\",
        r"\midrule",
        *(" & ".join(map(_escaped, row)) + r" \\" for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def _kept(arm: ArmSummary) -> str:
    if arm.kept is None or arm.unlabeled is None:
        return NONE
    skipped = f" ({arm.skipped} of {arm.seeds} skipped)" if arm.skipped else ""
    return f"{arm.kept:.0f} of {arm.unlabeled:.0f}{skipped}"


def _range(interval: Interval, *, signed: bool) -> str:
    sign = "+" if signed else ""
    return f"{100 * interval.low:{sign}.1f} to {100 * interval.high:{sign}.1f}"


def _escaped(text: str) -> str:
    for sign, escape in (("\\", r"\textbackslash{}"), ("&", r"\&"), ("%", r"\%"), ("_", r"\_"), ("#", r"\#")):
        text = text.replace(sign, escape)
    return text.replace("−", "$-$").replace("–", "--").replace("α", r"$\alpha$")


_NOTE = (
    "Means over {seeds} on {n} test questions. Intervals: paired bootstrap over questions with seeds nested in "
    "it; each seed has trainings{draws} of its own. `detectable`: the smallest gain that one run on a test of this "
    "size shows, in points. Many arms are compared here: about one interval in twenty misses the truth by chance."
)


@dataclass(frozen=True, slots=True)
class Results:
    """What was written where, and what it says."""

    folder: Path
    done: tuple[DoneCell, ...]
    summary: tuple[ArmSummary, ...]
    counters: Counters
    text: str


def write_results(experiment: Experiment, done: Sequence[DoneCell], task: str) -> Results:
    """Write all files into a folder of the experiment's name, next to its runs; other experiments may share those.

    Raises:
        DataError: two arms were measured on different questions.
    """
    folder = experiment.experiment.folder / experiment.experiment.name
    folder.mkdir(parents=True, exist_ok=True)
    summary, counters = summarise(experiment, done), count(experiment, done)
    table = result_table(experiment, summary, task)
    title = experiment.experiment.title or experiment.experiment.name
    note = _NOTE.format(
        seeds=_seeds(len(experiment.experiment.seeds)),
        n=done[0].row.n_test,
        draws=" and a draw of labelled and unlabelled rows" if experiment.draw is not None else "",
    )
    _write_cells(folder, done)
    _write_answers(folder, done)
    text = f"{markdown(table)}\n\n{note}\n"
    (folder / "results.md").write_text(f"# {title}\n\n{text}", "utf-8")
    (folder / "results.tex").write_text(latex(table, f"{title}. {note}") + "\n", "utf-8")
    (folder / "counters.json").write_text(json.dumps(asdict(counters), indent=2) + "\n", "utf-8")
    return Results(folder, tuple(done), summary, counters, text)


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"


def _write_cells(folder: Path, done: Sequence[DoneCell]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [asdict(cell.row) for cell in done]
    with (folder / "cells.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    texts = [{**row, "value": None if row["value"] is None else str(row["value"])} for row in rows]
    pq.write_table(pa.Table.from_pylist(texts), folder / "cells.parquet")


def _write_answers(folder: Path, done: Sequence[DoneCell]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "arm": cell.row.arm,
            "value": None if cell.row.value is None else str(cell.row.value),
            "seed": cell.row.seed,
            "example_id": name,
            "correct": right,
        }
        for cell in done
        for name, right in cell.correct.items()
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "answers.parquet", compression="zstd")
