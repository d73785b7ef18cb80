"""`semievol evaluate` and `predict`: two models beside each other, and new rows labelled with a confidence.

Heavy imports stand inside the functions. Knows nothing of how the figures were made.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from semievol_api.cli.screen import AsJson, Bars, err, out, print_json, table
from semievol_api.errors import DataError, UserError

if TYPE_CHECKING:
    from semievol_api.evaluation import Interval
    from semievol_api.report.comparison import PairComparison, SideScore
    from semievol_api.report.prediction import Predictions


def evaluate(
    sides: Annotated[list[str], typer.Argument(help="Run folders or FOLDER:MODEL, in pairs, one pair per task.")],
    run_config: Annotated[
        Path | None, typer.Option("--run", help="A config. SIDES are then models of its run or provider.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two models or runs on the same test questions, with a paired test (Holm over several pairs)."""
    if len(sides) % 2:
        raise UserError(f"Sides come in pairs, and there are {len(sides)}: semievol evaluate RUN_A RUN_B [RUN_C RUN_D]")
    contests = _contests_of(list(zip(sides[::2], sides[1::2], strict=True)), run_config)
    if as_json:
        print_json(_contests_as_json(contests))
    else:
        _show_contests(out(), contests)


def predict(
    model: Annotated[str, typer.Argument(help="semievol, sft, warm or base of the run, or any model of its provider.")],
    data: Annotated[
        Path, typer.Argument(help="Rows to label: CSV, JSONL or Parquet, with the columns of the run's data.")
    ],
    run_config: Annotated[Path, typer.Option("--run", help="The run's config.")] = Path("semievol.toml"),
    alpha: Annotated[float | None, typer.Option(min=0.001, max=0.999, help="Tolerated share of wrong answers.")] = None,
    written: Annotated[
        Path | None, typer.Option("--out", help="The CSV to write. Default: DATA.predicted.csv.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Label new rows with confidences. Rows below the calibrated threshold are left for review."""
    from semievol_api.config.settings import load_config
    from semievol_api.report.prediction import predict as label
    from semievol_api.session import run_blocking

    place = _place_of(data, written) if data.exists() else data
    with Bars(err()) as bars:
        found = run_blocking(label(load_config(run_config), model, data, alpha=alpha, watcher=bars))
    path = _write_predictions(found, place)
    if as_json:
        print_json(_predictions_as_json(found, path))
    else:
        _show_predictions(out(), found, path)


def _contests_of(pairs: Sequence[tuple[str, str]], run_config: Path | None) -> tuple[PairComparison, ...]:
    """The pairs compared: by what runs answered, or with a config, by asking its models."""
    from semievol_api.config.settings import load_config
    from semievol_api.report.comparison import ask_sides, compare_pairs, compare_sides
    from semievol_api.session import run_blocking

    if run_config is None:
        return compare_pairs(pairs)
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    with Bars(err()) as bars:
        asked = run_blocking(ask_sides(load_config(run_config), names, bars))
    sides = dict(zip(names, asked, strict=True))
    return compare_sides([(sides[ours], sides[theirs]) for ours, theirs in pairs])


def _show_contests(console: Console, contests: Sequence[PairComparison]) -> None:
    """Every pair in one table; categories where there is one pair."""
    columns = ["model", "accuracy %", "95 % interval", "ECE", "Brier"]
    for contest in contests:
        rows = [_side(contest.ours), _side(contest.theirs)]
        console.print(table(f"n = {contest.gain.n} questions", columns, rows))
    columns = ["paired difference", "points", "95 % interval", "McNemar p", "Holm p", "smallest detectable"]
    console.print(table("", columns, [_pair(contest) for contest in contests]))
    if len(contests) == 1 and contests[0].categories:
        console.print(_categories(contests[0]))
    for contest in contests:
        console.print(contest.sentence, markup=False, soft_wrap=True)


def _contests_as_json(contests: Sequence[PairComparison]) -> list[dict[str, object]]:
    """Everything, for a program."""
    return [{**asdict(contest), "sentence": contest.sentence} for contest in contests]


def _side(side: SideScore) -> list[str]:
    return [
        side.name,
        f"{100 * side.accuracy.estimate:.1f}",
        _range(side.accuracy),
        _number(side.ece),
        _number(side.brier),
    ]


def _pair(contest: PairComparison) -> list[str]:
    return [
        f"{contest.ours.name} - {contest.theirs.name}",
        f"{100 * contest.gain.estimate:+.1f}",
        _range(contest.gain, sign="+"),
        f"{contest.test.p_value:.3g}",
        f"{contest.holm_p:.3g}",
        f"{100 * contest.detectable:.1f}",
    ]


def _categories(contest: PairComparison) -> object:
    rows = [
        [
            c.name,
            str(c.gain.n),
            f"{100 * c.ours:.1f}",
            f"{100 * c.theirs:.1f}",
            f"{100 * c.gain.estimate:+.1f}",
            _range(c.gain, sign="+"),
        ]
        for c in contest.categories
    ]
    return table("", ["category", "n", contest.ours.name, contest.theirs.name, "points", "95 % interval"], rows)


def _range(interval: Interval, sign: str = "") -> str:
    return rf"\[{100 * interval.low:{sign}.1f}, {100 * interval.high:{sign}.1f}]"


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.3f}"


_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_NUMBER = re.compile(r"[+-]?(?:\d[\d ,.']*)?\d(?:[eE][+-]?\d+)?\s?%?")


def _place_of(data: Path, named: Path | None) -> Path:
    """Where the labelled rows go; looked at before anything is asked.

    Raises:
        DataError: its folder is missing, or it is the data themselves.
    """
    path = named or data.with_name(f"{data.stem}.predicted.csv")
    if not path.parent.is_dir():
        raise DataError(f"There is no folder {str(path.parent)!r} for the labelled rows. Make it, or change --out.")
    if path.exists() and path.samefile(data):
        raise DataError(f"--out {str(path)!r} is the data file itself, which would be lost. Name another one.")
    return path


def _write_predictions(found: Predictions, path: Path) -> Path:
    """The file's own rows with four more columns; what a spreadsheet would run as a formula begins with an apostrophe.

    Raises:
        DataError: the place cannot be written.
    """
    from semievol_api.report.prediction import as_rows

    rows = [{name: defused(_cell(value)) for name, value in row.items()} for row in as_rows(found)]
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise DataError(f"The labelled rows cannot be written to {str(path)!r}: {error.strerror}. Use --out.") from None
    return path


def _show_predictions(console: Console, found: Predictions, path: Path) -> None:
    """Counts, the cut and what it promises."""
    unanswered = sum(row.answer is None for row in found.rows)
    console.print(
        f"{len(found.rows)} rows labelled by {found.model!r}; {unanswered} got no answer.", markup=False, soft_wrap=True
    )
    if found.cut is not None:
        console.print(
            f"The cut lies at a confidence of {found.cut:.4f} (alpha {found.alpha:g}).", markup=False, soft_wrap=True
        )
    for message in (*found.messages, *_told_of_formulas(found)):
        console.print(message, markup=False, soft_wrap=True)
    console.print(f"Everything is in {path}", markup=False, soft_wrap=True)


def _predictions_as_json(found: Predictions, path: Path) -> Mapping[str, object]:
    """The counts for a program; the rows are in the file."""
    return {
        "file": str(path),
        "rows": len(found.rows),
        "answered": sum(row.answer is not None for row in found.rows),
        "accepted": sum(row.accepted for row in found.rows),
        "cut": found.cut,
        "alpha": found.alpha,
        "calibration": found.calibration,
        "messages": [*found.messages, *_told_of_formulas(found)],
    }


def defused(cell: object) -> object:
    """A text that spreadsheets would run as a formula, behind an apostrophe; numbers and all else as they are."""
    if isinstance(cell, str) and cell.startswith(_FORMULA_STARTS) and not _NUMBER.fullmatch(cell):
        return f"'{cell}"
    return cell


def _told_of_formulas(found: Predictions) -> tuple[str, ...]:
    from semievol_api.report.prediction import as_rows

    cells = (_cell(value) for row in as_rows(found) for value in row.values())
    count = sum(defused(cell) is not cell for cell in cells)
    if not count:
        return ()
    return (
        f"{count} cell(s) begin with =, +, -, @, a tab or a return; each has an apostrophe before it, so that no "
        f"spreadsheet runs it.",
    )


def _cell(value: object) -> object:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
