"""A batch of samples that is decoded together: prefill once per prompt, then one step per token.

Shapes are fixed: prompts are prefilled `prefill_rows` at a time at a bucketed length, samples decoded
`decode_rows` at a time behind a cache whose length depends on the prompt's own bucket. So a row's bits never
depend on its neighbours, its place or its time of arrival. Knows nothing of queues, adapters or HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from semievol_providers.local.chat_tokens import ChatTokens
from semievol_providers.local.requests import EngineSettings, GenerateRequest, SampleOutput, TokenChoice
from semievol_providers.local.sampling import RowSampling, choose, random_stream
from semievol_providers.local.transcript import Transcript

MAX_TOP = 20


class Listener(Protocol):
    """Where the samples of one request go; called on the engine's thread."""

    @property
    def dropped(self) -> bool:
        """True when nobody waits any more."""
        ...

    def progress(self, transcript: Transcript, output: SampleOutput | None) -> None:
        """A sample grew by a token; `output` is set when it ended."""
        ...

    def fail(self, error: Exception) -> None:
        """The request cannot be answered."""
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """One sample of one request, and who waits for it."""

    request: GenerateRequest
    sample: int
    listener: Listener


@dataclass(frozen=True, slots=True)
class Frame:
    """What a group needs to run: the model, its text side, its end-of-turn tokens and the shapes."""

    model: PreTrainedModel
    tokens: ChatTokens
    end_ids: frozenset[int]
    pad_id: int
    settings: EngineSettings


