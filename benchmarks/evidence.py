"""Answers to the method's questions, from runs on this machine, as docs/evidence.md: `python -m benchmarks.evidence`.

Three experiments of examples/: ablations, label scarcity, and cost at 1 and 2 threads. Killed, it goes on; run again,
it only writes. `--quick` runs tiny sizes and prints. Knows nothing of how an arm is run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from semievol_api.cli.demo import run_grid
from semievol_api.evaluation import BootstrapSettings, Interval
from semievol_api.experiments.grid import cell_name
from semievol_api.experiments.results import ArmSummary, Results, compare_arms
from semievol_api.experiments.runner import DoneCell
from semievol_api.report.read_run import read_report_data

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
FULL, SFT, EQUAL_STEPS = "SemiEvol, paper", "SFT", "SFT, equal steps"
VOTE = "SemiEvol, neighbours' vote"
NOT_YET = "Not run yet."
COST_ARMS = {"SFT": 0, FULL: 0, "SemiEvol, calibrated": 0}
PARTS = (
    ("clean, split, retrieve", ("prepare", "split", "retrieve", "probe")),
    ("warm-up training", ("warm_up", "jobs/warm_up")),
    ("collaborate", ("collaborate",)),
    ("justify", ("justify",)),
    ("select", ("select",)),
    ("final training", ("evolve", "jobs/semievol")),
    ("SFT training (the baseline's)", ("sft", "jobs/sft")),
    ("evaluation of all models", ("evaluate", "gate", "verdict")),
)


@dataclass(frozen=True)
class Cost:
    """One part of a run: wall seconds, CPU seconds, tokens read, written and trained on."""

    wall_s: float
    cpu_s: float
    tokens: int


def main() -> None:
    """Run what is missing, and write the page after every experiment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/evidence.md")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one seed; prints and writes nothing")
    chosen = parser.parse_args()
    text = ""
    for found in experiments(chosen.folder, quick=chosen.quick):
        text = page(found)
        if not chosen.quick:
            chosen.out.write_text(text, "utf-8")
    print(text if chosen.quick else f"{chosen.out} is written")


def experiments(folder: Path, *, quick: bool) -> Iterator[dict[str, Results]]:
    """What has been found so far, after every experiment; the page's parts by name."""
    found: dict[str, Results] = {}
    for name, file, place, threads in (
        ("ablations", "ablations.toml", "experiments", 1),
        ("scarcity", "label_scarcity.toml", "experiments", 1),
        ("cost at 1 thread", "cost.toml", "cost-1", 1),
        ("cost at 2 threads", "cost.toml", "cost-2", 2),
    ):
        found[name] = run_grid(EXAMPLES / file, print, quick=quick, folder=folder / place, threads=threads)
        yield found


def page(found: Mapping[str, Results]) -> str:
    """The whole page, as far as the experiments have come."""
    ablations, scarcity = found["ablations"], found.get("scarcity")
    short = [
        *propagation(ablations),
        *([labels(scarcity)] if scarcity else []),
        *annotators(ablations),
        the_rest(ablations),
    ]
    costs = {name.removeprefix("cost at "): results for name, results in found.items() if name.startswith("cost")}
    parts = [
        "# Evidence",
        "Made by `python -m benchmarks.evidence`; nothing here is written by hand. " + setting(ablations),
        "## In short",
        "\n".join(f"- {line}" for line in short),
        "## Ablations",
        "`semievol experiment examples/ablations.toml`",
        ablations.text.strip(),
        spent(ablations),
        "The paper has no figures for this task; its own ablations are in `semievol_api/experiments/published.toml`, "
        "and stand beside ours where a config names one of its tasks.",
        "## How many labels does it take?",
        "`semievol experiment examples/label_scarcity.toml`",
        f"{scarcity.text.strip()}\n\n{spent(scarcity)}" if scarcity else NOT_YET,
        "## What it costs",
        cost_section(costs) if costs else NOT_YET,
    ]
    return "\n\n".join(parts) + "\n"


def setting(results: Results) -> str:
    """What was measured, on what."""
    row = results.done[0].row
    return (
        f"The demo's model (2.5 million parameters) and task: {row.n_test} test questions, 100 labelled and 600 "
        f"unlabelled ones, which every seed draws anew. A model this small says how the method's parts work together "
        f"and what they cost, not what they bring to a large one. Gains are in points; an interval that contains 0 "
        f"shows nothing. Measured on {os.cpu_count()} CPU cores, Python {platform.python_version()}."
    )


