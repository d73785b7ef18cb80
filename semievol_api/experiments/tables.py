"""An experiment's summary as Markdown and LaTeX, the paper's figures beside ours where the task is the same.

Knows nothing of how the figures were made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from semievol_api.config import read_toml
from semievol_api.evaluation import Interval
from semievol_api.experiments.grid import Experiment
from semievol_api.experiments.summary import ArmSummary

PUBLISHED = Path(__file__).parent / "published.toml"
NONE = "–"


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of text cells, the first column left, the others right."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def result_table(experiment: Experiment, summary: Sequence[ArmSummary], task: str) -> Grid:
    """Arms by accuracy, gain, what was kept and how false it was."""
    figures: dict[str, float] = read_toml(PUBLISHED).get(task, {})
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
    return Grid((*head, "detectable", "kept", "false %", *published), tuple(rows))


def markdown(table: Grid) -> str:
    """The table in Markdown."""
    lines = [f"| {' | '.join(table.head)} |", f"|---{'|---:' * (len(table.head) - 1)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in table.rows)])


def latex(table: Grid, caption: str) -> str:
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
