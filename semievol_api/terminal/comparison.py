"""What a person sees of two models beside each other: one table of pairs, then each pair's categories and sentence.

Knows nothing of how the figures were made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from semievol_api.comparison import Contest, SideScore, ask_sides, compare_pairs, compare_sides
from semievol_api.config import load_config
from semievol_api.evaluation import Interval
from semievol_api.session import run_blocking
from semievol_api.terminal.bars import Bars, err, table


def contests_of(pairs: Sequence[tuple[str, str]], run_config: Path | None) -> tuple[Contest, ...]:
    """The pairs compared: by what runs answered, or with a config, by asking its models."""
    if run_config is None:
        return compare_pairs(pairs)
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    with Bars(err()) as bars:
        asked = run_blocking(ask_sides(load_config(run_config), names, bars))
    sides = dict(zip(names, asked, strict=True))
    return compare_sides([(sides[ours], sides[theirs]) for ours, theirs in pairs])


def show_contests(console: Console, contests: Sequence[Contest]) -> None:
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


def contests_as_json(contests: Sequence[Contest]) -> list[dict[str, object]]:
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


def _pair(contest: Contest) -> list[str]:
    return [
        f"{contest.ours.name} - {contest.theirs.name}",
        f"{100 * contest.gain.estimate:+.1f}",
        _range(contest.gain, sign="+"),
        f"{contest.test.p_value:.3g}",
        f"{contest.holm_p:.3g}",
        f"{100 * contest.detectable:.1f}",
    ]


def _categories(contest: Contest) -> object:
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
