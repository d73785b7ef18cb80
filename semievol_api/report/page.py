"""One self-contained HTML file: the proof first, then every label.

    path = write_report(Path("runs/demo"))

It opens from disk, asks the network for nothing (its own content policy forbids it) and stays below 4 MB.
Knows nothing of how a run's artifacts are named; `read_run` does.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from semievol_api.errors import MissingExtraError, RunFolderError
from semievol_api.report.browser_data import Payload, pack_labels
from semievol_api.report.read_run import read_report_data
from semievol_api.report.report_data import ReportData

MAX_BYTES = 3_950_000
"""The page's size; mail and chat clients carry files up to 4 MB almost everywhere."""


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


def render_report(data: ReportData, max_bytes: int = MAX_BYTES) -> str:
    """The page's text, at most `max_bytes` long in UTF-8."""
    try:
        from semievol_api.report.figures import figures
    except ModuleNotFoundError:
        raise MissingExtraError("matplotlib", "report", "The report") from None
    drawn = figures(data)
    shell = _render(data, drawn, Payload("", 0, 0, 0, None))
    labels = pack_labels(data.labels, max_bytes - len(shell.encode()) - 2_000)
    return _render(data, drawn, labels)


def templates() -> Environment:
    """The report's templates: values are escaped, missing ones are an error."""
    made = Environment(
        loader=PackageLoader("semievol_api.report"),
        autoescape=True,
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


def percent(share: float | None) -> str:
    """A share as text, such as `12.3 %`."""
    return "–" if share is None or share != share else f"{100 * share:.1f} %"


def signed(points: float) -> str:
    """Percentage points with a sign, such as `+1.2`."""
    return f"{points:+.1f}"


def seconds(value: float) -> str:
    """A duration that a person can read."""
    if value < 90:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def thousands(value: float | None) -> str:
    """A count with separators; a dash for none."""
    return "–" if value is None else f"{value:,.0f}"


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
