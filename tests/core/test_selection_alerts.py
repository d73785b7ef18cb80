"""Planted failures raise their alert in at least 95 of 100 seeds; clean worlds raise any in at most 5."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from semievol_api.annotate.estimators import votes
from semievol_api.errors import DataError
from semievol_api.selection.alerts import (
    Alert,
    DriftSettings,
    DriftTest,
    alerts_of_ambiguity,
    alerts_of_drift,
    alerts_of_labels,
    alerts_of_selection,
    ambiguity,
    class_coverage,
    drift_test,
)
from semievol_api.selection.pooling import pool
from semievol_api.selection.rule_fdr import fdr
from semievol_api.selection.values import Calibration

QUICK = DriftSettings(max_rows=150, permutations=199)
K = 4


@dataclass(frozen=True)
class World:
    """How gold and annotators of a simulated task behave."""

    classes: int = K
    skill: float = 0.75
    twins: bool = False
    soft: bool = False
    shift: float = 0.0
    one_class: bool = False
    n_calibration: int = 60
    shares: tuple[float, ...] | None = None


def crew(gold: np.ndarray, world: World, rng: np.random.Generator) -> np.ndarray:
    """Probabilities (items, 4 annotators, classes): sampled answers, or soft ones."""
    n, k = gold.size, world.classes
    twin = (gold + 1 + rng.integers(k - 1, size=n)) % k
    distractor = (gold + 1 + rng.integers(k - 1, size=n)) % k
    mass = np.full((n, k), 1e-9)
    rows = np.arange(n)
    if world.twins:
        mass[rows, gold] += 0.5
        mass[rows, twin] += 0.5
    else:
        ease = rng.beta(4 * world.skill, 4 * (1 - world.skill), size=n) if world.skill else np.zeros(n)
        mass[rows, gold] += ease
        mass[rows, distractor] += 1 - ease
    if world.skill == 0.0 and not world.twins:
        mass = np.full((n, k), 1.0 / k)
    mass /= mass.sum(axis=1, keepdims=True)
    if world.soft:
        noise = np.exp(0.3 * rng.standard_normal((n, 4, k)))
        probs = mass[:, None, :] * noise
        return probs / probs.sum(axis=2, keepdims=True)
    samples = (rng.random((n, 4, 1)) > np.cumsum(mass, axis=1)[:, None, :]).sum(axis=2).clip(0, k - 1)
    return np.stack([votes(samples[:, a : a + 1], np.full(n, k), k) for a in range(4)], axis=1)


def alerts(world: World, seed: int) -> list[Alert]:
    """Everything that a run on this world would be told."""
    rng = np.random.default_rng(seed)
    k, n, m = world.classes, world.n_calibration, 600
    shares = np.array(world.shares or [1 / k] * k)
    gold = rng.choice(k, size=n, p=shares)
    if world.one_class:
        gold[:] = 1
    pool_gold = rng.choice(k, size=m, p=shares)
    sizes, pool_sizes = np.full(n, k), np.full(m, k)
    probs, pool_probs = crew(gold, world, rng), crew(pool_gold, world, rng)
    pooled, cal = pool(pool_probs, pool_sizes), pool(probs, sizes)
    selected = fdr(pooled.score, Calibration(scores=cal.score, wrong=cal.label != gold), 0.2)
    vectors = rng.standard_normal((n + m, 16))
    vectors[n:, :4] += world.shift
    names = [f"class {c}" for c in range(k)]
    return [
        *alerts_of_labels(gold, pooled.label, names),
        *alerts_of_drift(drift_test(vectors[:n], vectors[n:], QUICK)),
        *alerts_of_ambiguity(ambiguity(probs, gold, sizes)),
        *alerts_of_selection(class_coverage(pooled.label, selected.kept, k), names),
    ]


def raised(world: World) -> Counter[str]:
    """In how many of 100 seeds each kind of alert, or any, is raised."""
    count: Counter[str] = Counter()
    for seed in range(100):
        kinds = {alert.kind for alert in alerts(world, seed)}
        count.update(kinds)
        count["any"] += bool(kinds)
    return count


@pytest.mark.parametrize(
    ("world", "kind"),
    [
        (World(one_class=True), "one-class"),
        (World(shift=1.5), "drift"),
        (World(skill=0.0), "uninformative"),
        (World(skill=0.0, classes=3), "uninformative"),
        (World(twins=True), "ambiguous"),
        (World(twins=True, soft=True, classes=5), "ambiguous"),
        (World(twins=True, classes=3), "ambiguous"),
    ],
)
def test_a_planted_failure_is_reported_by_its_name(world: World, kind: str) -> None:
    count = raised(world)
    assert count[kind] >= 95
    if kind == "ambiguous":
        assert count["uninformative"] <= 5
    if kind == "uninformative":
        assert count["ambiguous"] <= 5


@pytest.mark.parametrize(
    "world",
    [
        World(),
        World(soft=True, classes=3),
        World(skill=0.7, n_calibration=100),
        World(shares=(0.6, 0.28, 0.12), classes=3, skill=0.85),
    ],
)
def test_a_clean_world_raises_next_to_nothing(world: World) -> None:
    assert raised(world)["any"] <= 5


def test_one_useless_annotator_does_not_make_a_task_ambiguous() -> None:
    verdicts: Counter[str] = Counter()
    for seed in range(100):
        rng = np.random.default_rng(seed)
        gold = rng.integers(K, size=80)
        probs = crew(gold, World(skill=0.85), rng)
        useless = rng.integers(K, size=(80, 1))
        probs[:, 0] = votes(useless, np.full(80, K), K)
        verdicts[ambiguity(probs, gold, np.full(80, K)).verdict] += 1
    assert verdicts["clear"] >= 95


def test_a_class_that_vanishes_from_the_selection_is_named() -> None:
    labels = np.repeat([0, 1, 2], 100)
    coverage = class_coverage(labels, labels < 2, 3)
    assert coverage.coverage.tolist() == [1.0, 1.0, 0.0]
    assert coverage.total_variation == pytest.approx(1 / 3)
    found = alerts_of_selection(coverage, ["yes", "no", "maybe"])
    assert [alert.kind for alert in found] == ["vanished-class"]
    assert "'maybe'" in found[0].message


def test_a_selection_of_one_class_of_many_is_shifted_too() -> None:
    labels = np.repeat(np.arange(5), 50)
    kinds = [alert.kind for alert in alerts_of_selection(class_coverage(labels, labels == 0, 5), list("abcde"))]
    assert kinds == ["vanished-class", "shifted-classes"]


def test_an_empty_selection_raises_no_alert_about_classes() -> None:
    labels = np.array([0, 1, -1])
    coverage = class_coverage(labels, np.zeros(3, bool), 3)
    assert np.isnan(coverage.coverage[2])
    assert alerts_of_selection(coverage, list("abc")) == ()


def test_a_missing_class_that_the_pool_holds_is_named_and_a_rare_one_is_not() -> None:
    gold = np.repeat([0, 1], 25)
    found = alerts_of_labels(gold, np.repeat([0, 1, 2], 100), ["a", "b", "c"])
    assert [alert.kind for alert in found] == ["missing-class"]
    assert "'c'" in found[0].message
    assert alerts_of_labels(gold, np.r_[np.repeat([0, 1], 100), 2], ["a", "b", "c"]) == ()


def test_few_labels_of_one_class_may_be_luck() -> None:
    assert alerts_of_labels(np.zeros(3, dtype=np.int64), None, ["a", "b"]) == ()
    assert alerts_of_labels(np.array([], dtype=np.int64), None, ["a", "b"]) == ()


def test_confident_errors_are_not_ambiguity() -> None:
    contested = np.tile([0.45, 0.45, 0.1], (40, 1))
    confident = np.tile([0.9, 0.08, 0.02], (60, 1))
    gold = np.r_[np.tile([0, 1], 20), np.tile([0, 0, 0, 1, 1], 12)]
    order = np.array([[0, 1, 2], [1, 2, 0], [2, 0, 1]])[np.arange(100) % 3]
    probs = np.take_along_axis(np.r_[contested, confident], np.argsort(order, axis=1), axis=1)
    gold = np.take_along_axis(order, gold[:, None], axis=1)[:, 0]
    found = ambiguity(probs[:, None, :], gold, np.full(100, 3))
    assert found.contested == pytest.approx(0.4)
    assert found.leader_rate < 0.65
    assert found.verdict == "clear"


def weighed(
    signal: float, shares: tuple[float, ...], n: int, noise: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Gold and soft opinions: what is frequent, some noise that four annotators share, and a little of the gold."""
    k = len(shares)
    gold = rng.choice(k, size=n, p=shares)
    logits = np.log(shares) + rng.standard_normal((n, 1, k)) * noise + rng.standard_normal((n, 4, k)) * 0.25
    logits += signal * np.eye(k)[gold][:, None, :]
    probs = np.exp(logits)
    return gold, probs / probs.sum(axis=2, keepdims=True)


