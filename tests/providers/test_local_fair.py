"""Owners in one engine: turns, places, samples that give way and go on bit for bit, and work that nobody waits for."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.serve_mixes import (
    RecordingListener,
    Sample,
    ScheduledSample,
    answers,
    make_batcher,
    pool_of,
    random_mix,
)
from semievol_providers.local.chat_tokens import fewest_tokens, most_bytes_of_a_token
from semievol_providers.local.decoding import Row
from semievol_providers.local.engine import Engine
from semievol_providers.local.fairness import Places, TurnQueue, Turns
from semievol_providers.local.model_folder import load_tokenizer
from semievol_providers.local.packed import PackedModel
from semievol_providers.local.requests import EmbedRequest, EngineSettings, GenerateRequest

pytest_plugins = ("local_fixtures",)

VOCABULARY = 250


@pytest.fixture
def engine(tiny_model: Path) -> Iterator[Engine]:
    """An engine on the tiny model."""
    made = Engine(str(tiny_model), EngineSettings())
    made.start()
    yield made
    made.close()


# ---------------------------------------------------------------------------------------------------- turns
def test_whoever_has_cost_least_is_next() -> None:
    turns = Turns()
    served = []
    for _ in range(12):
        owner = turns.order(["dear", "cheap"])[0]
        served.append(owner)
        turns.charge(owner, 3 if owner == "dear" else 1)
    assert (served.count("dear"), served.count("cheap")) == (3, 9)


def test_who_was_away_starts_level_and_has_saved_nothing_up() -> None:
    turns = Turns()
    for _ in range(100):
        turns.charge("old", 1)
    served = []
    for _ in range(6):
        owner = turns.order(["old", "new"])[0]
        served.append(owner)
        turns.charge(owner, 1)
    assert served.count("new") == 3


def test_an_owners_work_keeps_its_order_and_owners_take_turns() -> None:
    queue: TurnQueue[str] = TurnQueue()
    for work in ("a1", "a2", "a3", "b1"):
        queue.add(work[0], work)
    taken = []
    while len(queue):
        owner = queue.next_owner()
        taken.append(queue.first(owner))
        queue.remove(owner, taken[-1])
        queue.charge(owner, 1)
    assert taken == ["a1", "b1", "a2", "a3"]


# --------------------------------------------------------------------------------------------------- places
@pytest.mark.parametrize(
    ("running", "wanted", "owner", "room"),
    [
        ({"a": 8}, {"a": 90}, "a", 0),
        ({"a": 8}, {"a": 90, "b": 1}, "b", 4),
        ({"a": 4, "b": 4}, {"a": 90, "b": 90}, "b", 0),
        ({"a": 4, "b": 3}, {"a": 90, "b": 90}, "a", 0),
        ({"a": 4, "b": 3}, {"a": 90, "b": 90}, "b", 1),
        ({"a": 4, "b": 1}, {"a": 90}, "a", 3),
        ({}, {"a": 90}, "a", 8),
        ({"a": 3, "b": 3, "c": 2}, {"d": 1}, "d", 2),
    ],
)
def test_places_are_shared_equally_and_what_is_left_goes_to_whoever_wants_it(
    running: dict[str, int], wanted: dict[str, int], owner: str, room: int
) -> None:
    assert Places(8, running, wanted).room(owner) == room


def _row(owner: str, tokens: int, heard: RecordingListener, prompt: tuple[int, ...] = (7, 9)) -> Row:
    return Row(GenerateRequest(prompt_ids=prompt, max_tokens=tokens, seed=1, owner=owner), 0, heard)


def test_a_newcomer_has_its_answer_after_its_own_tokens_though_another_owner_holds_every_place(
    tiny_model: Path,
) -> None:
    batcher = make_batcher(str(tiny_model), 1, rows=4)
    with torch.inference_mode():
        many = [RecordingListener() for _ in range(24)]
        for heard in many:
            batcher.add(_row("many", 60, heard))
        for _ in range(3):
            batcher.step()
        few = RecordingListener()
        batcher.add(_row("few", 5, few))
        preempted = 0
        for _ in range(8):  # turns of growing alternate only between adapters: four steps, and some to spare
            batcher.step()
            preempted = max(preempted, batcher.preempted)
        assert few.output is not None
        assert preempted == 1, "one of the many gave its place, so that no step has more than four samples"
        assert not any(heard.output for heard in many)
        while batcher.busy:
            batcher.step()
    assert all(heard.output is not None and heard.error is None for heard in many)


def test_an_answer_of_one_token_needs_no_place_and_no_memory_for_a_cache(tiny_model: Path) -> None:
    batcher = make_batcher(str(tiny_model), 1, cache_bytes=2**16, rows=1)
    with torch.inference_mode():
        for _ in range(6):
            batcher.add(_row("many", 60, RecordingListener()))
        batcher.step()
        one = RecordingListener()
        batcher.add(_row("one", 1, one))
        batcher.step()
    assert one.output is not None and batcher.preempted == 0


def test_samples_that_gave_their_place_away_go_on_bit_for_bit(tiny_model: Path) -> None:
    chance = random.Random(11)
    pool = [
        Sample(dataclasses.replace(sample.request, owner=chance.choice(("a", "b", "c"))), sample.number)
        for sample in pool_of(40, VOCABULARY, chance)
    ]
    ample, tight = make_batcher(str(tiny_model), 1), make_batcher(str(tiny_model), 1, rows=6)
    alone = {sample: answers(ample, [ScheduledSample(sample)])[0] for sample in pool}
    most_preempted, differing, compared = 0, 0, 0
    resume = tight._resume

    def watched() -> None:
        nonlocal most_preempted
        most_preempted = max(most_preempted, tight.preempted)
        resume()

    tight._resume = watched  # type: ignore[method-assign]
    for _ in range(8):
        entries = [
            dataclasses.replace(entry, arrival={"a": 0, "b": 6, "c": 12}[entry.sample.request.owner])
            for entry in random_mix(pool, chance)
        ]
        for entry, answer in zip(entries, answers(tight, entries), strict=True):
            if answer is not None:
                compared += 1
                differing += answer != alone[entry.sample]
    assert most_preempted >= 2 and compared > 60
    assert differing == 0


# ----------------------------------------------------------------------------------------------- embeddings
def test_one_text_is_embedded_before_the_thousands_of_another_owner_that_came_first(engine: Engine) -> None:
    many = engine.embed(EmbedRequest(tuple((i % VOCABULARY,) * 400 for i in range(600)), owner="many"))
    one = engine.embed(EmbedRequest(((5, 6),), owner="one"))
    assert one.result(timeout=60).prompt_tokens == 2
    assert not many.done()
    assert many.result(timeout=300).vectors.shape == (600, 32)


def test_texts_that_nobody_waits_for_are_no_longer_embedded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    hidden = PackedModel.hidden

    def counted(self: PackedModel, *given: object) -> Tensor:
        passes.append(1)
        return hidden(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(PackedModel, "hidden", counted)
    many = engine.embed(EmbedRequest(tuple((i % VOCABULARY,) * 400 for i in range(600)), owner="many"))
    engine.embed(EmbedRequest(((5, 6),), owner="one")).result(timeout=60)
    assert many.cancel()
    engine.close()  # once all that it still has to do is done
    assert len(passes) < 100


# ------------------------------------------------------------------------------------------ bounds by bytes
def _with_parts(tiny_model: Path, folder: Path, **parts: object) -> Path:
    shutil.copytree(tiny_model, folder)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))
    return folder


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
HARD_TEXTS = (
    " " * 3000, "a" * 3000, "\u1fbe\u0308\u0301" * 500, "\u212a\u0327" * 500, "<|start|>" * 300, "<|eot|> " * 300,
    "\U0001f600" * 300, "한국어" * 300, "\r\n\t" * 300, "e\u0301" * 500, unicodedata.normalize("NFD", "ᾤΐ한") * 300,
)  # fmt: skip


@pytest.mark.parametrize("normalizer", [None, {"type": "NFC"}])
def test_no_text_has_fewer_tokens_than_its_bytes_promise(tiny_model: Path, tmp_path: Path, normalizer: object) -> None:
    tokenizer = load_tokenizer(str(_with_parts(tiny_model, tmp_path / "model", normalizer=normalizer)))
    most, plain = most_bytes_of_a_token(tokenizer), most_bytes_of_a_token(load_tokenizer(str(tiny_model)))
    assert most is not None and plain is not None
    assert most == (4 * plain if normalizer else plain)  # NFC makes of four bytes one, where it is best at it
    chance = random.Random(3)
    drawn = ["".join(chr(chance.randrange(1, 0xD800)) for _ in range(400)) for _ in range(40)]
    for text in (*HARD_TEXTS, *drawn):
        assert len(tokenizer.encode(text, add_special_tokens=False)) >= fewest_tokens(text, most), text[:8]


def test_no_text_has_fewer_tokens_of_the_demo_model_than_its_bytes_promise(demo_model: Path) -> None:
    tokenizer = load_tokenizer(str(demo_model))
    most = most_bytes_of_a_token(tokenizer)
    assert most is not None and most <= 128
    for text in HARD_TEXTS:
        assert len(tokenizer.encode(text, add_special_tokens=False)) >= fewest_tokens(text, most)


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
        {"normalizer": {"type": "NFKC"}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, BYTE_LEVEL]}},
    ],
)
def test_a_tokenizer_that_may_drop_text_promises_nothing(
    tiny_model: Path, tmp_path: Path, parts: dict[str, object]
) -> None:
    folder = _with_parts(tiny_model, tmp_path / "model", **parts)
    assert most_bytes_of_a_token(load_tokenizer(str(folder))) is None
