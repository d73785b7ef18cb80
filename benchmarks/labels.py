"""Can the confidences be trusted? Evidence of a real run against the embedded server, held against hidden gold.

    python -m benchmarks.labels --json               the demo's task
    python -m benchmarks.labels --fpb FOLDER         and Financial PhraseBank, from labeled.csv and unlabeled.csv there
    python -m benchmarks.labels --quick              60 unlabelled questions, 50 splits
    python -m benchmarks.labels --seed 1             other labels, another warm model, other questions

100 labels teach the warm model; models and neighbours answer 600 questions whose gold the run never sees. Then: does
`option_prob`, as selection reads it, tell right answers from wrong ones as well as `mean_nll` of the very same answers
(paired bootstrap, for one comparison and for all annotators together), over all answers and among equal ones? And
which share of false labels does a budget of alpha buy, over random splits of those questions into calibration items
and pool? Knows nothing of how a run works.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import numpy as np

import semievol_api.demo
from semievol_api.config.settings import load_config
from semievol_api.data import read_data
from semievol_api.demo.embedded_server import serving
from semievol_api.evaluation.confidence import auroc, auroc_difference
from semievol_api.evaluation.statistics import BootstrapSettings
from semievol_api.records import Evidence
from semievol_api.selection import Calibration, at_label_shares, fdr
from semievol_api.selection.values import BoolArray, FloatArray, IntArray
from semievol_api.session import run_async, run_blocking
from semievol_api.store.artifacts import EvidenceTable, Selection
from semievol_api.store.run_store import load_artifact
from semievol_api.store.verdict import PooledSummary
from semievol_api.tasks import load_task
from semievol_api.tasks.kind import LETTERS

DEMO = Path(semievol_api.demo.__file__).parent
ALPHAS = (0.1, 0.2)
CALIBRATION_SIZES = (50, 100, 200)
RESAMPLES = 4_000
TOGETHER = "all together"
"""Every annotator's answers in one ranking."""
CREW: tuple[Mapping[str, object], ...] = (
    {"id": "warm-0shot", "model": "warm", "estimator": "option_prob", "temperature": 0.0},
    {"id": "warm-3shot", "model": "warm", "shots": 3, "estimator": "option_prob", "temperature": 0.0},
    {"id": "base-3shot", "model": "base", "shots": 3, "estimator": "option_prob", "temperature": 0.0},
    {"id": "neighbours", "model": "neighbour_vote"},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Confidence:
    """How well two confidences about the same answers tell right from wrong: AUROC, and its paired difference.

    `low` to `high` is the 95 % interval of this difference alone, `family_low` to `family_high` that of all annotators'
    together (Bonferroni). `as_read` is `option_prob` without label factors. The last two are among pairs of questions
    that got the same answer.
    """

    task: str
    annotator: str
    items: int
    accuracy: float
    option_prob: float
    as_read: float
    mean_nll: float
    difference: float
    low: float
    high: float
    family_low: float
    family_high: float
    option_prob_within: float
    mean_nll_within: float

    @property
    def no_worse(self) -> bool:
        """Whether the data leave it open that `option_prob` is at least as good."""
        return self.high >= 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Realised:
    """What a false-label budget bought over random splits; shares are of false labels among the kept, 0 if none.

    `p5` and `p95` bound nine in ten single runs, `standard_error` is of the mean over splits.
    """

    task: str
    alpha: float
    n_calibration: int
    splits: int
    error: float
    false_share: float
    standard_error: float
    p5: float
    p95: float
    false_share_if_any: float | None
    coverage: float
    empty: float


@dataclass(frozen=True, eq=False)
class Answers:
    """One annotator's answers: float64 (m,) `option_prob` with and without label factors and `-mean_nll`, of each
    answer; bool (m,) whether it is right; the answers and the questions as int64 (m,)."""

    option_prob: FloatArray
    as_read: FloatArray
    mean_nll: FloatArray
    right: BoolArray
    answer: IntArray
    question: IntArray


@dataclass(frozen=True, eq=False)
class Judged:
    """A run's answers beside their gold: those of each annotator, and the crew's pool."""

    annotators: Mapping[str, Answers]
    score: FloatArray
    wrong: BoolArray


def judged_run(task: Mapping[str, object], folder: Path, url: str, unlabeled: int, seed: int = 0) -> Judged:
    """Annotate a task's pool with the demo's model, and open the gold afterwards."""
    changes: dict[str, object] = {
        "run.mode": "calibrated",
        "run.folder": str(folder),
        "run.seed": seed,
        "run.ceiling": False,
        "data.test": None,
        "data.max_labeled": 100,
        "data.max_unlabeled": unlabeled,
        "providers.server.base_url": url,
        "providers.server.option_read": "off",  # chat answers carry both confidences
        "split": {"calibration": 0, "development": 0},
        "justify.on": "never",
        "select": {"rule": "percentile", "share": 0.0, "score": "pooled"},
        "annotators": list(CREW),
        **task,
    }
    config = load_config(DEMO / "demo.toml", changes)
    run_blocking(run_async(config, accept_change=True))
    said = load_artifact(folder, "collaborate", EvidenceTable)
    chosen = load_artifact(folder, "select", Selection)
    assert said is not None and chosen is not None
    return _judged(said, chosen, read_data(config.data, load_task(config.data.task), seed).gold)


def _judged(said: EvidenceTable, chosen: Selection, gold: Mapping[str, str]) -> Judged:
    factors = (isinstance(chosen.summary, PooledSummary) and chosen.summary.label_factors) or {}
    rows: dict[str, list[Evidence]] = {}
    for row in said.rows():
        if row.answer is not None and row.option_probs and row.mean_nll is not None and row.example_id in gold:
            rows.setdefault(row.annotator_id, []).append(row)
    number = {name: place for place, name in enumerate(sorted(gold))}
    annotators = {name: _answers(own, gold, number, factors.get(name, {})) for name, own in sorted(rows.items())}
    scores = chosen.scores
    table = scores.whole().to_pylist()
    wrong = [row["answer"] != gold[row["example_id"]] for row in table]
    score = np.array([np.nan if row["score"] is None else row["score"] for row in table])
    return Judged(annotators, score, np.array(wrong, dtype=np.bool_))


def _answers(
    rows: Sequence[Evidence],
    gold: Mapping[str, str],
    number: Mapping[str, int],
    factors: Mapping[str, Sequence[float]],
) -> Answers:
    """The confidence in the answer that was given: label factors may prefer another one."""
    answers = [LETTERS.index(row.answer or "") for row in rows]
    as_read, weighted = list[float](), list[float]()
    for row, answer in zip(rows, answers, strict=True):
        probs = np.array([row.option_probs])
        weights = np.array(factors.get(str(probs.shape[1]), np.ones(probs.shape[1])))
        as_read.append(float(probs[0, answer]))
        weighted.append(float(at_label_shares(probs, weights)[0, answer]) if factors else as_read[-1])
    return Answers(
        option_prob=np.array(weighted),
        as_read=np.array(as_read),
        mean_nll=np.array([-(row.mean_nll or 0.0) for row in rows]),
        right=np.array([row.answer == gold[row.example_id] for row in rows], dtype=np.bool_),
        answer=np.array(answers, dtype=np.int64),
        question=np.array([number[row.example_id] for row in rows], dtype=np.int64),
    )


def confidences(task: str, judged: Judged, family: int = 1) -> list[Confidence]:
    """Both confidences of every annotator with right and wrong answers, and of all their answers in one ranking.

    `family` is the number of comparisons that are made in all.
    """
    compared = {name: one for name, one in judged.annotators.items() if len(np.unique(one.right)) == 2}
    if len(compared) > 1:
        columns = zip(*(astuple(one) for one in compared.values()), strict=True)
        compared[TOGETHER] = Answers(*(np.concatenate(column) for column in columns))
    return [_confidence(task, name, one, 1 if name == TOGETHER else family) for name, one in compared.items()]


def _confidence(task: str, name: str, said: Answers, family: int) -> Confidence:
    gap, wide = (
        auroc_difference(
            said.option_prob,
            said.mean_nll,
            said.right,
            BootstrapSettings(resamples=RESAMPLES, level=1.0 - 0.05 / comparisons),
            said.question,
        )
        for comparisons in (1, family)
    )
    figures = {
        "accuracy": float(said.right.mean()),
        "option_prob": auroc(said.option_prob, said.right),
        "as_read": auroc(said.as_read, said.right),
        "mean_nll": auroc(said.mean_nll, said.right),
        "difference": gap.estimate,
        "low": gap.low,
        "high": gap.high,
        "family_low": wide.low,
        "family_high": wide.high,
        "option_prob_within": _within(said.option_prob, said),
        "mean_nll_within": _within(said.mean_nll, said),
    }
    rounded = {field: round(value, 4) for field, value in figures.items()}
    return Confidence(task=task, annotator=name, items=said.right.size, **rounded)


def _within(scores: FloatArray, said: Answers) -> float:
    """The AUROC among pairs of a right and a wrong question with the same answer."""
    won = pairs = 0.0
    for answer in np.unique(said.answer):
        same = said.answer == answer
        right = said.right[same]
        here = float(np.count_nonzero(right) * np.count_nonzero(~right))
        if here:
            won, pairs = won + here * auroc(scores[same], right), pairs + here
    return won / pairs if pairs else float("nan")


def realised(task: str, judged: Judged, splits: int) -> list[Realised]:
    """The `fdr` rule on random splits of the judged items into calibration items and pool."""
    rng = np.random.default_rng(0)
    rows: list[Realised] = []
    for n in CALIBRATION_SIZES:
        if 2 * n > judged.wrong.size:
            continue
        orders = [rng.permutation(judged.wrong.size) for _ in range(splits)]
        for alpha in ALPHAS:
            found = np.array([_one_split(judged, order, n, alpha) for order in orders])
            share, coverage = found.T
            some = coverage > 0
            rows.append(
                Realised(
                    task=task,
                    alpha=alpha,
                    n_calibration=n,
                    splits=splits,
                    error=round(float(judged.wrong.mean()), 4),
                    false_share=round(float(share.mean()), 4),
                    standard_error=round(float(share.std(ddof=1) / np.sqrt(splits)), 5),
                    p5=round(float(np.quantile(share, 0.05)), 4),
                    p95=round(float(np.quantile(share, 0.95)), 4),
                    false_share_if_any=round(float(share[some].mean()), 4) if some.any() else None,
                    coverage=round(float(coverage.mean()), 4),
                    empty=round(float(1 - some.mean()), 4),
                )
            )
    return rows


def _one_split(judged: Judged, order: IntArray, n: int, alpha: float) -> tuple[float, float]:
    fold, rest = order[:n], order[n:]
    selected = fdr(judged.score[rest], Calibration(scores=judged.score[fold], wrong=judged.wrong[fold]), alpha)
    share = float(judged.wrong[rest][selected.kept].mean()) if selected.count else 0.0
    return share, selected.coverage


def broken_promises(found: Sequence[Confidence], shares: Sequence[Realised]) -> list[str]:
    """What these numbers do not keep, in words."""
    broken = [
        f"option_prob of {row.annotator} on {row.task} is worse than mean_nll" for row in found if not row.no_worse
    ]
    return broken + [
        f"{row.task} at alpha {row.alpha} with {row.n_calibration}: {row.false_share:.3f} false labels on average"
        for row in shares
        if row.false_share > row.alpha + 3 * row.standard_error
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, judge and print; with --check the exit code is 1 where a promise is broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.labels", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "semievol-labels")
    parser.add_argument("--fpb", type=Path, default=None, help="a folder with labeled.csv and unlabeled.csv")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    chosen = parser.parse_args(arguments)
    size, splits = (60, 50) if chosen.quick else (600, 500)
    tasks: dict[str, dict[str, object]] = {"demo": {}}
    if chosen.fpb is not None:
        files = {f"data.{name}": str(chosen.fpb.resolve() / f"{name}.csv") for name in ("labeled", "unlabeled")}
        tasks["fpb"] = {"data.task": "fpb", **files}
    found: list[Confidence] = []
    shares: list[Realised] = []
    pooled: dict[str, float] = {}
    with serving(DEMO / "model", "demo-llama", chosen.folder / "server") as url:
        for name, changes in tasks.items():
            folder = chosen.folder / (f"{name}-{size}" + (f"-{chosen.seed}" if chosen.seed else ""))
            judged = judged_run(changes, folder.resolve(), url, size, chosen.seed)
            found += confidences(name, judged, len(tasks) * sum(one["model"] != "neighbour_vote" for one in CREW))
            shares += realised(name, judged, splits)
            pooled[name] = round(auroc(judged.score, ~judged.wrong), 4)
    broken = broken_promises(found, shares)
    if chosen.json:
        rows = {"confidences": [asdict(row) for row in found], "realised": [asdict(row) for row in shares]}
        print(json.dumps({**rows, "pooled": pooled, "broken": broken}, indent=1))
    else:
        _print_tables(found, shares, pooled, broken)
    return 1 if chosen.check and broken else 0


def _print_tables(
    found: Sequence[Confidence], shares: Sequence[Realised], pooled: Mapping[str, float], broken: Sequence[str]
) -> None:
    print("| task | annotator | right | as read | option_prob | mean_nll | difference [95 %] | family | same answer |")
    print("|---|---|---|---|---|---|---|---|---|")
    for one in found:
        print(
            f"| {one.task} | {one.annotator} | {one.accuracy:.1%} | {one.as_read:.3f} | {one.option_prob:.3f} "
            f"| {one.mean_nll:.3f} | {one.difference:+.3f} [{one.low:+.3f}, {one.high:+.3f}] "
            f"| [{one.family_low:+.3f}, {one.family_high:+.3f}] "
            f"| {one.option_prob_within:.3f} : {one.mean_nll_within:.3f} |"
        )
    print("\nThe crew's pooled score: " + ", ".join(f"{name} {value:.3f}" for name, value in pooled.items()))
    print("\n| task | alpha | n_cal | false share | nine in ten runs | if any kept | coverage | empty |")
    print("|---|---|---|---|---|---|---|---|")
    for row in shares:
        print(
            f"| {row.task} | {row.alpha} | {row.n_calibration} | {row.false_share:.3f} | {row.p5:.2f} to {row.p95:.2f} "
            f"| {'-' if row.false_share_if_any is None else f'{row.false_share_if_any:.3f}'} | {row.coverage:.1%} "
            f"| {row.empty:.1%} |"
        )
    print("\n".join(broken) if broken else "Every promise was kept.")


if __name__ == "__main__":
    raise SystemExit(main())
