"""An experiment's results as files, in a folder of its name.

    cells.csv, cells.parquet     a row a run
    answers.parquet              a row a run and test question: was it right
    results.md, results.tex      a row an arm, means over seeds with intervals
    counters.json                what was needed, what was paid for, what twice

Knows nothing of how runs are made.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from semievol_api.experiments.cell import DoneCell
from semievol_api.experiments.counters import Counters, count
from semievol_api.experiments.grid import Experiment
from semievol_api.experiments.summary import ArmSummary, summarise
from semievol_api.experiments.tables import latex, markdown, result_table

NOTE = (
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
    """Write all files into a folder of the experiment's name beside its runs; other experiments may share those.

    Raises:
        DataError: two arms were measured on different questions.
    """
    folder = experiment.experiment.folder / experiment.experiment.name
    folder.mkdir(parents=True, exist_ok=True)
    summary, counters = summarise(experiment, done), count(experiment, done)
    table = result_table(experiment, summary, task)
    title = experiment.experiment.title or experiment.experiment.name
    note = NOTE.format(
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
