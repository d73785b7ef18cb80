"""The report's figures as inline SVG whose colours are the page's own CSS variables.

matplotlib draws with stand-in colours that are swapped for `var(--...)`, so one drawing serves light, dark and
print. Nothing is told by colour alone: lines differ in dash and marker, bars in hatch, and every figure carries
its numbers as a table. Knows nothing of runs or of files.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from semievol_api.report.report_data import Confidences, JobCurve, ReportData, percent, signed

_INK, _MUTED, _LINE, _FIRST, _SECOND, _PAPER = "#010203", "#020304", "#030405", "#040506", "#050607", "#060708"
_VARIABLES = {_INK: "ink", _MUTED: "muted", _LINE: "line", _FIRST: "first", _SECOND: "second", _PAPER: "paper"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "semievol",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.parse_math": False,
    "text.color": _INK,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.8,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "hatch.linewidth": 1.0,
    "hatch.color": _PAPER,
}
_MAX_TABLE_ROWS = 40


@dataclass(frozen=True)
class Figure:
    """A drawing, what it shows in one sentence, and its numbers."""

    id: str
    title: str
    description: str
    svg: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def draw_figures(data: ReportData) -> dict[str, Figure]:
    """Every figure that the run has numbers for, by id."""
    with mpl.rc_context():
        mpl.rcParams.update(_STYLE)
        made = [_accuracy(data), _gains(data), _precision_coverage(data), _categories(data)]
        for place, confidences in enumerate(data.confidences):
            made += [_histogram(confidences, place), _reliability(confidences, place)]
        made += [_learning(data, metric) for metric in sorted({c.metric for c in data.job_curves})]
    return {figure.id: figure for figure in made if figure is not None}


def _accuracy(data: ReportData) -> Figure | None:
    models = [m for m in data.models if m.accuracy == m.accuracy]
    if not models:
        return None
    canvas, axes = _axes(6.4, 0.9 + 0.42 * len(models))
    bars = [_Bar(m.label, 100 * m.accuracy, 100 * m.low, 100 * m.high, percent(m.accuracy)) for m in models]
    _intervals(axes, bars, _FIRST, "o")
    axes.set_xlabel(f"accuracy on {data.n_test:,} test questions, % (bar: 95 % interval)")
    best = max(models, key=lambda m: m.accuracy)
    return Figure(
        "accuracy",
        "Accuracy of every model",
        f"Accuracy with 95 % intervals of {len(models)} models; "
        f"the highest is {best.label} at {percent(best.accuracy)}.",
        _svg(canvas, "accuracy"),
        ("model", "accuracy", "95 % interval"),
        [(m.label, percent(m.accuracy), f"{percent(m.low)} to {percent(m.high)}") for m in models],
    )


def _gains(data: ReportData) -> Figure | None:
    gains = data.differences
    if not gains:
        return None
    canvas, axes = _axes(6.4, 0.9 + 0.42 * len(gains))
    axes.axvline(0, color=_INK, linewidth=1)
    names = [f"{d.of_label} − {d.against_label}" for d in gains]
    bars = [_Bar(name, d.points, d.low, d.high, signed(d.points)) for name, d in zip(names, gains, strict=True)]
    _intervals(axes, bars, _SECOND, "D")
    axes.set_xlabel("difference, percentage points (bar: paired 95 % interval)")
    sure = sum(d.low > 0 or d.high < 0 for d in gains)
    return Figure(
        "gains",
        "Paired differences",
        f"{sure} of {len(gains)} paired differences have a 95 % interval that excludes 0.",
        _svg(canvas, "gains"),
        ("difference", "points", "95 % interval", "McNemar p", "smallest detectable"),
        [
            (
                name,
                signed(d.points),
                f"{signed(d.low)} to {signed(d.high)}",
                f"{d.mcnemar_p:.3g}",
                f"{d.smallest_detectable:.1f}",
            )
            for name, d in zip(names, gains, strict=True)
        ],
    )


@dataclass(frozen=True)
class _Bar:
    """An estimate with its interval, and the figure that stands above it."""

    name: str
    estimate: float
    low: float
    high: float
    figure: str


def _intervals(axes: Axes, bars: Sequence[_Bar], color: str, marker: str) -> None:
    """A row for each estimate, the first on top."""
    for place, bar in enumerate(bars):
        axes.plot([bar.low, bar.high], [place, place], color=color, linewidth=2, solid_capstyle="butt")
        axes.plot([bar.estimate], [place], marker, color=color, markersize=7)
        axes.annotate(bar.figure, (bar.estimate, place), (0, 8), textcoords="offset points", ha="center")
    axes.set_yticks(range(len(bars)), [bar.name for bar in bars])
    axes.set_ylim(len(bars) - 0.5, -0.7)
    axes.grid(visible=False, axis="y")


def _precision_coverage(data: ReportData) -> Figure | None:
    curve = data.precision_coverage
    if curve is None or not curve.coverage.size:
        return None
    canvas, axes = _axes(6.4, 3.6)
    axes.plot(
        100 * curve.coverage, 100 * curve.precision, color=_FIRST, linewidth=2, label="precision at this coverage"
    )
    cut = ""
    if data.chosen_cut is not None:
        coverage, precision = data.chosen_cut
        axes.axvline(100 * coverage, color=_SECOND, linestyle="--", linewidth=1.5, label="chosen cut")
        axes.plot([100 * coverage], [100 * precision], "D", color=_SECOND, markersize=7)
        cut = f" The chosen cut keeps {percent(coverage)} with a precision of {percent(precision)}."
    axes.set_xlabel(f"coverage: share of {len(data.labels):,} unlabelled rows that is kept, %")
    axes.set_ylabel("right labels among the kept, %")
    axes.set_xlim(0, 100)
    axes.legend()
    thin = slice(None, None, max(1, curve.coverage.size // 20))
    rows = zip(curve.coverage[thin], curve.precision[thin], curve.threshold[thin], strict=True)
    return Figure(
        "precision-coverage",
        "Precision against coverage",
        f"Precision of the pseudo-labels as more of them are kept, most confident first.{cut}",
        _svg(canvas, "pc"),
        ("coverage", "precision", "confidence at the cut"),
        [(percent(c), percent(p), f"{s:.3f}") for c, p, s in rows],
    )


def _histogram(confidences: Confidences, place: int) -> Figure:
    h = confidences.histogram
    canvas, axes = _axes(5.2, 3.2)
    width = float(h.edges[1] - h.edges[0])
    axes.bar(h.edges[:-1], h.right, width, align="edge", color=_FIRST, edgecolor=_PAPER, label="right")
    axes.bar(
        h.edges[:-1],
        h.wrong,
        width,
        bottom=h.right,
        align="edge",
        color=_SECOND,
        edgecolor=_PAPER,
        hatch="///",
        label="wrong",
    )
    axes.set_xlabel("confidence, exp(−mean NLL)")
    axes.set_ylabel("answers")
    axes.legend()
    return Figure(
        f"scores-{place}",
        f"Scores by correctness: {confidences.subject}",
        f"Confidence of right and wrong answers. A right answer is the more confident one with probability "
        f"{confidences.auroc:.2f} (AUROC; 0.5 is chance).",
        _svg(canvas, f"h{place}"),
        ("confidence from", "right", "wrong"),
        [
            (f"{e:.3f}", f"{int(r):,}", f"{int(w):,}")
            for e, r, w in zip(h.edges[:-1], h.right, h.wrong, strict=True)
            if r or w
        ],
    )


def _reliability(confidences: Confidences, place: int) -> Figure:
    r = confidences.reliability
    canvas, axes = _axes(5.2, 3.2)
    low = float(min(r.confidence.min(), r.low.min(), 0.98)) if r.count.size else 0.0
    axes.plot([100 * low, 100], [100 * low, 100], color=_MUTED, linestyle=":", label="perfectly calibrated")
    errors = [100 * (r.accuracy - r.low), 100 * (r.high - r.accuracy)]
    axes.errorbar(
        100 * r.confidence, 100 * r.accuracy, errors, color=_FIRST, fmt="o-", linewidth=1.5, markersize=5, label="bins"
    )
    axes.set_xlabel("mean confidence of the bin, %")
    axes.set_ylabel("accuracy of the bin, %")
    axes.legend()
    return Figure(
        f"reliability-{place}",
        f"Reliability: {confidences.subject}",
        f"Accuracy against confidence in bins of equal size; the expected calibration error is "
        f"{percent(r.expected_error)}. Below the dotted line the model is over-confident.",
        _svg(canvas, f"r{place}"),
        ("mean confidence", "accuracy", "95 % interval", "answers"),
        [
            (percent(c), percent(a), f"{percent(lo)} to {percent(hi)}", f"{int(n):,}")
            for c, a, lo, hi, n in zip(r.confidence, r.accuracy, r.low, r.high, r.count, strict=True)
        ],
    )


def _categories(data: ReportData) -> Figure | None:
    found = data.categories
    if not found or data.before_after is None:
        return None
    before, after = data.before_after
    canvas, axes = _axes(6.4, 1.2 + 0.34 * len(found))
    for place, c in enumerate(found):
        axes.plot([100 * c.before, 100 * c.after], [place, place], color=_MUTED, linewidth=1.5)
    places = range(len(found))
    axes.plot([100 * c.before for c in found], places, "o", color=_FIRST, markerfacecolor=_PAPER, label=before)
    axes.plot([100 * c.after for c in found], places, "D", color=_SECOND, label=after)
    axes.set_yticks(places, [f"{_short(c.name)} (n = {c.n:,})" for c in found])
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlabel("accuracy, %")
    axes.grid(visible=False, axis="y")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    worse = sum(c.after < c.before for c in found)
    return Figure(
        "categories",
        "Change by category",
        f"Accuracy by category, {before} (open circle) and {after} (filled diamond): {worse} of {len(found)} "
        f"categories got worse.",
        _svg(canvas, "cat"),
        ("category", "n", before, after, "change, points"),
        [(c.name, f"{c.n:,}", percent(c.before), percent(c.after), signed(100 * (c.after - c.before))) for c in found],
    )


def _learning(data: ReportData, metric: str) -> Figure | None:
    curves: list[JobCurve] = [c for c in data.job_curves if c.metric == metric]
    canvas, axes = _axes(5.2, 3.0)
    dashes = ("-", "--", ":", "-.")
    for place, c in enumerate(curves):
        color = (_FIRST, _SECOND, _INK)[place % 3]
        axes.plot(c.steps, c.values, color=color, linestyle=dashes[place % 4], linewidth=1.8, label=c.job)
    axes.set_xlabel("training step")
    axes.set_ylabel(metric.replace("_", " "))
    axes.legend()
    return Figure(
        f"learning-{re.sub(r'[^a-z0-9]+', '-', metric.lower())}",
        f"Learning curve: {metric.replace('_', ' ')}",
        "; ".join(f"{c.job}: {c.values[0]:.3g} at first, {c.values[-1]:.3g} at the end" for c in curves),
        _svg(canvas, f"l{metric}"),
        ("job", "step", metric),
        [
            (c.job, f"{s:g}", f"{v:.4g}")
            for c in curves
            for s, v in list(zip(c.steps, c.values, strict=True))[:: max(1, len(c.steps) // 20)]
        ][:_MAX_TABLE_ROWS],
    )


def _axes(width: float, height: float) -> tuple[Canvas, Axes]:
    canvas = Canvas(figsize=(width, height), layout="constrained")
    canvas.patch.set_alpha(0)
    return canvas, canvas.subplots()


def _svg(canvas: Canvas, prefix: str) -> str:
    """The drawing without a prolog, its ids made unique in the page, its colours the page's variables."""
    buffer = io.StringIO()
    canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', text, count=1)
    prefix = re.sub(r"[^a-z0-9]+", "-", prefix.lower())
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(xlink:href|href)="#', f'href="#{prefix}-', text)
    text = text.replace("url(#", f"url(#{prefix}-")
    text = re.sub(r"font: ([\d.]+)px 'DejaVu Sans'", r"font-size: \1px", text)
    text = text.replace("stroke: #000000", "stroke: var(--muted)")
    for color, name in _VARIABLES.items():
        text = text.replace(color, f"var(--{name})")
    return re.sub(r"\n\s*", "\n", text)


def _short(text: str) -> str:
    return text if len(text) <= 32 else f"{text[:31]}…"
