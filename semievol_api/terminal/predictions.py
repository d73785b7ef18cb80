"""What a person sees of labelled rows, and the CSV that they are written to.

Knows nothing of how a row was labelled.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from semievol_api.errors import DataError
from semievol_api.predict import Predictions, as_rows


def place_of(data: Path, named: Path | None) -> Path:
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


def write_predictions(found: Predictions, path: Path) -> Path:
    """The file's own rows with four more columns.

    Raises:
        DataError: the place cannot be written.
    """
    rows = [{name: _cell(value) for name, value in row.items()} for row in as_rows(found)]
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise DataError(f"The labelled rows cannot be written to {str(path)!r}: {error.strerror}. Use --out.") from None
    return path


def show_predictions(console: Console, found: Predictions, path: Path) -> None:
    """Counts, the cut and what it promises."""
    unanswered = sum(row.answer is None for row in found.rows)
    console.print(
        f"{len(found.rows)} rows labelled by {found.model!r}; {unanswered} got no answer.", markup=False, soft_wrap=True
    )
    if found.cut is not None:
        console.print(
            f"The cut lies at a confidence of {found.cut:.4f} (alpha {found.alpha:g}).", markup=False, soft_wrap=True
        )
    for message in found.messages:
        console.print(message, markup=False, soft_wrap=True)
    console.print(f"Everything is in {path}", markup=False, soft_wrap=True)


def predictions_as_json(found: Predictions, path: Path) -> Mapping[str, object]:
    """The counts for a program; the rows are in the file."""
    return {
        "file": str(path),
        "rows": len(found.rows),
        "answered": sum(row.answer is not None for row in found.rows),
        "accepted": sum(row.accepted for row in found.rows),
        "cut": found.cut,
        "alpha": found.alpha,
        "calibration": found.calibration,
        "messages": list(found.messages),
    }


def _cell(value: object) -> object:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
