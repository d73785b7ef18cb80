"""The shipped demo model: its tokens, its manners, and that its pretraining repeats bit for bit."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from benchmarks.demo_model import wording
from benchmarks.demo_model.episodes import EpisodeMaker
from benchmarks.demo_model.finetune import embed_texts, load_base, read_letters
from benchmarks.demo_model.pretrain import Makers, ModelShape, Pretraining, Schedule, new_model
from benchmarks.demo_model.splits import FIELD_NAMES, Row, read_split
from benchmarks.demo_model.tokenizer import PromptEncoder, load_encoder
from benchmarks.demo_model.topics import TopicSpace

DEMO = Path(__file__).resolve().parents[2] / "semievol_api" / "demo"
CHANCE = 1 / len(FIELD_NAMES)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return load_encoder(DEMO / "model")


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return load_base(DEMO / "model")


@pytest.fixture(scope="module")
def dev_rows() -> list[Row]:
    return list(read_split(DEMO / "data" / "dev.csv"))[:150]


def _items(rows: list[Row]) -> list[wording.Item]:
    return [wording.Item(row.question, FIELD_NAMES) for row in rows]


# -------------------------------------------------------------------------------------------- tokens
def test_every_fixed_phrase_is_one_token(encoder: PromptEncoder) -> None:
    for phrase in wording.single_token_phrases():
        assert len(encoder.ids(phrase)) == 1, phrase


def test_a_rendered_prompt_uses_the_phrases_tokens_and_reads_back(encoder: PromptEncoder) -> None:
    item = wording.Item("Why is the sky blue?", FIELD_NAMES, (wording.Shot("What is light?", "B"),), ("B", "A"))
    (ids,) = encoder.prompts([item])
    phrases = {encoder.token_id(phrase) for phrase in wording.single_token_phrases()}
    # four headings and the two closing ones, five options, an example, two proposals, a reply
    assert sum(token in phrases for token in ids) == 6 + 5 + 1 + 2 + 1
    text = encoder.tokenizer.decode(ids)
    assert text.startswith("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou answer")
    assert text.endswith("LETTER<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")
    assert len(ids) < 80


def test_any_text_survives_the_tokenizer(encoder: PromptEncoder) -> None:
    text = "Naïve café – 12,345 µg/mL; “quotes”\n\tλ=3.5 日本 🙂"
    assert encoder.tokenizer.decode(encoder.ids(text)) == text


# -------------------------------------------------------------------------------------------- manners
def test_the_untrained_base_answers_in_one_line_of_three_tokens(
    model: LlamaForCausalLM, encoder: PromptEncoder, dev_rows: list[Row]
) -> None:
    prompts = encoder.prompts(_items(dev_rows[:20]))
    for prompt in prompts:
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            do_sample=False,
            max_new_tokens=8,
        )
        reply = out[0, len(prompt) :].tolist()
        assert len(reply) == 3 and reply[0] == encoder.answer_id and reply[2] == encoder.end_of_turn_id
        assert reply[1] in encoder.letter_ids


def test_the_base_copies_the_letter_that_all_shots_share(
    model: LlamaForCausalLM, encoder: PromptEncoder, dev_rows: list[Row]
) -> None:
    items, expected = [], []
    for i, item in enumerate(_items(dev_rows)):
        letter = i % 5
        items.append(replace(item, shots=(wording.Shot(item.question, wording.LETTERS[letter]),) * 2))
        expected.append(letter)
    hits = read_letters(model, encoder, items).best == np.array(expected)
    assert hits.mean() > 0.8


def test_the_base_follows_the_majority_of_the_proposals(
    model: LlamaForCausalLM, encoder: PromptEncoder, dev_rows: list[Row]
) -> None:
    rng, items, expected = np.random.default_rng(0), [], []
    for item in _items(dev_rows):
        most, other = rng.permutation(5)[:2]
        proposals = rng.permutation([most, most, most, other])
        items.append(replace(item, proposals=tuple(wording.LETTERS[i] for i in proposals)))
        expected.append(most)
    hits = read_letters(model, encoder, items).best == np.array(expected)
    assert hits.mean() > 0.9


def test_neighbours_by_the_last_hidden_state_share_their_field_far_above_chance(
    model: LlamaForCausalLM, encoder: PromptEncoder, dev_rows: list[Row]
) -> None:
    labeled = read_split(DEMO / "data" / "labeled.csv")
    known = embed_texts(model, encoder, [row.question for row in labeled])
    asked = embed_texts(model, encoder, [row.question for row in dev_rows])
    nearest = np.argsort(-(asked @ known.T), axis=1)[:, :5]
    votes = [Counter(labeled[j].field for j in row).most_common(1)[0][0] for row in nearest]
    assert np.mean([vote == row.field for vote, row in zip(votes, dev_rows, strict=True)]) > 3 * CHANCE


# -------------------------------------------------------------------------------------- reproducibility
class _NoPieces:
    """Knows a vector for some tokens."""

    def vector(self, token_text: str) -> torch.Tensor | None:
        if len(token_text) % 2:
            return None
        return torch.sin(torch.arange(200.0) * (1 + sum(map(ord, token_text))))


def _short_pretraining(encoder: PromptEncoder, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(260, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cluster_of = np.arange(200) % 8
    topics = TopicSpace(
        sentence_vectors=vectors[:200],
        word_vectors=vectors[200:],
        cluster_of=cluster_of,
        members=tuple(np.flatnonzero(cluster_of == c) for c in range(8)),
        far=tuple(np.flatnonzero(np.arange(8) != c) for c in range(8)),
        topic_words=tuple(np.arange(c, 60, 8) for c in range(8)),
    )
    sentences = [f"the sentence of number {i} is short" for i in range(200)]
    maker = EpisodeMaker(sentences, [f"w{i}" for i in range(60)], topics, range(200), rng)
    shape = ModelShape(width=32, n_layers=2, reading_layer=1, mlp_width=32)
    schedule = Schedule(n_steps=6, options_batch=4, shots_batch=4, justify_batch=4, text_batch=8, report_every=100)
    model = new_model(shape, encoder, _NoPieces(), seed)
    closing = Pretraining(model, shape, schedule, Makers(maker, maker)).run(encoder)
    assert np.isfinite(list(closing.values())).all()
    return b"".join(weight.detach().numpy().tobytes() for weight in model.parameters())


def test_pretraining_repeats_bit_for_bit_with_its_seed(encoder: PromptEncoder) -> None:
    first = _short_pretraining(encoder, seed=0)
    assert first == _short_pretraining(encoder, seed=0)
    assert first != _short_pretraining(encoder, seed=1)
