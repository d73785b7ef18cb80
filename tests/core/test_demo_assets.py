"""The shipped demo: its size, its splits, its tokens, its manners; and how its episodes are drawn."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.demo_model import wording
from benchmarks.demo_model.corpus import held_out, option_words
from benchmarks.demo_model.episodes import EpisodeMaker
from benchmarks.demo_model.splits import (
    FIELD_NAMES,
    Row,
    bigrams,
    make_splits,
    near_duplicates,
    read_split,
    write_splits,
)
from benchmarks.demo_model.topics import TopicSpace

DEMO = Path(__file__).resolve().parents[2] / "semievol_api" / "demo"
SPLIT_NAMES = ("labeled", "unlabeled", "pool", "dev", "test")


def _split(name: str) -> tuple[Row, ...]:
    return read_split(DEMO / "data" / f"{name}.csv")


# ------------------------------------------------------------------------------------------------ files
def test_the_shipped_demo_takes_at_most_ten_megabytes() -> None:
    shipped = [path for path in DEMO.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert (DEMO / "model" / "model.safetensors") in shipped
    assert sum(path.stat().st_size for path in shipped) <= 10_000_000


def test_the_weights_are_those_that_the_build_note_names() -> None:
    note = json.loads((DEMO / "model" / "build.json").read_text(encoding="utf-8"))
    weights = (DEMO / "model" / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == note["weights_sha256"]


@pytest.mark.parametrize("name", SPLIT_NAMES)
def test_every_row_has_an_id_a_question_five_options_and_a_letter(name: str) -> None:
    with (DEMO / "data" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert list(row) == ["id", "question", "options", "answer"]
        assert json.loads(row["options"]) == list(FIELD_NAMES)
        assert row["answer"] in wording.LETTERS and row["question"].strip()


def test_the_splits_have_the_stated_sizes_and_balance() -> None:
    sizes = {name: Counter(row.field for row in _split(name)) for name in SPLIT_NAMES}
    assert sizes["test"] == dict.fromkeys(range(5), 96)
    assert sizes["dev"] == dict.fromkeys(range(5), 60)
    assert sizes["pool"] == dict.fromkeys(range(5), 320)
    assert sizes["labeled"] == dict.fromkeys(range(5), 20)
    assert sizes["unlabeled"].total() == 600 and min(sizes["unlabeled"].values()) > 90


def test_labeled_and_unlabeled_are_disjoint_parts_of_the_pool() -> None:
    labeled, unlabeled, pool = (set(_split(name)) for name in ("labeled", "unlabeled", "pool"))
    assert not labeled & unlabeled
    assert labeled | unlabeled <= pool


def test_no_question_has_a_near_duplicate_in_the_pool_dev_or_test() -> None:
    rows = [row for name in ("pool", "dev", "test") for row in _split(name)]
    grams = [bigrams(row.question) for row in rows]
    where: dict[tuple[str, str], list[int]] = {}
    for i, gram_set in enumerate(grams):
        close = {j for gram in gram_set for j in where.get(gram, ())}
        assert not any(near_duplicates(gram_set, grams[j]) for j in close), rows[i]
        for gram in gram_set:
            where.setdefault(gram, []).append(i)


def test_the_splits_are_rebuilt_byte_for_byte_from_the_released_data(released_data: Path, tmp_path: Path) -> None:
    write_splits(make_splits(released_data), tmp_path)
    for name in SPLIT_NAMES:
        assert (tmp_path / f"{name}.csv").read_bytes() == (DEMO / "data" / f"{name}.csv").read_bytes()


# --------------------------------------------------------------------------------------- what is held out
def test_a_reworded_test_question_is_kept_out_of_pretraining() -> None:
    question = "Why did the solar nebula heat up as it collapsed?"
    held = held_out([Row("test-0001", question, 1)])
    assert held.resembles("Why did the solar nebula heat up as it collapsed under gravity?")
    assert not held.resembles("Why did the stock market crash in the year 1929?")


def test_field_names_are_no_option_words() -> None:
    words = option_words(["we study physics and economics with patience"] * 20, frozenset({"with"}))
    assert words == ("patience", "study")


# -------------------------------------------------------------------------------------------- wording
ITEM = wording.Item(
    "Why is the sky blue?",
    ("medicine", "physics"),
    (wording.Shot("What is a virus?", "A"), wording.Shot("What is light?", "B")),
    ("B", "A", "B", "B"),
)


def test_a_justification_prompt_reads_as_fixed() -> None:
    assert wording.messages(ITEM) == [
        {
            "role": "system",
            "content": "You answer multiple-choice questions. Solved examples:\n\nExample 1\n"
            "Question: What is a virus?\nAnswer: A\n\nExample 2\nQuestion: What is light?\nAnswer: B",
        },
        {
            "role": "user",
            "content": "Which field does this exam question belong to?\n\nQuestion: Why is the sky blue?\n\n"
            "Options:\nA. medicine\nB. physics\n\nProposed answers:\n1. Answer: B\n2. Answer: A\n"
            "3. Answer: B\n4. Answer: B\n\n"
            "Weigh the proposals, decide, and reply with one line: Answer: LETTER",
        },
    ]


# ------------------------------------------------------------------------------------------- episodes
def _maker(seed: int) -> EpisodeMaker:
    """Six topics on six axes, with twelve sentences and forty words each."""
    axes = np.eye(6, dtype=np.float32)
    n_sentences, n_words = 72, 240
    cluster_of = np.arange(n_sentences) % 6
    word_topic = np.arange(n_words) % 6
    topics = TopicSpace(
        sentence_vectors=axes[cluster_of],
        word_vectors=axes[word_topic],
        cluster_of=cluster_of,
        members=tuple(np.flatnonzero(cluster_of == c) for c in range(6)),
        far=tuple(np.flatnonzero(np.arange(6) != c) for c in range(6)),
        topic_words=tuple(np.flatnonzero(word_topic == c) for c in range(6)),
    )
    sentences = [f"sentence {i} on topic {i % 6}" for i in range(n_sentences)]
    words = [f"word{i % 6}" for i in range(n_words)]
    return EpisodeMaker(sentences, words, topics, range(n_sentences), np.random.default_rng(seed))


def test_the_letter_of_an_options_episode_is_the_only_option_on_the_questions_topic() -> None:
    maker = _maker(0)
    for _ in range(200):
        episode = maker.options()
        topic = f"word{episode.question % 6}"
        assert [i for i, text in enumerate(episode.item.options) if text == topic] == [episode.letter]


def test_shots_on_the_questions_topic_carry_its_letter_and_no_others_do() -> None:
    maker = _maker(1)
    for _ in range(200):
        episode = maker.shots(progress=1.0)
        for sentence, shot in zip(episode.shots, episode.item.shots, strict=True):
            on_topic = sentence % 6 == episode.question % 6
            assert (shot.letter == wording.LETTERS[episode.letter]) == on_topic


def test_a_justification_follows_the_most_votes_and_ties_only_among_the_most() -> None:
    maker = _maker(2)
    for _ in range(300):
        episode = maker.justify(progress=1.0)
        votes = Counter(episode.item.proposals)
        assert votes[wording.LETTERS[episode.letter]] == max(votes.values())
        assert (episode.kind == "tie") == (list(votes.values()).count(max(votes.values())) > 1)
