"""Choose the next token of every row of a batch, each row by its own settings and random stream.

Every operation works row by row, so a row's token never depends on its neighbours. Knows nothing of models,
text or scheduling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from semievol_providers.local.chat_tokens import ChatTokens
from semievol_providers.local.requests import Delta, FinishReason, SampleOutput, TokenChoice

_BLOCK = 128


@dataclass(frozen=True, slots=True)
class RowSampling:
    """How one row is sampled; `temperature` 0 is greedy."""

    temperature: float
    top_p: float
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    @property
    def penalises(self) -> bool:
        """Whether what was generated counts."""
        return bool(self.presence_penalty or self.frequency_penalty)


def random_stream(seed: int, sample: int) -> np.random.Generator:
    """The random numbers of one sample of one request."""
    key = np.array([seed & (2**64 - 1), sample], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def choose(logits: Tensor, rows: Sequence[RowSampling], draws: Tensor, counts: Sequence[Tensor | None]) -> Tensor:
    """Token ids, shape (rows,).

    `logits` float32 (rows, vocabulary) are left as they are; `draws` float64 (rows,) in [0, 1);
    `counts[i]` (vocabulary,) says how often row i generated each token, needed for penalties only.
    """
    used = {
        i: seen for i, (row, seen) in enumerate(zip(rows, counts, strict=True)) if row.penalises and seen is not None
    }
    if used:
        logits = _penalised(logits, rows, used)
    hot = [i for i, row in enumerate(rows) if row.temperature > 0]
    if not hot:
        return logits.argmax(-1)
    index = torch.tensor(hot, device=logits.device)
    heat = torch.tensor([rows[i].temperature for i in hot], dtype=torch.float32, device=logits.device)
    warm = logits if len(hot) == len(rows) else logits[index]
    probs = (warm / heat[:, None]).softmax(-1)
    nucleus = [j for j, i in enumerate(hot) if rows[i].top_p < 1]
    if nucleus:
        probs = _nucleus(probs, nucleus, [rows[hot[j]].top_p for j in nucleus])
    picked = _invert(probs, draws.to(logits.device)[index])
    return picked if len(hot) == len(rows) else logits.argmax(-1).index_copy(0, index, picked)


def _invert(probs: Tensor, draws: Tensor) -> Tensor:
    """The token at which each row's cumulative probability passes its draw; never one of probability 0.

    Looks for the block of tokens first and inside it then, which is much quicker than one long running sum.
    """
    blocks = torch.nn.functional.pad(probs, (0, -probs.shape[1] % _BLOCK)).view(len(probs), -1, _BLOCK)
    sums = blocks.sum(-1).double()
    upto = sums.cumsum(-1)
    target = (draws * upto[:, -1])[:, None]
    block = _passes(upto, target)
    before = upto.gather(1, block) - sums.gather(1, block)
    inside = blocks[torch.arange(len(probs), device=probs.device), block[:, 0]].double().cumsum(-1)
    return (block * _BLOCK + _passes(inside, target - before))[:, 0]


def _passes(cumulative: Tensor, target: Tensor) -> Tensor:
    """First position, shape (rows, 1), whose running sum exceeds the target, at most the last that adds to it."""
    last = (cumulative < cumulative[:, -1:]).sum(-1, keepdim=True)
    return torch.minimum(torch.searchsorted(cumulative, target, right=True), last)


def _penalised(logits: Tensor, rows: Sequence[RowSampling], counts: Mapping[int, Tensor]) -> Tensor:
    logits = logits.clone()
    for i, used in counts.items():
        logits[i] -= rows[i].frequency_penalty * used + rows[i].presence_penalty * (used > 0)
    return logits


def _nucleus(probs: Tensor, which: Sequence[int], top_p: Sequence[float]) -> Tensor:
    """Keep the fewest likeliest tokens whose probability reaches top_p, always at least one."""
    index = torch.tensor(which, device=probs.device)
    keep = torch.tensor(top_p, dtype=torch.float64, device=probs.device)
    ordered, order = probs[index].sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1, dtype=torch.float64) - ordered
    ordered = ordered.masked_fill(before >= keep[:, None], 0.0)
    ordered[:, 0] = ordered[:, 0].clamp(min=1e-30)
    return probs.index_copy(0, index, torch.zeros_like(ordered).scatter(-1, order, ordered))


class Transcript:
    """Collects one sample until `finish` is set."""

    def __init__(self, index: int, max_tokens: int, stop: Sequence[str], tokens: ChatTokens) -> None:
        self.index = index
        self.finish: FinishReason | None = None
        self._max_tokens = max_tokens
        self._stop = tuple(text.encode() for text in stop if text)
        self._tokens = tokens
        self._ids: list[int] = []
        self._ends: list[int] = []
        self._bytes = bytearray()
        self._logprobs: list[float] = []
        self._top: list[tuple[TokenChoice, ...]] = []
        self._counted = 0
        self._cut: int | None = None
        self._sent = 0

    def add(self, token_id: int, ends_turn: bool, logprob: float | None, top: tuple[TokenChoice, ...] | None) -> None:
        """Take the next token; the end-of-turn token is counted and otherwise left out."""
        self._counted += 1
        if ends_turn:
            self.finish = "stop"
            return
        searched_from = len(self._bytes)
        self._ids.append(token_id)
        self._bytes += self._tokens.token_bytes(token_id)
        self._ends.append(len(self._bytes))
        if logprob is not None:
            self._logprobs.append(logprob)
        if top is not None:
            self._top.append(top)
        self._look_for_stop(searched_from)
        if self.finish is None and self._counted >= self._max_tokens:
            self.finish = "length"

    def _look_for_stop(self, searched_from: int) -> None:
        found = [
            at for stop in self._stop if (at := self._bytes.find(stop, max(0, searched_from - len(stop) + 1))) >= 0
        ]
        if found:
            self._cut = min(found)
            self.finish = "stop"

    def output(self, scored: bool, alternatives: bool) -> SampleOutput:
        """The finished sample."""
        assert self.finish is not None
        end = len(self._bytes) if self._cut is None else self._cut
        kept = len(self._ids)
        if self._cut is not None:
            kept = sum(1 for k in range(len(self._ids)) if (self._ends[k - 1] if k else 0) < end)
        return SampleOutput(
            index=self.index,
            token_ids=tuple(self._ids[:kept]),
            text=bytes(self._bytes[:end]).decode("utf-8", errors="replace"),
            finish=self.finish,
            counted_tokens=self._counted,
            logprobs=tuple(self._logprobs[:kept]) if scored else None,
            top=tuple(self._top[:kept]) if alternatives else None,
        )

    def delta(self, output: SampleOutput | None) -> Delta | None:
        """The text that became certain since the last call; None where there is nothing to say yet."""
        end = len(self._bytes) if self._cut is None else self._cut
        if output is None:
            end -= max((len(stop) - 1 for stop in self._stop), default=0)
            end = max(self._sent, _whole_characters(self._bytes, end))
        text = bytes(self._bytes[self._sent : end]).decode("utf-8", errors="replace")
        self._sent = max(self._sent, end)
        return Delta(self.index, text, output) if text or output else None


def _whole_characters(data: bytearray, end: int) -> int:
    """The largest position up to `end` that does not split a UTF-8 character still being written."""
    for back in range(1, 4):
        at = end - back
        if at < 0:
            return end
        byte = data[at]
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return end if back >= length else at
        if byte < 0x80:
            return end
    return end