def verdicts_of(signal: float, shares: tuple[float, ...], n: int, noise: float) -> Counter[str]:
    """What is said of 100 such tasks."""
    said: Counter[str] = Counter()
    for seed in range(100):
        gold, probs = weighed(signal, shares, n, noise, np.random.default_rng(seed))
        said[ambiguity(probs, gold, np.full(n, len(shares))).verdict] += 1
    return said


def test_a_crew_that_knows_the_frequent_labels_and_nothing_else_is_ignorant_and_the_task_not_ambiguous() -> None:
    said = verdicts_of(0.0, (0.5, 0.38, 0.12), 60, 0.2)
    assert said["ambiguous"] == 0
    assert said["uninformative"] >= 95


def test_a_weak_crew_knows_something_and_its_doubt_is_not_the_tasks() -> None:
    assert verdicts_of(0.3, (0.25,) * 4, 200, 0.6)["clear"] >= 95
    assert verdicts_of(0.3, (0.6, 0.28, 0.12), 200, 0.2)["clear"] >= 95


def test_items_with_different_numbers_of_options_are_compared_with_their_like() -> None:
    n_options = np.repeat([2, 5], 40)
    gold = np.r_[np.arange(40) % 2, np.arange(40) % 5]
    probs = np.zeros((80, 2, 5))
    probs[:40, :, :2], probs[40:] = 0.5, 0.2
    assert ambiguity(probs, gold, n_options).verdict == "uninformative", "fewer options are no knowledge"
    rows = np.arange(80)
    probs[rows, :, gold] += 0.3
    assert ambiguity(probs / probs.sum(axis=2, keepdims=True), gold, n_options).p_informative == pytest.approx(0.001)


