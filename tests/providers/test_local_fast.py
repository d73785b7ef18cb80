"""The engine where it owes no equal bits: bounds on what company changes, shared beginnings, adapters side by side."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from local_samples import random_model

from semievol_api.capabilities import ProviderSettings
from semievol_api.errors import ConfigError
from semievol_providers.local import packed
from semievol_providers.local.decoding import ReadRow
from semievol_providers.local.engine import Engine
from semievol_providers.local.linear import FastLinear, PassRows, use_fast_linears
from semievol_providers.local.machine import idle_threads
from semievol_providers.local.model_folder import load_model
from semievol_providers.local.packed import PackedModel, Tokens
from semievol_providers.local.prefix import PrefixCache
from semievol_providers.local.provider import LocalOptions, read_places
from semievol_providers.local.requests import (
    DtypeName,
    EmbedRequest,
    EngineSettings,
    GenerateRequest,
    Read,
    ReadRequest,
)

pytest_plugins = ("local_fixtures",)
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

VOCABULARY = 250
GROUPS = ((11,), (40, 41, 42), (7, 200))
BOUND: dict[DtypeName, float] = {"float32": 2e-4, "bfloat16": 0.15}
"""How far a log-probability may be from that of a plain pass in float32, and company may move it; docs/local.md."""
FAMILIES: dict[str, dict[str, object]] = {
    "llama": {},
    "mistral": {"sliding_window": 24},
    "qwen2": {"sliding_window": 24, "use_sliding_window": True, "max_window_layers": 1},
    "gemma2": {"sliding_window": 24},
}
DTYPES: tuple[DtypeName, ...] = ("float32", "bfloat16")


def make_engine(folder: Path, dtype: DtypeName = "float32", **settings: Any) -> Engine:
    """An engine that owes no equal bits, however small the model."""
    engine = Engine(str(folder), EngineSettings(dtype=dtype, exact_limit_bytes=0, **settings))
    engine.start()
    return engine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A small Llama whose distributions are neither flat nor sure."""
    made: Path = random_model(tmp_path_factory.mktemp("fast") / "model", tiny_model, "llama", initializer_range=0.08)
    return made


@pytest.fixture(scope="module", params=DTYPES)
def engine(request: pytest.FixtureRequest, model: Path) -> Iterator[Engine]:
    made = make_engine(model, request.param)
    yield made
    made.close()


def ids(chance: random.Random, count: int) -> tuple[int, ...]:
    return tuple(chance.randrange(3, VOCABULARY) for _ in range(count))


