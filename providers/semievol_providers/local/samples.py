"""Samples under way: who waits for them, how far they are, and how all of a pass take their next token.

Knows nothing of models, caches or queues.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from semievol_providers.local.chat_tokens import ChatTokens
from semievol_providers.local.requests import GenerateRequest, SampleOutput, TokenChoice
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


class Growing:
    """A sample under way. `token` was chosen last and is the next to be fed, at index `position` of its cache."""

    def __init__(self, row: Row, tokens: ChatTokens) -> None:
        request = row.request
        self.request = request
        self.listener = row.listener
        self.position = len(request.prompt_ids)
        self.token = 0
        self.sampling = RowSampling(
            request.temperature, request.top_p, request.presence_penalty, request.frequency_penalty
        )
        self.transcript = Transcript(row.sample, request.max_tokens, request.stop, tokens)
        self.counts: Tensor | None = None
        self._stream = random_stream(request.seed, row.sample) if request.temperature > 0 else None

    @property
    def over(self) -> bool:
        """True when it has ended or nobody waits for it."""
        return self.transcript.finish is not None or self.listener.dropped

    def draw(self) -> float:
        """The next number of its random stream, in [0, 1); 0 where it is greedy."""
        return 0.0 if self._stream is None else float(self._stream.random())


class NextTokens:
    """`take` chooses and records one token for each sample of a pass."""

    def __init__(self, tokens: ChatTokens, end_ids: frozenset[int]) -> None:
        self._tokens = tokens
        self._end_ids = end_ids

    def start(self, row: Row) -> Growing:
        """A sample whose prompt has been read."""
        return Growing(row, self._tokens)

    def take(self, logits: Tensor, samples: Sequence[Growing]) -> None:
        """Row i of the float32 `logits` (samples, vocabulary) belongs to `samples[i]`."""
        draws = torch.tensor([sample.draw() for sample in samples], dtype=torch.float64)
        for sample in samples:
            if sample.counts is None and sample.sampling.penalises:
                sample.counts = logits.new_zeros(logits.shape[1])
        chosen = choose(logits, [sample.sampling for sample in samples], draws, [sample.counts for sample in samples])
        ids: list[int] = chosen.tolist()
        scored = [i for i, sample in enumerate(samples) if sample.request.top_logprobs is not None]
        scores = _Scores(logits, chosen, scored, any(sample.request.top_logprobs for sample in samples))
        for i, sample in enumerate(samples):
            token = sample.token = ids[i]
            if sample.counts is not None:
                sample.counts[token] += 1
            score, top = scores.of(i, sample.request.top_logprobs)
            transcript = sample.transcript
            transcript.add(token, token in self._end_ids, score, top)
            output = None
            if transcript.finish is not None:
                wanted = sample.request.top_logprobs
                output = transcript.output(scored=wanted is not None, alternatives=bool(wanted))
            sample.listener.progress(transcript, output)


class _Scores:
    """Log-probabilities of the rows that asked for them, computed for all of them at once."""

    def __init__(self, logits: Tensor, chosen: Tensor, rows: Sequence[int], alternatives: bool) -> None:
        self._place = {row: place for place, row in enumerate(rows)}
        self._chosen: list[float] = []
        self._values: list[list[float]] = []
        self._ids: list[list[int]] = []
        if not rows:
            return
        index = torch.tensor(rows, device=logits.device)
        whole = len(rows) == len(logits)
        scores = (logits if whole else logits[index]).log_softmax(-1)
        self._chosen = scores.gather(1, (chosen if whole else chosen[index])[:, None])[:, 0].tolist()
        if alternatives:
            best = scores.topk(min(MAX_TOP, scores.shape[1]), dim=-1)
            self._values, self._ids = best.values.tolist(), best.indices.tolist()

    def of(self, row: int, wanted: int | None) -> tuple[float | None, tuple[TokenChoice, ...] | None]:
        """The chosen token's log-probability, and the likeliest tokens; None where not wanted."""
        if wanted is None:
            return None, None
        place = self._place[row]
        if not wanted:
            return self._chosen[place], None
        pairs = zip(self._ids[place][:wanted], self._values[place][:wanted], strict=True)
        return self._chosen[place], tuple([TokenChoice(token, value) for token, value in pairs])