def propagation(results: Results) -> list[str]:
    """Which propagation drives the gain?"""
    weight = versus(results, FULL, "− in-weight")
    context = versus(results, FULL, "− in-context")
    lost = {"in-weight propagation": weight, "in-context propagation": context}
    proven = {name: gain for name, gain in lost.items() if gain.low > 0}
    told = "; ".join(f"without {name} {words(Interval(estimate=-g.estimate, low=-g.high, high=-g.low, n=g.n))}"
                     for name, g in lost.items())  # fmt: skip
    if proven:
        most = max(proven, key=lambda name: proven[name].estimate)
        verdict = f"**Which propagation drives the gain?** {most[0].upper()}{most[1:]}"
        other = "; the other's part is not shown" if len(proven) == 1 else "; both parts are shown"
        return [f"{verdict}{other}: against the full method {told}.", full_gain(results)]
    return [
        f"**Which propagation drives the gain?** Neither can be told from chance here: against the full method {told}.",
        full_gain(results),
    ]


def full_gain(results: Results) -> str:
    """Is there a gain at all?"""
    over_sft, over_steps = versus(results, FULL, SFT), versus(results, FULL, EQUAL_STEPS)
    few_shot = versus(results, FULL, "RAG-faiss, 3 shots")
    verdict = "shown" if over_sft.low > 0 else "harm" if over_sft.high < 0 else "no effect shown"
    return (
        f"**Is there a gain at all?** {FULL} − SFT: {words(over_sft)} ({verdict}); − SFT with as many steps: "
        f"{words(over_steps)}; − three retrieved shots without any training: {words(few_shot)}. The recipe chosen on "
        f"development questions, the neighbours' vote, − SFT: {words(versus(results, VOTE, SFT))}."
    )


def labels(results: Results) -> str:
    """The smallest number of labels whose gain excludes 0, over SFT and over as many steps of it."""
    gains = [arm for arm in results.summary if arm.arm == FULL and arm.gain is not None]
    over_sft = {str(arm.value): arm.gain for arm in gains if arm.gain is not None}
    over_steps = {str(arm.value): _at(results, arm.value, FULL, EQUAL_STEPS) for arm in gains}
    return (
        f"**The smallest of {_listed(gains)} labels whose gain over SFT excludes 0?** {_first(over_sft)}. "
        f"{_told(over_sft)}. Few labels also mean few steps of SFT; over SFT with as many steps as SemiEvol's: "
        f"{_first(over_steps)}. {_told(over_steps)}."
    )


def _at(results: Results, value: object, ours: str, theirs: str) -> Interval:
    cells = [cell for cell in results.done if cell.row.value == value]
    return compare_arms(_of(cells, ours), _of(cells, theirs), BootstrapSettings())


def _first(gains: Mapping[str, Interval]) -> str:
    return next((value for value, gain in gains.items() if gain.low > 0), "None of them")


def _told(gains: Mapping[str, Interval]) -> str:
    return ", ".join(f"{value}: {words(gain)}" for value, gain in gains.items())


def annotators(results: Results) -> list[str]:
    """One annotator against four."""
    paper = versus(results, FULL, "− collaboration (one annotator)")
    calibrated = versus(results, "SemiEvol, calibrated", "SemiEvol, calibrated, one annotator")
    verdict = "Four are better" if paper.low > 0 else "One is better" if paper.high < 0 else "No difference is shown"
    return [
        f"**One annotator or four?** {verdict}: four − one {words(paper)} in `paper` mode, {words(calibrated)} in "
        f"`calibrated` mode. False labels among the kept: {_false(results, FULL)} with four, "
        f"{_false(results, '− collaboration (one annotator)')} with one."
    ]


def the_rest(results: Results) -> str:
    """The full method against each arm that lacks something else."""
    others = {
        "majority vote in place of the justification": "− justification (majority vote)",
        "everything kept": "− selection",
        "as many kept at random": "random selection",
        "`calibrated` mode": "SemiEvol, calibrated",
        "gold labels for the whole pool": "ceiling (gold for the whole pool)",
    }
    told = "; ".join(f"{name} {words(versus(results, FULL, arm))}" for name, arm in others.items())
    return f"**And the rest?** The full method in `paper` mode minus: {told}."


def versus(results: Results, ours: str, theirs: str) -> Interval:
    """The gain of an arm over another, seeds paired."""
    return compare_arms(_of(results.done, ours), _of(results.done, theirs), BootstrapSettings())


def words(gain: Interval | None) -> str:
    """A gain in points with its interval."""
    if gain is None:
        return "–"
    return f"{100 * gain.estimate:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"


