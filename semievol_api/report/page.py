"""The label browser's rows, packed small enough to stand inside the page.

Columns of codes and rounded numbers, as JSON, gzip and base64. Where all details do not fit the budget, every row
keeps its decision, answers and scores, questions are cut, and full details stand for as many rows as fit, drawn
evenly; `Payload` says what was cut. Knows nothing of how the page shows them.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from semievol_api.errors import MissingExtraError, RunFolderError
from semievol_api.report.labels import AnnotatorAnswers, LabelTable, same_answer
from semievol_api.report.read_run import read_report_data
from semievol_api.report.report_data import ReportData, percent, seconds, signed, thousands
from semievol_api.run_result import RunResult
from semievol_api.selection.values import FloatArray, IntArray


@dataclass(frozen=True)
class Payload:
    """What stands in the page, and what had to be left out.

    `detailed` rows have their full question, options and responses; `shown` of `total` rows are listed at all.
    """

    base64: str
    total: int
    shown: int
    detailed: int
    question_limit: int | None

    @property
    def complete(self) -> bool:
        """Whether every row is there with everything that is known of it."""
        return self.detailed == self.total


@dataclass(frozen=True)
class _Plan:
    """How much is kept: characters of questions and ids (None: all)."""

    question_limit: int | None
    id_limit: int | None


_PLANS = (_Plan(240, None), _Plan(120, None), _Plan(96, 0), _Plan(72, 0), _Plan(60, 0), _Plan(48, 0), _Plan(36, 0))
_DIGITS = "".join(chr(c) for c in range(35, 127) if chr(c) not in "\\<")
"""Printable characters that JSON and HTML leave alone; `browser_rows.js` spells the same ones."""
_MEASURED_ROWS = 3000
_BROAD_SHARE = 0.85
"""The share of the budget that the list itself may take; the rest is for details."""


def pack_labels(labels: LabelTable, budget_bytes: int) -> Payload:
    """As much of the table as `budget_bytes` of base64 can hold."""
    raw = budget_bytes * 3 // 4
    places = np.arange(len(labels))
    whole = _Plan(None, None)
    sample = _even_sample(labels, _MEASURED_ROWS)
    detail_bytes = _row_bytes(_details(labels, sample), sample)
    if (detail_bytes + _row_bytes(_columns(labels, sample, whole), sample)) * places.size < 1.1 * raw:
        packed = _pack(_columns(labels, places, whole) | {"details": _details(labels, places)})
        if len(packed) <= raw:
            return _payload(packed, labels, places.size, places.size, None)
    while True:
        for plan in _PLANS:
            if _row_bytes(_columns(labels, sample, plan), sample) * places.size <= _BROAD_SHARE * raw:
                found = _with_details(labels, places, plan, detail_bytes, raw)
                if found is not None:
                    return found
        places = places[::2]


def _with_details(labels: LabelTable, places: IntArray, plan: _Plan, detail_bytes: float, raw: int) -> Payload | None:
    """The list, and details for as many rows as `raw` bytes can hold; None where even the list is too large."""
    broad = _columns(labels, places, plan)
    room = (raw - len(_pack(broad))) / detail_bytes
    for share in (0.95, 0.7, 0.2):
        chosen = np.intersect1d(_even_sample(labels, max(0, int(share * room))), places)
        packed = _pack(broad | {"details": _details(labels, chosen)})
        if len(packed) <= raw:
            return _payload(packed, labels, places.size, chosen.size, plan.question_limit)
    return None


def _row_bytes(part: object, sample: IntArray) -> float:
    """Compressed bytes a row of one part of the payload."""
    return len(_pack(part)) / max(sample.size, 1)


def _payload(packed: bytes, labels: LabelTable, shown: int, detailed: int, limit: int | None) -> Payload:
    return Payload(base64.b64encode(packed).decode(), len(labels), shown, detailed, limit)


def _pack(value: object) -> bytes:
    return gzip.compress(msgspec.json.encode(value), compresslevel=7, mtime=0)


def _even_sample(labels: LabelTable, count: int) -> IntArray:
    """`count` places, drawn by a hash of the id, in order: the same for the same data."""
    keys = np.array([zlib.crc32(e.id.encode()) for e in labels.examples], dtype=np.int64)
    return np.sort(np.argsort(keys, kind="stable")[:count])


def _columns(labels: LabelTable, places: IntArray, plan: _Plan) -> dict[str, object]:
    rows = [int(i) for i in places]
    examples = [labels.examples[i] for i in rows]
    columns = (labels.answers, *(annotator.answers for annotator in labels.answered_by))
    answers = sorted({answer for column in columns for answer in column if answer is not None})
    code = {a: i for i, a in enumerate(answers)}
    reasons, categories = sorted(set(labels.reasons)), sorted({e.category or "" for e in examples})
    reason_place = {name: i for i, name in enumerate(reasons)}
    place_of = {name: i for i, name in enumerate(categories)}
    return {
        "places": rows if len(rows) < len(labels) else None,
        "ids": [_cut(e.id, plan.id_limit, "") for e in examples],
        "questions": [_cut(e.question, plan.question_limit, "…") for e in examples],
        "values": answers,
        "answers": _codes([labels.answers[i] for i in rows], code),
        "confidences": _rounded(labels.confidences[places], 10_000),
        "kept": _digits(labels.kept[places].astype(int).tolist()),
        "reasonNames": reasons,
        "reasons": _digits([reason_place[labels.reasons[i]] for i in rows]),
        "categoryNames": categories if len(categories) > 1 else [],
        "categories": _digits([place_of[e.category or ""] for e in examples]),
        "gold": _gold(labels, rows) if labels.gold else None,
        "annotators": [_annotator(a, rows, places, code, a is labels.justification) for a in labels.answered_by],
        "threshold": labels.threshold,
    }


def _annotator(
    annotator: AnnotatorAnswers, rows: Sequence[int], places: IntArray, code: dict[str, int], justifies: bool
) -> dict[str, object]:
    return {
        "id": annotator.id,
        "justifies": justifies,
        "answers": _codes([annotator.answers[i] for i in rows], code),
        "confidences": _rounded(annotator.confidences[places], 100),
    }


def _gold(labels: LabelTable, rows: Sequence[int]) -> dict[str, object]:
    known = [labels.gold.get(labels.examples[i].id) for i in rows]
    names = sorted({g for g in known if g is not None})
    code = {g: i for i, g in enumerate(names)}
    right = [
        -1 if g is None or labels.answers[i] is None else int(same_answer(labels.answers[i], g))
        for i, g in zip(rows, known, strict=True)
    ]
    return {"names": names, "codes": _codes(known, code), "right": _digits(right)}


def _details(labels: LabelTable, places: IntArray) -> dict[str, object]:
    rows = [int(i) for i in places]
    options = [list(labels.examples[i].options) for i in rows]
    return {
        "places": rows,
        "ids": [labels.examples[i].id for i in rows],
        "questions": [labels.examples[i].question for i in rows],
        "options": options if any(options) else [],
        "texts": [[v.texts[i] for i in rows] for v in labels.answered_by],
    }


def _codes(values: Sequence[str | None], code: dict[str, int]) -> dict[str, object]:
    return _digits([-1 if v is None else code[v] for v in values])


def _rounded(values: FloatArray, scale: int) -> dict[str, object]:
    return _digits([-1 if v != v else round(v * scale) for v in values.tolist()])


def _digits(values: Sequence[int]) -> dict[str, object]:
    """Whole numbers from -1 up as text: one character a digit in base 90, all high digits before all low ones.

    It packs a third smaller than a JSON list, and the page unpacks it in a millisecond.
    """
    width, rest = 1, max(values, default=0) + 1
    while rest >= len(_DIGITS):
        width, rest = width + 1, rest // len(_DIGITS)
    shifted = np.array(values, dtype=np.int64) + 1
    planes = [shifted // len(_DIGITS) ** place % len(_DIGITS) for place in reversed(range(width))]
    alphabet = np.array(list(_DIGITS))
    return {"width": width, "text": "".join("".join(alphabet[plane].tolist()) for plane in planes)}


def _cut(text: str, limit: int | None, mark: str) -> str:
    return text if limit is None or len(text) <= limit else text[:limit] + mark


_MAX_BYTES = 3_950_000
"""The page's size; mail and chat clients carry files up to 4 MB almost everywhere."""


