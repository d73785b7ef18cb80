"""How samples share steps: equal bits at any number of rows, slots that are reused, caches that grow."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from semievol_providers.local.batcher import Batcher
from semievol_providers.local.engine import Engine
from semievol_providers.local.padding import cache_width, prompt_bucket
from semievol_providers.local.requests import EngineSettings, GenerateRequest
from semievol_providers.local.row_shapes import Pass, RowShapes, sizes_around

pytest_plugins = ("local_fixtures",)


@pytest.fixture
def engine(tiny_model: Path) -> Iterator[Engine]:
    """An engine on the tiny model."""
    made = Engine(str(tiny_model), EngineSettings())
    made.start()
    yield made
    made.close()


class _Passes:
    """A pass that doubles its rows; with `fickle`, passes of that many rows come out a bit different."""

    def __init__(self, fickle: int | None = None) -> None:
        self.sizes: list[int] = []
        self._fickle = fickle

    def __call__(self, start: int, end: int) -> Sequence[Tensor]:
        self.sizes.append(end - start)
        return [torch.arange(start, end, dtype=torch.float32)[:, None] * 2 + (end - start == self._fickle) * 1e-7]


def _rows(parts: Sequence[Sequence[Tensor]], count: int) -> list[float]:
    return torch.cat([part[0] for part in parts])[:count, 0].tolist()


def test_a_number_of_rows_with_equal_bits_is_tried_once_and_used_from_then_on() -> None:
    shapes, passes = RowShapes(), _Passes()
    for _ in range(3):
        assert _rows(shapes.run("key", Pass(3, passes), sizes_around(32), 32), 3) == [0, 2, 4]
    assert passes.sizes == [4, 32, 4, 4]


def test_a_number_of_rows_with_other_bits_is_never_used() -> None:
    shapes, passes = RowShapes(), _Passes(fickle=64)
    for _ in range(2):
        found = shapes.run("key", Pass(60, passes), sizes_around(32), 32)
        assert _rows(found, 60) == [2 * i for i in range(60)]
    assert passes.sizes == [64, 32, 32, 32, 32]


def test_shapes_are_judged_apart_for_every_key() -> None:
    shapes, passes = RowShapes(), _Passes()
    shapes.run("short", Pass(4, passes), sizes_around(32), 32)
    shapes.run("long", Pass(4, passes), sizes_around(32), 32)
    assert passes.sizes == [4, 32, 4, 32]


def test_a_quicker_way_is_used_where_its_bits_are_equal_and_only_there() -> None:
    for fickle in (None, 32):
        shapes, passes, quick = RowShapes(), _Passes(), _Passes(fickle)
        work = Pass(30, passes, quick, "narrow")
        found = [_rows(shapes.run("key", work, sizes_around(32), 32), 30) for _ in range(3)]
        assert found == [[2 * i for i in range(30)]] * 3
        assert len(quick.sizes) == (3 if fickle is None else 1)
        assert len(passes.sizes) == (1 if fickle is None else 3)


def test_paddings_depend_on_the_one_prompt() -> None:
    assert [prompt_bucket(length, 16) for length in (1, 16, 17)] == [16, 16, 32]
    assert [cache_width(tokens) for tokens in (1, 128, 129, 300)] == [128, 128, 256, 512]


def _ask(engine: Engine, text: str, **settings: object) -> GenerateRequest:
    prompt = engine.tokens.encode_chat([{"role": "user", "content": text}])
    asked: dict[str, object] = {"prompt_ids": prompt, "max_tokens": 6, "seed": 1, "top_logprobs": 2}
    return GenerateRequest(**(asked | settings))  # type: ignore[arg-type]


def test_samples_join_leave_and_outgrow_their_cache_without_a_change_of_bits(engine: Engine) -> None:
    chance = random.Random(3)
    requests = [
        _ask(
            engine, "x" * chance.randrange(1, 150), max_tokens=chance.choice([1, 3, 20, 240]), n=chance.choice([1, 2]),
            temperature=chance.choice([0.0, 0.9]), seed=i, frequency_penalty=chance.choice([0.0, 0.7]),
        )
        for i in range(16)
    ]  # fmt: skip
    alone = [engine.generate(request).result(timeout=60) for request in requests]
    futures = []
    for request in requests:
        futures.append(engine.generate(request))
        if chance.random() < 0.3:
            futures[chance.randrange(len(futures))].exception(timeout=60)  # the next ones join later
    assert [future.result(timeout=60) for future in futures] == alone
    lengths = {len(r.prompt_ids) + s.counted_tokens for r, a in zip(requests, alone, strict=True) for s in a.samples}
    assert min(lengths) < 128 < 256 < max(lengths)


def test_more_samples_than_slots_are_all_answered(engine: Engine) -> None:
    many = engine.generate(_ask(engine, "many", n=150, max_tokens=3)).result(timeout=60)
    few = engine.generate(_ask(engine, "many", n=3, max_tokens=3)).result(timeout=60)
    assert len(many.samples) == 150
    assert many.samples[:3] == few.samples


def test_little_memory_for_caches_changes_no_answer_for_want_of_room(tiny_model: Path) -> None:
    engine = Engine(str(tiny_model), EngineSettings(cache_bytes=2**20))
    engine.start()
    requests = [_ask(engine, "y" * (40 * i), max_tokens=40, seed=i) for i in range(10)]
    futures = [engine.generate(request) for request in requests * 3]
    found = [future.result(timeout=60) for future in futures]
    assert found[:10] == found[10:20] == found[20:] == [engine.generate(r).result(timeout=60) for r in requests]
    engine.close()


def test_a_request_that_comes_later_joins_the_step_of_those_under_way(engine: Engine) -> None:
    rows: list[int] = []
    engine.generate(_ask(engine, "warm", max_tokens=2)).result(timeout=60)
    lane_type = _lane_type()
    advance = lane_type.advance

    def counted(self: object, *args: object) -> Tensor:
        rows.append(len(self.samples))  # type: ignore[attr-defined]
        return advance(self, *args)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lane_type, "advance", counted)
        first = engine.generate(_ask(engine, "first", max_tokens=90, temperature=0.0))
        while len(rows) < 5:
            assert not first.done()
        second = engine.generate(dataclasses.replace(_ask(engine, "second"), max_tokens=5, temperature=0.0))
        second.result(timeout=60)
        first.result(timeout=60)
    assert set(rows) == {1, 2}
    assert rows.count(2) >= 3


def _lane_type() -> type:
    from semievol_providers.local.lanes import Lane

    return Lane


def test_nothing_is_kept_when_everybody_left(engine: Engine) -> None:
    futures = [engine.generate(_ask(engine, "gone", max_tokens=300, seed=i)) for i in range(4)]
    assert all(future.cancel() for future in futures)
    engine.generate(_ask(engine, "here")).result(timeout=60)
    batcher: Batcher = engine._batcher
    while batcher.busy:
        pass
    batcher.free()
    assert not batcher._lanes


@pytest.mark.parametrize("family", ["mistral", "qwen2", "gemma2"])
def test_layers_with_sliding_attention_see_what_they_see_in_a_plain_pass(
    tiny_model: Path, tmp_path: Path, family: str
) -> None:
    import shutil

    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(tiny_model, tmp_path / "model")
    settings: dict[str, object] = {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "sliding_window": 24,
        "initializer_range": 0.2,
    }  # fmt: skip
    if family == "qwen2":
        settings |= {"use_sliding_window": True, "max_window_layers": 1}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings)).eval()
    model.save_pretrained(tmp_path / "model")
    engine = Engine(str(tmp_path / "model"), EngineSettings())
    engine.start()
    request = _ask(engine, "a text that is longer than the window of the layers that slide", max_tokens=40)
    sample = engine.generate(request).result(timeout=60).samples[0]
    engine.close()
    ids = [*request.prompt_ids, *sample.token_ids]
    with torch.inference_mode():
        scores = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    start = len(request.prompt_ids)
    expected = [scores[start + t - 1, token].item() for t, token in enumerate(sample.token_ids)]
    assert sample.logprobs == pytest.approx(expected, abs=1e-4)