def truth(folder: Path, prompts: Sequence[tuple[int, ...]], adapter: str | None = None) -> list[list[float]]:
    """The groups' log-probabilities by plain transformers and PEFT in float32, prompt by prompt."""
    from peft import PeftModel

    plain: Any = load_model(str(folder), "cpu")
    if adapter is not None:
        plain = PeftModel.from_pretrained(plain, adapter).eval()
    found = []
    with torch.inference_mode():
        for prompt in prompts:
            scores = plain(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
            found.append([torch.logsumexp(scores[list(group)], 0).item() for group in GROUPS])
    return found


def read(engine: Engine, prompts: Sequence[tuple[int, ...]], *adapters: str | None) -> list[list[float]]:
    """The same by the engine, all asked at once; with several adapters, prompt i is asked of adapter i modulo them."""
    asked = [adapters[i % len(adapters)] if adapters else None for i in range(len(prompts))]
    futures = [engine.read(ReadRequest(p, GROUPS, a)) for p, a in zip(prompts, asked, strict=True)]
    return [[value for value in f.result(timeout=120).logprobs if value is not None] for f in futures]


def gap(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
    return float((torch.tensor(one) - torch.tensor(other)).abs().max())


def make_adapter(folder: Path, base: Path, seed: int, **settings: Any) -> str:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    chosen = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, "task_type": "CAUSAL_LM"} | settings
    get_peft_model(load_model(str(base), "cpu"), LoraConfig(**chosen)).save_pretrained(folder)
    return str(folder)


# --------------------------------------------------------------------------------------------------- bounds
def test_reads_are_within_the_bound_of_a_plain_pass_in_any_company(engine: Engine, model: Path) -> None:
    chance = random.Random(1)
    prompts = [ids(chance, chance.randrange(1, 200)) for _ in range(40)]
    bound, expected = BOUND[engine.settings.dtype], truth(model, prompts)
    assert gap(expected, [expected[0]] * 40) > 10 * bound, "the prompts differ by far more than the bound"
    together = read(engine, prompts)
    assert gap(together, expected) < bound
    alone = [read(engine, [prompt])[0] for prompt in prompts[:10]]
    assert gap(alone, together[:10]) < bound


def test_samples_are_scored_within_the_bound_of_a_plain_pass(engine: Engine, model: Path) -> None:
    chance = random.Random(2)
    requests = [
        GenerateRequest(prompt_ids=ids(chance, 5 + 9 * i), max_tokens=12, seed=i, n=1 + i % 3, top_logprobs=3)
        for i in range(12)
    ]
    answers = [future.result(timeout=60) for future in [engine.generate(request) for request in requests]]
    plain = load_model(str(model), "cpu")
    for request, answer in zip(requests, answers, strict=True):
        for sample in answer.samples:
            with torch.inference_mode():
                whole = torch.tensor([[*request.prompt_ids, *sample.token_ids]])
                scores = plain(input_ids=whole).logits[0].log_softmax(-1)[len(request.prompt_ids) - 1 : -1]
            expected = [scores[t, token].item() for t, token in enumerate(sample.token_ids)]
            assert sample.logprobs == pytest.approx(expected, abs=BOUND[engine.settings.dtype])


def test_texts_embed_alike_alone_and_together(engine: Engine) -> None:
    chance = random.Random(3)
    texts = tuple(ids(chance, 3 + 11 * i) for i in range(12))
    together = engine.embed(EmbedRequest(texts)).result(timeout=60).vectors
    for text, vector in zip(texts, together, strict=True):
        assert engine.embed(EmbedRequest((text,))).result(timeout=60).vectors[0] @ vector > 0.999


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_reads_within_the_bound_with_and_without_a_shared_beginning(
    tiny_model: Path, tmp_path: Path, family: str
) -> None:
    folder = random_model(tmp_path / "model", tiny_model, family, **FAMILIES[family])
    chance = random.Random(4)
    head = ids(chance, 70)
    prompts = [head + ids(chance, 1 + 7 * i) for i in range(8)]
    engine = make_engine(folder)
    found = read(engine, prompts)
    engine.close()
    assert engine.batcher.hit_tokens >= 7 * 70
    assert gap(found, truth(folder, prompts)) < BOUND["float32"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_attention_of_bfloat16_is_the_plain_one_long_prompts_in_parts_included(
    tiny_model: Path, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "_by_products", lambda _: True)  # in float32, where a bound is tight
    folder = random_model(tmp_path / "model", tiny_model, family, **FAMILIES[family])
    chance = random.Random(5)
    prompts = [ids(chance, 500), ids(chance, 257), ids(chance, 40)]
    engine = make_engine(folder)
    found = read(engine, prompts)
    chat = engine.generate(GenerateRequest(prompt_ids=prompts[1], max_tokens=9, seed=1, temperature=0.0))
    answered = chat.result(timeout=60).samples[0].token_ids
    engine.close()
    assert gap(found, truth(folder, prompts)) < BOUND["float32"]
    plain: Any = load_model(str(folder), "cpu")
    expected = plain.generate(torch.tensor([prompts[1]]), do_sample=False, max_new_tokens=9)[0, 257:].tolist()
    assert list(answered) == expected[: len(answered)] and len(answered) >= len(expected) - 1


def test_logits_that_are_looked_at_are_no_rounded_ones(model: Path) -> None:
    layer = torch.nn.Linear(32, VOCABULARY, bias=False, dtype=torch.bfloat16)
    rows = PassRows()
    folded: Any = load_model(str(model), "cpu", dtype="bfloat16")
    folded.set_output_embeddings(layer)
    use_fast_linears(folded, rows)
    states = 20 * torch.randn(1, 3, 32).bfloat16()
    exact = states[0].float() @ layer.weight.float().t()
    unlikely = exact.argsort(-1)[:, :2]
    with torch.inference_mode():
        rows.begin((), torch.arange(3), unlikely)
        found = folded.get_output_embeddings()(states)[0]
        rows.end()
    likely = exact.argsort(-1)[:, -20:]
    for place in (unlikely, likely):
        assert torch.allclose(found.gather(1, place), exact.gather(1, place), atol=1e-4)
    assert not torch.allclose(found, exact, atol=1e-4), "the others are as bfloat16 has them"


def test_a_look_that_was_answered_does_not_fail_afterwards() -> None:
    answered: Future[Read] = Future()
    row = ReadRow(ReadRequest((1, 2), GROUPS), answered)
    row.answer(torch.zeros(VOCABULARY))
    row.fail(RuntimeError("later in the same pass"))
    assert answered.result().logprobs[0] == 0


# ---------------------------------------------------------------------------------------- shared beginnings
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each pass reads from now on."""
    counts: list[int] = []
    logits = PackedModel.logits

    def counted(self: PackedModel, model: object, tokens: Tokens, *others: Any) -> torch.Tensor:
        counts.append(len(tokens.ids))
        return logits(self, model, tokens, *others)

    monkeypatch.setattr(PackedModel, "logits", counted)
    return counts


def test_a_shared_beginning_is_read_once_for_a_group_whatever_the_order(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(6)
    heads = [ids(chance, 150) for _ in range(4)]
    prompts = [head + ids(chance, 50) for head in heads for _ in range(16)]
    chance.shuffle(prompts)
    counts = fed(monkeypatch)
    engine = make_engine(model, gather_s=0.2)
    found = read(engine, prompts)
    engine.close()
    assert sum(counts) <= 4 * 200 + 60 * 50
    assert gap(found, truth(model, prompts)) < BOUND["float32"]


def test_questions_one_by_one_go_on_from_what_the_second_left(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(7)
    head = ids(chance, 100)
    counts = fed(monkeypatch)
    engine = make_engine(model)
    prompts = [head + ids(chance, 20) for _ in range(4)]
    found = [read(engine, [prompt])[0] for prompt in prompts]
    engine.close()
    assert counts == [120, 120, 20, 20]
    assert gap(found, truth(model, prompts)) < BOUND["float32"]


def test_chats_go_on_from_a_shared_beginning_and_keep_their_answers(model: Path) -> None:
    chance = random.Random(8)
    head = ids(chance, 90)
    requests = [
        GenerateRequest(prompt_ids=head + ids(chance, 9 + i), max_tokens=8, seed=i, temperature=0.0) for i in range(9)
    ]
    engine, without = make_engine(model), make_engine(model, cache_bytes=2**30)
    without.batcher._prefixes = PrefixCache(0)
    both = [[f.result(timeout=60) for f in [e.generate(r) for r in requests]] for e in (engine, without)]
    engine.close()
    without.close()
    assert engine.batcher.hit_tokens >= 7 * 90 and without.batcher.hit_tokens == 0
    assert [[s.token_ids for s in a.samples] for a in both[0]] == [[s.token_ids for s in a.samples] for a in both[1]]


def test_a_beginning_belongs_to_one_adapter(model: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", model, 1)
    chance = random.Random(9)
    head = ids(chance, 80)
    prompts = [head + ids(chance, 10) for _ in range(6)]
    engine = make_engine(model)
    base, tuned = read(engine, prompts), read(engine, prompts, adapter)
    engine.close()
    assert engine.batcher.hit_tokens >= 2 * 4 * 80
    assert gap(base, truth(model, prompts)) < BOUND["float32"]
    assert gap(tuned, truth(model, prompts, adapter)) < BOUND["float32"]


def layers(tokens: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.ones(2, tokens, 4), torch.ones(2, tokens, 4))]


def test_beginnings_take_no_more_memory_than_allowed_and_the_one_unused_for_longest_goes_first() -> None:
    cache = PrefixCache(limit_bytes=2 * 100 * 64)
    one, two, three = ((n,) * 100 for n in (1, 2, 3))
    cache.keep(None, one, layers(100))
    cache.keep(None, two, layers(100))
    assert cache.head(None, (*one, 5)) is not None
    cache.keep(None, three, layers(100))
    assert cache.held_bytes <= 2 * 100 * 64
    assert [cache.head_tokens(None, (*ids, 5)) for ids in (one, two, three)] == [100, 0, 100]
    cache.forget(None)
    assert cache.held_bytes == 0 and cache.head(None, (*one, 5)) is None


def test_part_of_a_beginning_serves_a_prompt_that_leaves_it_earlier_and_never_the_whole_prompt() -> None:
    cache = PrefixCache(limit_bytes=2**20)
    kept = tuple(range(100))
    cache.keep("a", kept, layers(100))
    found = cache.head("a", (*kept[:60], 500, 501))
    assert found is not None and found[0][0].shape[1] == 60
    assert cache.head_tokens("a", kept[:50]) == 49, "the last token is read, for its logits"
    assert cache.head_tokens("a", kept[:10] + (500,) * 50) == 0, "too short to be worth it"
    assert cache.head_tokens(None, kept) == 0


def test_prompts_that_share_nothing_leave_nothing_behind(model: Path) -> None:
    chance = random.Random(10)
    engine = make_engine(model)
    read(engine, [ids(chance, 60) for _ in range(10)])
    engine.generate(GenerateRequest(prompt_ids=ids(chance, 60), max_tokens=3, seed=1, n=4)).result(timeout=60)
    engine.close()
    assert engine.batcher._prefixes.held_bytes == 0


# ------------------------------------------------------------------------------------------------- adapters
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_one_pass_have_adapters_of_their_own(
    model: Path, tmp_path: Path, dtype: DtypeName, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = [
        make_adapter(tmp_path / "one", model, 1, lora_alpha=3),
        make_adapter(tmp_path / "two", model, 2, r=8, target_modules=["q_proj", "down_proj"], use_rslora=True),
        None,
    ]
    chance = random.Random(11)
    prompts = [ids(chance, 20 + i) for i in range(18)]
    counts = fed(monkeypatch)
    engine = make_engine(model, dtype, gather_s=0.2)
    found = read(engine, prompts, *adapters)
    assert len(counts) <= 2, "one pass, or two where the first row came alone"
    for i, adapter in enumerate(adapters):
        assert gap(found[i::3], truth(model, prompts[i::3], adapter)) < BOUND[dtype]
    assert gap(read(engine, prompts[::3], adapters[0]), found[::3]) < BOUND[dtype]
    engine.close()


def test_samples_of_several_adapters_share_their_steps(model: Path, tmp_path: Path) -> None:
    adapters = [None, make_adapter(tmp_path / "one", model, 1), make_adapter(tmp_path / "two", model, 2)]
    chance = random.Random(12)
    requests = [
        GenerateRequest(prompt_ids=ids(chance, 30 + i), max_tokens=10, seed=i, temperature=0.0, adapter=adapters[i % 3])
        for i in range(9)
    ]
    engine = make_engine(model, gather_s=0.2)
    together = [f.result(timeout=60) for f in [engine.generate(request) for request in requests]]
    alone = [engine.generate(request).result(timeout=60) for request in requests]
    on_base = [engine.generate(dataclasses.replace(r, adapter=None)).result(timeout=60) for r in requests]
    assert len(engine.batcher._buckets) == 1
    engine.close()
    assert [a.samples[0].token_ids for a in together] == [a.samples[0].token_ids for a in alone]
    assert [a.samples[0].token_ids for a in together[1::3]] != [a.samples[0].token_ids for a in on_base[1::3]]


@pytest.mark.parametrize("more", [{"use_dora": True}, {"rank_pattern": {"q_proj": 2}}, {"modules_to_save": ["norm"]}])
def test_what_is_more_than_a_plain_lora_answers_beside_it_by_a_merged_copy(
    model: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    adapters = [make_adapter(tmp_path / "more", model, 3, **more), make_adapter(tmp_path / "plain", model, 4), None]
    chance = random.Random(13)
    prompts = [ids(chance, 40) for _ in range(9)]
    engine = make_engine(model)
    found = read(engine, prompts, *adapters)
    engine.close()
    for i, adapter in enumerate(adapters):
        assert gap(found[i::3], truth(model, prompts[i::3], adapter)) < BOUND["float32"]


def test_an_adapter_that_was_trained_again_under_its_name_is_read_again(model: Path, tmp_path: Path) -> None:
    chance = random.Random(14)
    head = ids(chance, 60)
    prompts = [head + ids(chance, 10) for _ in range(4)]
    engine = make_engine(model)
    folder = tmp_path / "adapter"
    for seed in (1, 2):
        adapter = make_adapter(folder, model, seed)
        assert gap(read(engine, prompts, adapter), truth(model, prompts, adapter)) < BOUND["float32"]
        engine.forget(adapter)
    engine.close()


def test_many_adapters_take_no_more_memory_than_allowed(model: Path, tmp_path: Path) -> None:
    adapters = [make_adapter(tmp_path / str(seed), model, seed) for seed in range(4)]
    chance = random.Random(15)
    prompts = [ids(chance, 30) for _ in range(8)]
    engine = make_engine(model, adapter_cache_bytes=1)
    found = read(engine, prompts, *adapters)
    layer = next(iter(engine._packed.linears.values()))
    engine.close()
    assert isinstance(layer, FastLinear) and len(layer._loras) == 1
    for i, adapter in enumerate(adapters):
        assert gap(found[i::4], truth(model, prompts[i::4], adapter)) < BOUND["float32"]


# ------------------------------------------------------------------------------------------- dtype, threads
@pytest.mark.parametrize(
    ("settings", "dtype", "exact"),
    [
        (EngineSettings(), torch.float32, True),
        (EngineSettings(exact_limit_bytes=0), torch.bfloat16, False),
        (EngineSettings(exact_limit_bytes=0, dtype="float32"), torch.float32, False),
        (EngineSettings(dtype="bfloat16"), torch.bfloat16, False),
    ],
)
def test_small_models_stay_in_float32_and_others_take_what_the_machine_is_fast_at(
    model: Path, monkeypatch: pytest.MonkeyPatch, settings: EngineSettings, dtype: torch.dtype, exact: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    engine = Engine(str(model), settings)
    assert (engine._packed.base.dtype, engine.exact) == (dtype, exact)


def test_a_cpu_without_bfloat16_stays_in_float32(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True})
    assert Engine(str(model), EngineSettings(exact_limit_bytes=0))._packed.base.dtype == torch.float32


def test_a_dtype_that_is_asked_for_gives_the_provider_another_identity_and_auto_does_not(model: Path) -> None:
    settings = ProviderSettings(name="mine", options={}, environ={})

    def identity(**options: str) -> str:
        return read_places(settings, LocalOptions(model=str(model), **options), "local").identity  # type: ignore[arg-type]

    assert identity(dtype="auto") == identity()
    assert identity(dtype="float32") == f"{identity()}:float32"


def test_an_unknown_dtype_is_refused_before_the_server_starts(model: Path, tmp_path: Path) -> None:
    from semievol_providers.server.command import serve

    with pytest.raises(ConfigError, match=r"--dtype 'float8' is unknown. Choose one of: auto, float32, bfloat16"):
        serve(str(model), dtype="float8", state=tmp_path / "state")


@pytest.mark.parametrize(
    ("told", "load", "weight_bytes", "threads"),
    [("", 0.1, 2**30, 4), ("", 2.2, 2**30, 2), ("", 9.0, 2**30, 1), ("3", 0.0, 2**30, 3), ("", 0.0, 2**20, 1)],
)
def test_idle_cores_are_used_unless_the_user_says_otherwise_or_the_model_is_small(
    monkeypatch: pytest.MonkeyPatch, told: str, load: float, weight_bytes: int, threads: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    assert idle_threads(weight_bytes) == threads
