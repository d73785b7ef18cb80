"""How samples share steps: equal bits in any company, slots that are reused, caches that grow, memory that is short."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from local_samples import random_model
from torch import Tensor

from benchmarks.serve_mixes import Sample, ScheduledSample, answers, compare, make_batcher, pool_of, random_mix
from semievol_providers.local.batcher import Batcher
from semievol_providers.local.decoding import KVCacheBuckets
from semievol_providers.local.engine import Engine
from semievol_providers.local.linear import BlockSizes, PassRows, RowLinear, use_row_linears
from semievol_providers.local.model_folder import ModelFolderError, load_model
from semievol_providers.local.packed import PackedModel, Tokens, cache_width
from semievol_providers.local.requests import EmbedRequest, EngineSettings, GenerateRequest, ReadRequest

pytest_plugins = ("local_fixtures",)

VOCABULARY = 250


@pytest.fixture
def engine(tiny_model: Path) -> Iterator[Engine]:
    """An engine on the tiny model."""
    made = Engine(str(tiny_model), EngineSettings())
    made.start()
    yield made
    made.close()


WINDOWS = {
    "llama": {},
    "mistral": {"sliding_window": 24},
    "qwen2": {"sliding_window": 24, "use_sliding_window": True, "max_window_layers": 1},
    "gemma2": {"sliding_window": 24},
}


# ------------------------------------------------------------------------------------------------ equal bits
@pytest.mark.parametrize("family", WINDOWS)
def test_a_sample_has_the_same_bits_alone_in_any_slot_in_any_company_and_whenever_it_comes(
    tiny_model: Path, tmp_path: Path, family: str
) -> None:
    folder = random_model(tmp_path / "model", tiny_model, family, **WINDOWS[family])
    chance = random.Random(5)
    found = compare(make_batcher(str(folder), 1), pool_of(40, VOCABULARY, chance), 10, chance)
    assert found.answers > 100
    assert found.logprobs > 5_000
    assert not found.differing


def test_the_demo_model_has_the_same_bits_in_any_company(demo_model: Path) -> None:
    chance = random.Random(6)
    found = compare(make_batcher(str(demo_model), 1), pool_of(16, 14_000, chance), 4, chance)
    assert found.logprobs > 1_000
    assert not found.differing


def test_the_check_above_sees_a_product_whose_bits_depend_on_the_number_of_rows(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiply = BlockSizes.multiply

    def fickle(self: BlockSizes, rows: Tensor, weight: Tensor) -> Tensor:
        return multiply(self, rows, weight) * (1 + 1e-6 * (len(rows) > 8))

    monkeypatch.setattr(BlockSizes, "multiply", fickle)
    chance = random.Random(5)
    assert compare(make_batcher(str(tiny_model), 1), pool_of(10, VOCABULARY, chance), 4, chance).differing


def test_every_slot_of_a_full_step_gives_the_same_bits(tiny_model: Path) -> None:
    batcher = make_batcher(str(tiny_model), 1)
    request = GenerateRequest(prompt_ids=(7, 9, 11), max_tokens=4, seed=3, top_logprobs=5)
    alone = answers(batcher, [ScheduledSample(Sample(request, 0))])[0]
    others = [dataclasses.replace(request, prompt_ids=(i, 1 + i % 5), seed=i) for i in range(64)]
    for place in range(0, 64, 3):
        entries = [ScheduledSample(Sample(request if i == place else other, 0)) for i, other in enumerate(others)]
        assert answers(batcher, entries)[place] == alone


def test_vectors_and_looks_have_the_same_bits_alone_and_in_any_company(engine: Engine) -> None:
    chance = random.Random(2)
    prompts = [tuple(chance.randrange(VOCABULARY) for _ in range(chance.randrange(1, 300))) for _ in range(24)]
    looks = [ReadRequest(prompt, ((1,), (2, 3))) for prompt in prompts]
    alone = [engine.read(look).result(timeout=60) for look in looks]
    vectors = [engine.embed(EmbedRequest((prompt,))).result(timeout=60).vectors[0] for prompt in prompts]
    for _ in range(3):
        order = chance.sample(range(24), 24)
        reads = [engine.read(looks[i]) for i in order]
        embedded = engine.embed(EmbedRequest(tuple(prompts[i] for i in order))).result(timeout=60).vectors
        assert [read.result(timeout=60) for read in reads] == [alone[i] for i in order]
        assert all((embedded[place] == vectors[i]).all() for place, i in enumerate(order))


# ------------------------------------------------------------------------------------------- blocks of rows
def _fake_product(shift: Callable[[int], Tensor]) -> Callable[..., Tensor]:
    real = torch.mm

    def product(rows: Tensor, turned: Tensor, out: Tensor | None = None) -> Tensor:
        found = real(rows.double(), turned.double()).float().mul_(shift(len(rows)))
        return found if out is None else out.copy_(found)

    return product


def test_block_sizes_that_give_other_bits_are_never_used(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []

    def shift(rows: int) -> Tensor:
        used.append(rows)
        return torch.full((rows, 1), 1 + 1e-6 * (rows in (4, 64)))

    monkeypatch.setattr(torch, "mm", _fake_product(shift))
    blocks = BlockSizes()
    weight = torch.randn(20, 12)
    assert blocks.sizes_for(weight) == (256, 128, 32, 16, 8)
    used.clear()
    assert blocks.multiply(torch.randn(70, 12), weight).shape == (70, 20)
    assert used == [32, 32, 8]


def test_single_rows_are_left_where_a_place_in_a_block_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    def shift(rows: int) -> Tensor:
        return 1 + 1e-6 * torch.arange(rows)[:, None]

    monkeypatch.setattr(torch, "mm", _fake_product(shift))
    assert BlockSizes().sizes_for(torch.randn(20, 12)) == (1,)


@pytest.mark.parametrize(("inputs", "outputs"), [(32, 96), (128, 14_029), (352, 128), (30, 7)])
def test_a_row_of_a_linear_layer_has_the_same_bits_at_every_place_of_any_number_of_rows(
    inputs: int, outputs: int
) -> None:
    torch.manual_seed(1)
    layer = RowLinear(torch.nn.Linear(inputs, outputs), BlockSizes(), PassRows())
    rows = torch.randn(300, inputs)
    with torch.inference_mode():
        alone = torch.cat([layer(row[None]) for row in rows[:40]])
        for start, end in [(0, 300), (0, 41), (3, 40), (1, 61), (0, 4), (30, 290)]:
            found = layer(rows[start:end])[: max(0, 40 - start)]
            assert torch.equal(found, alone[start : start + len(found)])


def test_a_linear_layer_computes_what_that_of_torch_does() -> None:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.Linear(40, 9, bias=False))
    rows = torch.randn(2, 13, 24)
    with torch.inference_mode():
        expected = model(rows)
        use_row_linears(model, BlockSizes(), PassRows())
        assert all(isinstance(layer, RowLinear) for layer in model)
        assert torch.allclose(model(rows), expected, atol=1e-6)


# --------------------------------------------------------------------------------------------------- slots
def test_the_width_of_a_cache_depends_on_its_tokens_only() -> None:
    assert [cache_width(n) for n in (1, 64, 65, 512, 513, 1024, 1025, 5000)] == [
        64,
        64,
        128,
        512,
        640,
        1024,
        1280,
        5120,
    ]


def _ask(engine: Engine, text: str, **settings: object) -> GenerateRequest:
    prompt = engine.tokens.encode_chat([{"role": "user", "content": text}])
    asked: dict[str, object] = {"prompt_ids": prompt, "max_tokens": 6, "seed": 1, "top_logprobs": 2}
    return GenerateRequest(**(asked | settings))  # type: ignore[arg-type]


def test_more_samples_than_slots_are_all_answered(engine: Engine) -> None:
    many = engine.generate(_ask(engine, "many", n=150, max_tokens=3)).result(timeout=60)
    few = engine.generate(_ask(engine, "many", n=3, max_tokens=3)).result(timeout=60)
    assert len(many.samples) == 150
    assert many.samples[:3] == few.samples


def test_little_memory_for_caches_changes_no_answer(tiny_model: Path) -> None:
    chance = random.Random(8)
    pool = pool_of(20, VOCABULARY, chance)
    short, ample = (make_batcher(str(tiny_model), 1, cache_bytes) for cache_bytes in (2**18, 2**30))
    rows: list[int] = []
    advance = KVCacheBuckets.advance

    def counted(self: KVCacheBuckets, packed: PackedModel, model: object) -> Tensor:
        rows.append(len(self.samples))
        return advance(self, packed, model)  # type: ignore[arg-type]

    entries = [ScheduledSample(sample) for sample in pool]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KVCacheBuckets, "advance", counted)
        found = answers(short, entries)
    assert max(rows) < len(pool)
    assert found == answers(ample, entries)


def test_a_request_that_comes_later_joins_the_step_of_those_under_way(tiny_model: Path) -> None:
    batcher = make_batcher(str(tiny_model), 1)
    rows: list[int] = []
    advance = KVCacheBuckets.advance

    def counted(self: KVCacheBuckets, packed: PackedModel, model: object) -> Tensor:
        rows.append(len(self.samples))
        return advance(self, packed, model)  # type: ignore[arg-type]

    first = GenerateRequest(prompt_ids=(5, 6), max_tokens=30, seed=1, temperature=0.0)
    second = dataclasses.replace(first, prompt_ids=(8,), max_tokens=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KVCacheBuckets, "advance", counted)
        assert all(answers(batcher, [ScheduledSample(Sample(first, 0)), ScheduledSample(Sample(second, 0), arrival=5)]))
    assert set(rows) == {1, 2}
    assert rows.count(2) == 4


def test_samples_of_one_request_share_the_reading_of_their_prompt(tiny_model: Path) -> None:
    batcher = make_batcher(str(tiny_model), 1)
    tokens: list[int] = []
    logits = PackedModel.logits

    def counted(self: PackedModel, model: object, fed: Tokens, *others: object) -> Tensor:
        tokens.append(len(fed.ids))
        return logits(self, model, fed, *others)  # type: ignore[arg-type]

    request = GenerateRequest(prompt_ids=tuple(range(50)), max_tokens=3, seed=1, n=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PackedModel, "logits", counted)
        answers(batcher, [ScheduledSample(Sample(request, number)) for number in range(4)])
    assert tokens == [50, 4, 4]


def test_nothing_is_kept_when_everybody_left(tiny_model: Path) -> None:
    batcher: Batcher = make_batcher(str(tiny_model), 1)
    pool = pool_of(20, VOCABULARY, random.Random(4))
    entries = [dataclasses.replace(entry, patience=2) for entry in random_mix(pool, random.Random(1))]
    answers(batcher, entries)
    assert not batcher.busy
    assert batcher.allocated_bytes > 0
    batcher.free()
    assert batcher.allocated_bytes == 0


# ------------------------------------------------------------------------------------------- architectures
@pytest.mark.parametrize("family", WINDOWS)
def test_layers_with_sliding_attention_see_what_they_see_in_a_plain_pass(
    tiny_model: Path, tmp_path: Path, family: str
) -> None:
    folder = random_model(tmp_path / "model", tiny_model, family, **WINDOWS[family])
    request = GenerateRequest(prompt_ids=tuple(range(3, 70)), max_tokens=40, seed=2, top_logprobs=0)
    sample = answers(make_batcher(str(folder), 1), [ScheduledSample(Sample(request, 0))])[0]
    assert sample is not None and sample.logprobs is not None and len(sample.logprobs) > 5
    model = load_model(str(folder), "cpu")
    ids = [*request.prompt_ids, *sample.token_ids]
    with torch.inference_mode():
        scores = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    start = len(request.prompt_ids)
    expected = [scores[start + t - 1, token].item() for t, token in enumerate(sample.token_ids)]
    assert sample.logprobs == pytest.approx(expected, abs=1e-4)


def test_a_model_that_samples_cannot_share_is_refused(tiny_model: Path) -> None:
    model = load_model(str(tiny_model), "cpu")
    model.config.layer_types = ["chunked_attention", "full_attention"]
    with pytest.raises(ModelFolderError, match="layers of chunked_attention"):
        PackedModel(model, 0, exact=True)
