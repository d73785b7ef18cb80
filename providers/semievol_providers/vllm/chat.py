"""Chat, scored chat and option reading on the vLLM engine, with the very tokens and texts of provider `local`.

Knows nothing of how the engine is started or of jobs.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any

from semievol_api.capabilities import ChatRequest, OptionReply, OptionRequest, Reply
from semievol_api.errors import TransientError
from semievol_api.records import Usage
from semievol_providers.local.chat import AdapterOf, completion_of, prompt_ids
from semievol_providers.local.chat_tokens import ChatTokens, label_token_ids
from semievol_providers.local.decoding import Transcript
from semievol_providers.local.requests import SampleOutput, TokenChoice
from semievol_providers.vllm.engine import VllmEngine


class TextSide:
    """The tokenizer and the end-of-turn tokens, loaded once when first needed."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._loaded: tuple[ChatTokens, frozenset[int]] | None = None
        self._lock = asyncio.Lock()

    async def load(self) -> tuple[ChatTokens, frozenset[int]]:
        """The tokens and the ids that end a turn."""
        async with self._lock:
            if self._loaded is None:
                self._loaded = await asyncio.to_thread(self._read)
            return self._loaded

    def _read(self) -> tuple[ChatTokens, frozenset[int]]:
        from semievol_providers.local.model_folder import end_of_turn_ids, load_tokenizer

        tokenizer = load_tokenizer(self._folder)
        return ChatTokens(tokenizer), end_of_turn_ids(self._folder, tokenizer)


class VllmChat:
    """`Chat`, `ScoredChat` and `OptionReader` on one engine."""

    def __init__(self, engine: VllmEngine, text: TextSide, adapter_of: AdapterOf) -> None:
        self._engine = engine
        self._text = text
        self._adapter_of = adapter_of

    async def complete(self, request: ChatRequest) -> Reply:
        """All `n` samples in one request, so that the prompt is prefilled once.

        Raises:
            RefusedError: an unknown model, or a prompt that vLLM or the chat template refuses.
            TransientError: the engine died.
        """
        tokens, ends = await self._text.load()
        done = await self._engine.generate(
            prompt_ids(tokens, request.prompt), _sampling(request, ends), self._adapter_of(request.model)
        )
        outputs = sorted(done.outputs, key=lambda output: output.index)
        samples = [_sample(output, request, tokens, ends) for output in outputs]
        return Reply(
            completions=tuple([completion_of(sample, tokens) for sample in samples]),
            usage=_usage(done, sum(len(output.token_ids) for output in outputs)),
        )

    async def read(self, request: OptionRequest) -> OptionReply:
        """Exact: vLLM scores the labels' own tokens in one prefill. A label that is no single token is None.

        Raises:
            RefusedError: an unknown model, or a prompt that vLLM or the chat template refuses.
            TransientError: the engine died.
        """
        tokens, _ = await self._text.load()
        groups = [label_token_ids(label, tokens.encode_rendered, tokens.decode) for label in request.labels]
        wanted = sorted({token for group in groups for token in group})
        if not wanted:
            return OptionReply(logprobs=(None,) * len(groups), usage=Usage())
        sampling = {"max_tokens": 1, "temperature": 1.0, "seed": 0, "logprob_token_ids": wanted}
        done = await self._engine.generate(
            prompt_ids(tokens, request.prompt), sampling, self._adapter_of(request.model)
        )
        scores: Mapping[int, Any] = done.outputs[0].logprobs[0]
        missing = [token for token in wanted if token not in scores]
        if missing:
            raise TransientError(f"vLLM left out the scores of {len(missing)} of {len(wanted)} labels' tokens.")
        return OptionReply(
            logprobs=tuple([_sum_of([float(scores[token].logprob) for token in group]) for group in groups]),
            usage=_usage(done, 1),
        )


def _sampling(request: ChatRequest, ends: frozenset[int]) -> dict[str, object]:
    return {
        "n": request.n,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
        "stop": list(request.stop) or None,
        "stop_token_ids": sorted(ends),
        "logprobs": request.top_logprobs if request.logprobs else None,
    }


def _sample(output: Any, request: ChatRequest, tokens: ChatTokens, ends: frozenset[int]) -> SampleOutput:
    """One sample in our own terms: the end of turn left out, stop strings cut where they begin."""
    transcript = Transcript(output.index, request.max_tokens, request.stop, tokens)
    for place, token in enumerate(output.token_ids):
        scores: Mapping[int, Any] | None = output.logprobs[place] if request.logprobs else None
        top: tuple[TokenChoice, ...] | None = None
        if scores is not None and request.top_logprobs:
            ranked = sorted(scores.items(), key=lambda item: -item[1].logprob)[: request.top_logprobs]
            top = tuple([TokenChoice(number, float(score.logprob)) for number, score in ranked])
        logprob = float(scores[token].logprob) if scores is not None else None
        transcript.add(token, token in ends, logprob, top)
        if transcript.finish is not None:
            break
    if transcript.finish is None:
        transcript.finish = "length" if output.finish_reason == "length" else "stop"
    return transcript.output(scored=request.logprobs, alternatives=request.top_logprobs > 0)


def _usage(done: Any, completion: int) -> Usage:
    return Usage(prompt=len(done.prompt_token_ids), completion=completion, cached=done.num_cached_tokens or 0)


def _sum_of(logprobs: list[float]) -> float | None:
    if not logprobs:
        return None
    highest = max(logprobs)
    return highest + math.log(math.fsum(math.exp(value - highest) for value in logprobs))