def test_two_options_cannot_tell_ambiguity_from_ignorance_and_that_is_said() -> None:
    found = ambiguity(
        crew(np.arange(200) % 2, World(skill=0.0, classes=2), np.random.default_rng(3)),
        np.arange(200) % 2,
        np.full(200, 2),
    )
    assert found.verdict == "undecided"
    assert "looks the same" in alerts_of_ambiguity(found)[0].message


def test_too_few_calibration_items_decide_nothing() -> None:
    found = ambiguity(np.full((5, 2, 3), 1 / 3), np.zeros(5, dtype=np.int64), np.full(5, 3))
    assert found.verdict == "undecided"
    assert alerts_of_ambiguity(found) == ()


def test_tiny_samples_have_no_drift_test_and_vectors_must_fit() -> None:
    tiny = drift_test(np.zeros((3, 2)), np.ones((50, 2)))
    assert np.isnan(tiny.p_value)
    assert alerts_of_drift(tiny) == ()
    with pytest.raises(DataError, match="one length"):
        drift_test(np.zeros((30, 2)), np.ones((50, 3)))


def test_identical_vectors_have_not_drifted() -> None:
    assert drift_test(np.ones((30, 4)), np.ones((60, 4)), QUICK) == DriftTest(
        mmd_squared=pytest.approx(0.0, abs=1e-12), p_value=1.0
    )


def hashed_words(path: Path) -> np.ndarray:
    """A crude embedding of every question: counts of hashed words, float32 (rows, 128)."""
    with path.open(encoding="utf-8", newline="") as file:
        questions = [line["question"] for line in csv.DictReader(file)]
    vectors = np.zeros((len(questions), 128), dtype=np.float32)
    for row, question in enumerate(questions):
        for word in question.lower().split():
            vectors[row, crc32(word.encode()) % 128] += 1
    return vectors


def test_financial_labels_with_medical_questions_have_drifted_and_a_random_split_has_not(released_data: Path) -> None:
    labelled = hashed_words(released_data / "fpb" / "labeled.csv")
    own = hashed_words(released_data / "fpb" / "unlabeled.csv")
    medical = hashed_words(released_data / "pubmedqa" / "unlabeled.csv")
    found = {"own": 0, "medical": 0}
    for seed in range(100):
        settings = DriftSettings(max_rows=150, permutations=199, seed=seed)
        few = labelled[np.random.default_rng(seed).permutation(len(labelled))[:60]]
        found["own"] += bool(alerts_of_drift(drift_test(few, own, settings)))
        found["medical"] += bool(alerts_of_drift(drift_test(few, medical, settings)))
    assert found["medical"] >= 95
    assert found["own"] <= 5