def report(run: str | Path | RunResult, out: str | Path | None = None) -> Path:
    """Write one HTML file with the proof, every label, the cost and the config of a run, finished or not.

    Parameters
    ----------
    run : path or RunResult
        The run, or its folder.
    out : path, optional
        Where to write it; default: `report.html` in the run's folder.

    Returns
    -------
    Path
        The file: one page that needs no network, 4 MB at most.

    Raises
    ------
    RunFolderError
        The folder is no run, or the file cannot be written.
    MissingExtraError
        matplotlib is not installed; the message has the command.

    Examples
    --------
    >>> result = semievol_api.run("semievol.toml")
    >>> semievol_api.report(result).name
    'report.html'
    """
    folder = run.folder if isinstance(run, RunResult) else Path(run)
    return write_report(folder, None if out is None else Path(out))


def write_report(run_folder: Path, out: Path | None = None) -> Path:
    """Write the report of a run, finished or not, and return its path (default: `report.html` in the run folder).

    Raises:
        RunFolderError: the folder is no run, or the file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    path = out or run_folder / "report.html"
    page = render_report(read_report_data(run_folder))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.draft")
        draft.write_text(page, "utf-8")
        draft.replace(path)
    except OSError as error:
        raise RunFolderError(
            f"The report cannot be written to {str(path)!r}: {error.strerror}. Name another place with --out."
        ) from None
    return path


def render_report(data: ReportData, max_bytes: int = _MAX_BYTES) -> str:
    """The page's text, at most `max_bytes` long in UTF-8."""
    try:
        from semievol_api.report.figures import draw_figures
    except ModuleNotFoundError:
        raise MissingExtraError("matplotlib", "report", "The report") from None
    drawn = draw_figures(data)
    shell = _render(data, drawn, Payload("", 0, 0, 0, None))
    labels = pack_labels(data.labels, max_bytes - len(shell.encode()) - 2_000)
    return _render(data, drawn, labels)


def templates(*, html: bool = True) -> Environment:
    """The report's templates: values are escaped in HTML, missing ones are an error."""
    made = Environment(
        loader=PackageLoader("semievol_api.report"),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(percent=percent, signed=signed, seconds=seconds, thousands=thousands)
    return made


def source(name: str) -> Markup:
    """A style or script of our own, to stand in a page as it is."""
    return Markup((Path(__file__).parent / "templates" / name).read_text("utf-8"))


def script_hash(script: str) -> str:
    """What a content policy names to allow exactly this script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _render(data: ReportData, drawn: object, labels: Payload) -> str:
    script = source("theme.js") + source("browser_rows.js") + source("browser.js")
    return (
        templates()
        .get_template("report.html.j2")
        .render(
            data=data,
            figures=drawn,
            labels=labels,
            style=source("page.css") + source("report.css"),
            script=script,
            script_hash=script_hash(script),
        )
    )