def spent(results: Results) -> str:
    """What the whole experiment took, and what was shared."""
    processes = [json.loads(path.read_text("utf-8")) for path in sorted((results.folder / "processes").iterdir())]
    served = [sum(p["served"].get(name, 0) for p in processes) for name in ("create_chat", "create_embedding")]
    jobs = sum(p["served"].get("create_job", 0) for p in processes)
    wall, cpu = sum(p["wall_s"] for p in processes), sum(p["cpu_s"] for p in processes)
    counted = results.counters
    return (
        f"The arms needed {counted.answers_needed:,} answers and paid for {counted.answers_paid:,} "
        f"({counted.answers_repeated} of them twice); they needed {counted.trainings_needed} trainings and bought "
        f"{counted.jobs_paid} jobs ({counted.jobs_repeated} of them twice). It took {wall / 60:.1f} minutes and "
        f"{cpu / 60:.1f} CPU minutes, in {len(processes)} process{'es' if len(processes) > 1 else ''}. The server says "
        f"that it answered {sum(served):,} requests and took {jobs} jobs; the journals hold {counted.requests_paid:,}."
    )


def cost_section(costs: Mapping[str, Results]) -> str:
    """Every part of a run as a multiple of plain SFT's training."""
    sections: list[str] = []
    for threads, results in costs.items():
        found = {arm: costs_of(results, arm) for arm in COST_ARMS}
        unit = found[SFT]["SFT training (the baseline's)"]
        rows = [_cost_row(name, [found[arm].get(name) for arm in COST_ARMS], unit) for name, _ in PARTS]
        totals = [_total(found[arm]) for arm in COST_ARMS]
        rows.append(_cost_row("**all but the evaluation**", totals, unit))
        head = "| | " + " | ".join(f"{arm}: wall | CPU | tokens" for arm in COST_ARMS) + " |"
        rule = "|---" + "|---:" * (3 * len(COST_ARMS)) + "|"
        sections.append(
            f"### {threads}\n\nMultiples of the SFT training ({unit.wall_s:.1f} s, {unit.cpu_s:.1f} CPU s, "
            f"{unit.tokens:,} tokens).\n\n" + "\n".join([head, rule, *rows])
        )
    return (
        "`semievol experiment examples/cost.toml --threads N`: nothing shared, one run each. Tokens are read, written "
        "and trained on; CPU seconds are those of client, server and trainings together; wall time grows with "
        "whatever else the machine does.\n\n" + "\n\n".join(sections)
    )


def costs_of(results: Results, arm: str) -> dict[str, Cost]:
    """The parts of an arm's run."""
    (cell,) = _of(results.done, arm)
    folder = results.folder.parent / "runs" / cell_name(arm, None, cell.row.seed)
    tokens = {s.name: (s.prompt_tokens or 0) + (s.completion_tokens or 0) for s in read_report_data(folder).stages}
    for path in folder.glob("jobs/*-model/model.json"):
        tokens[f"jobs/{path.parent.name.removesuffix('-model')}"] = json.loads(path.read_text())["trained_tokens"] or 0
    found: dict[str, Cost] = {}
    for name, stages in PARTS:
        wall = _sum(cell.stage_seconds, stages)
        if wall:
            found[name] = Cost(wall, _sum(cell.stage_cpu_seconds, stages), round(_sum(tokens, stages)))
    return found


def _sum(values: Mapping[str, float], stages: Sequence[str]) -> float:
    def belongs(name: str) -> bool:
        plain = name.removesuffix("-ticket").removesuffix("-model")
        return plain in stages or plain.partition("/")[0] in stages

    return sum(value for name, value in values.items() if belongs(name))


def _total(parts: Mapping[str, Cost]) -> Cost:
    kept = [cost for name, cost in parts.items() if not name.startswith("evaluation")]
    return Cost(sum(c.wall_s for c in kept), sum(c.cpu_s for c in kept), sum(c.tokens for c in kept))


def _cost_row(name: str, costs: Sequence[Cost | None], unit: Cost) -> str:
    cells = [
        f"{cost.wall_s / unit.wall_s:.2f} | {cost.cpu_s / unit.cpu_s:.2f} | {cost.tokens / unit.tokens:.2f}"
        if cost is not None
        else "– | – | –"
        for cost in costs
    ]
    return f"| {name} | {' | '.join(cells)} |"


def _of(done: Sequence[DoneCell], arm: str) -> list[DoneCell]:
    return [cell for cell in done if cell.row.arm == arm]


def _false(results: Results, arm: str) -> str:
    found = next(a for a in results.summary if a.arm == arm)
    return "–" if found.false_share is None else f"{100 * found.false_share:.1f} %"


def _listed(arms: Sequence[ArmSummary]) -> str:
    return "/".join(str(arm.value) for arm in arms)


if __name__ == "__main__":
    main()