def prompt_bucket(length: int, settings: EngineSettings) -> int:
    """The padded length at which a prompt of `length` tokens is prefilled."""
    return -(-length // settings.prompt_bucket) * settings.prompt_bucket


def cache_bucket(length: int, settings: EngineSettings) -> int:
    """The padded cache length behind which a prompt of `length` tokens is decoded: powers of two."""
    bucket = 128
    while bucket < prompt_bucket(length, settings):
        bucket *= 2
    return bucket


def padded_batch(prompts: Sequence[Sequence[int]], rows: int, length: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Left-padded ids and mask, both (rows, length); spare rows hold one padding token that is attended."""
    ids = torch.full((rows, length), pad_id, dtype=torch.long)
    mask = torch.zeros((rows, length), dtype=torch.long)
    mask[len(prompts) :, -1] = 1
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[row, length - len(prompt) :] = 1
    return ids, mask


class BatchGroup:
    """Rows of one model and one cache bucket, from prefill to the last token."""

    def __init__(self, rows: Sequence[Row], frame: Frame) -> None:
        self.rows = list(rows)
        self._frame = frame
        settings = frame.settings
        size = settings.decode_rows
        self._width = cache_bucket(max(len(row.request.prompt_ids) for row in rows), settings)
        self._transcripts = [
            Transcript(row.sample, row.request.max_tokens, row.request.stop, frame.tokens) for row in rows
        ]
        self._streams = [random_stream(row.request.seed, row.sample) for row in rows]
        idle = RowSampling(1.0, 1.0)
        self._sampling = [_row_sampling(row.request) for row in rows] + [idle] * (size - len(rows))
        self._scored = any(row.request.top_logprobs is not None for row in rows)
        self._alternatives = any(row.request.top_logprobs for row in rows)
        self._counts: Tensor | None = None
        self._live = set(range(len(rows)))
        self._cache, self._logits, self._mask = self._prefill()
        self._position = self._mask.sum(1)

    @property
    def finished(self) -> bool:
        """True when every row has ended."""
        return not self._live

    # ------------------------------------------------------------------------------------------- prefill
    def _prefill(self) -> tuple[DynamicCache, Tensor, Tensor]:
        frame, size, width = self._frame, self._frame.settings.decode_rows, self._width
        where: dict[tuple[int, ...], list[int]] = {}
        for i, row in enumerate(self.rows):
            where.setdefault(row.request.prompt_ids, []).append(i)
        by_length: dict[int, list[tuple[int, ...]]] = {}
        for prompt in where:
            by_length.setdefault(prompt_bucket(len(prompt), frame.settings), []).append(prompt)
        device = frame.model.device
        mask = torch.zeros((size, width), dtype=torch.long)
        mask[len(self.rows) :, -1] = 1
        logits: Tensor | None = None
        layers: list[tuple[Tensor, Tensor]] = []
        for length, prompts in sorted(by_length.items()):
            for start in range(0, len(prompts), frame.settings.prefill_rows):
                chunk = prompts[start : start + frame.settings.prefill_rows]
                last, filled = self._prefill_chunk(chunk, length)
                if logits is None:
                    logits = last.new_zeros((size, last.shape[-1]))
                    layers = [(_blank(k, size, width), _blank(v, size, width)) for k, v in filled]
                source = [j for j, prompt in enumerate(chunk) for _ in where[prompt]]
                target = [i for prompt in chunk for i in where[prompt]]
                _copy_rows((logits, layers), (last, filled), (source, target))
                for j, i in zip(source, target, strict=True):
                    mask[i, width - len(chunk[j]) :] = 1
        assert logits is not None
        cache = DynamicCache()
        for number, (keys, values) in enumerate(layers):
            cache.update(keys, values, number)
        return cache, logits, mask.to(device)

    def _prefill_chunk(
        self, prompts: Sequence[tuple[int, ...]], length: int
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        frame = self._frame
        ids, mask = padded_batch(prompts, frame.settings.prefill_rows, length, frame.pad_id)
        ids, mask = ids.to(frame.model.device), mask.to(frame.model.device)
        cache = DynamicCache()
        out = frame.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        filled: list[tuple[Tensor, Tensor]] = []
        for layer in cache.layers:
            if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None:
                raise ValueError(f"Models with a {type(layer).__name__} cache are not supported.")
            filled.append((layer.keys, layer.values))
        return out.logits[:, -1].float(), filled

    # -------------------------------------------------------------------------------------------- decode
    def step(self) -> None:
        """Choose one token for every live row, hand over what ended, and run the model once more."""
        self._live = {i for i in self._live if not self.rows[i].listener.dropped}
        draws = torch.zeros(len(self._sampling), dtype=torch.float64)
        for i in self._live:
            draws[i] = self._streams[i].random()
        chosen = choose(self._logits, self._sampling, draws, self._token_counts())
        self._record(chosen)
        if self._live:
            self._advance(chosen)

    def _record(self, chosen: Tensor) -> None:
        ids: list[int] = chosen.tolist()
        logprobs: list[float] = []
        top: tuple[list[list[float]], list[list[int]]] = ([], [])
        if self._scored:
            scores = self._logits.log_softmax(-1)
            logprobs = scores.gather(1, chosen[:, None])[:, 0].tolist()
            if self._alternatives:
                best = scores.topk(min(MAX_TOP, scores.shape[1]), dim=-1)
                top = (best.values.tolist(), best.indices.tolist())
        for i in sorted(self._live):
            request, transcript = self.rows[i].request, self._transcripts[i]
            kept: tuple[TokenChoice, ...] | None = None
            if request.top_logprobs:
                pairs = zip(top[1][i], top[0][i], strict=True)
                kept = tuple(TokenChoice(t, v) for t, v in pairs)[: request.top_logprobs]
            score = logprobs[i] if request.top_logprobs is not None else None
            transcript.add(ids[i], ids[i] in self._frame.end_ids, score, kept)
            self._hand_over(i)

    def _hand_over(self, i: int) -> None:
        row, transcript = self.rows[i], self._transcripts[i]
        output = None
        if transcript.finish is not None:
            wanted = row.request.top_logprobs
            output = transcript.output(scored=wanted is not None, alternatives=bool(wanted))
            self._live.discard(i)
        row.listener.progress(transcript, output)

    def _token_counts(self) -> Tensor | None:
        if self._counts is None and any(s.presence_penalty or s.frequency_penalty for s in self._sampling):
            self._counts = torch.zeros_like(self._logits)
        return self._counts

    def _advance(self, chosen: Tensor) -> None:
        model = self._frame.model
        if self._counts is not None:
            self._counts.scatter_add_(1, chosen[:, None], torch.ones_like(chosen[:, None], dtype=torch.float32))
        self._mask = torch.cat([self._mask, self._mask.new_ones((self._mask.shape[0], 1))], dim=1)
        out = model(
            input_ids=chosen[:, None],
            attention_mask=self._mask,
            position_ids=self._position[:, None],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._position = self._position + 1
        self._logits = out.logits[:, -1].float()


def _row_sampling(request: GenerateRequest) -> RowSampling:
    return RowSampling(request.temperature, request.top_p, request.presence_penalty, request.frequency_penalty)


def _blank(like: Tensor, rows: int, width: int) -> Tensor:
    return like.new_zeros((rows, like.shape[1], width, like.shape[3]))


def _copy_rows(
    into: tuple[Tensor, list[tuple[Tensor, Tensor]]],
    out_of: tuple[Tensor, list[tuple[Tensor, Tensor]]],
    rows: tuple[list[int], list[int]],
) -> None:
    """Copy prefilled rows to their places, aligned at the end of the cache."""
    source = torch.tensor(rows[0], device=into[0].device)
    target = torch.tensor(rows[1], device=into[0].device)
    into[0][target] = out_of[0][source]
    for (keys, values), (new_keys, new_values) in zip(into[1], out_of[1], strict=True):
        length = new_keys.shape[2]
        keys[target, :, -length:] = new_keys[source]
        values[target, :, -length:] = new_values[source]
