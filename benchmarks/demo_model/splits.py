"""Cut the demo's task out of MMLU: which of five fields is an exam question from?

The label is the group that a question's `Subject` belongs to; MMLU's own answer key is never used.
Knows nothing of tokenizers, prompts or models.
"""

import csv
import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

FIELDS: dict[str, tuple[str, ...]] = {
    "medicine": (
        "professional_medicine",
        "clinical_knowledge",
        "college_medicine",
        "anatomy",
        "virology",
        "medical_genetics",
    ),
    "physics": (
        "conceptual_physics",
        "high_school_physics",
        "college_physics",
        "astronomy",
        "electrical_engineering",
    ),
    "economics": ("high_school_macroeconomics", "high_school_microeconomics", "econometrics"),
    "psychology": ("professional_psychology", "high_school_psychology"),
    "philosophy": ("philosophy", "moral_disputes", "world_religions", "logical_fallacies"),
}
FIELD_NAMES = tuple(FIELDS)
LETTERS = "ABCDE"
SPLIT_SEED = 0
LABELED_ROWS, UNLABELED_ROWS = 100, 600
MIN_WORDS, MAX_WORDS = 6, 45
NEAR_DUPLICATE_OVERLAP = 0.6

Bigrams = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Row:
    """One question of the demo; `field` is its index in `FIELD_NAMES`."""

    row_id: str
    question: str
    field: int


@dataclass(frozen=True)
class Splits:
    """test and dev are for measuring; labeled and unlabeled are drawn from pool without overlap."""

    test: tuple[Row, ...]
    dev: tuple[Row, ...]
    pool: tuple[Row, ...]
    labeled: tuple[Row, ...]
    unlabeled: tuple[Row, ...]


@dataclass(frozen=True)
class SplitPlan:
    """Where a split's questions come from and how many of each field it takes."""

    name: str
    sources: tuple[str, ...]
    rows_per_field: int


PLANS = (
    SplitPlan("test", ("test",), 96),
    SplitPlan("dev", ("labeled",), 60),
    SplitPlan("pool", ("labeled", "unlabeled"), 320),
)


def read_rows(data_folder: Path, dataset: str, split: str) -> list[dict[str, str]]:
    """The raw rows of one released CSV file."""
    csv.field_size_limit(10**9)
    path = data_folder / dataset / f"{split}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def bigrams(text: str) -> Bigrams:
    """The pairs of neighbouring lower-case words of a text."""
    words = re.sub(r"[^a-z0-9]+", " ", text.lower()).split()
    return frozenset(pairwise(words))


def near_duplicates(left: Bigrams, right: Bigrams) -> bool:
    """Whether two texts share most of the shorter one's word bigrams: so are reworded copies caught."""
    return len(left & right) / max(1, min(len(left), len(right))) > NEAR_DUPLICATE_OVERLAP


def make_splits(data_folder: Path) -> Splits:
    """Balanced splits without near-duplicates, within a split or across two."""
    taken: list[Bigrams] = []
    made = {plan.name: _fill(plan, data_folder, taken) for plan in PLANS}
    labeled, unlabeled = _draw_training_files(made["pool"])
    return Splits(made["test"], made["dev"], made["pool"], labeled, unlabeled)


def _fill(plan: SplitPlan, data_folder: Path, taken: list[Bigrams]) -> tuple[Row, ...]:
    subject_field = {subject: i for i, subjects in enumerate(FIELDS.values()) for subject in subjects}
    rows = [r for s in plan.sources for r in read_rows(data_folder, "mmlu", s) if r["Subject"] in subject_field]
    random.Random(SPLIT_SEED).shuffle(rows)
    counts, kept = [0] * len(FIELD_NAMES), list[Row]()
    for row in rows:
        field = subject_field[row["Subject"]]
        question = " ".join(row["question"].split())
        n_words = len(re.sub(r"[^a-z0-9]+", " ", question.lower()).split())
        if counts[field] >= plan.rows_per_field or not MIN_WORDS <= n_words <= MAX_WORDS:
            continue
        grams = bigrams(question)
        if any(near_duplicates(grams, other) for other in taken):
            continue
        taken.append(grams)
        counts[field] += 1
        kept.append(Row(f"{plan.name}-{len(kept):04d}", question, field))
    return tuple(kept)


def draw_labeled(pool: Sequence[Row], n_rows: int, seed: int) -> tuple[Row, ...]:
    """`n_rows` of the pool, equally many of every field."""
    rng = random.Random(seed)
    by_field = [[row for row in pool if row.field == field] for field in range(len(FIELD_NAMES))]
    return tuple(row for rows in by_field for row in rng.sample(rows, n_rows // len(FIELD_NAMES)))


def draw_unlabeled(pool: Sequence[Row], labeled: Sequence[Row], n_rows: int, seed: int) -> tuple[Row, ...]:
    """`n_rows` of the pool that are not labeled, whatever their fields, in pool order."""
    known = {row.row_id for row in labeled}
    rest = [row for row in pool if row.row_id not in known]
    chosen = {row.row_id for row in random.Random(seed).sample(rest, n_rows)}
    return tuple(row for row in rest if row.row_id in chosen)


def _draw_training_files(pool: Sequence[Row]) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    labeled = draw_labeled(pool, LABELED_ROWS, SPLIT_SEED)
    shuffled = random.Random(SPLIT_SEED).sample(labeled, len(labeled))
    return tuple(shuffled), draw_unlabeled(pool, labeled, UNLABELED_ROWS, SPLIT_SEED)


def write_splits(splits: Splits, folder: Path) -> None:
    """One CSV per split: id, question, options (a JSON list), answer (a letter)."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "test": splits.test,
        "dev": splits.dev,
        "pool": splits.pool,
        "labeled": splits.labeled,
        "unlabeled": splits.unlabeled,
    }
    for name, rows in files.items():
        write_rows(folder / f"{name}.csv", rows)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """One CSV file of the demo's task."""
    options = json.dumps(list(FIELD_NAMES))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("id", "question", "options", "answer"))
        writer.writerows((row.row_id, row.question, options, LETTERS[row.field]) for row in rows)


def read_split(path: Path) -> tuple[Row, ...]:
    """The rows of a file that `write_splits` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(Row(row["id"], row["question"], LETTERS.index(row["answer"])) for row in csv.DictReader(file))
