"""Samples that are decoded together: their caches, how a token is chosen, and the text that comes of it.

Samples whose caches are padded to one width share a bucket, which holds keys and values in slots without gaps. All
buckets run in one pass; attention is computed bucket by bucket, so its shape for a sample follows from the sample's own
length. Every sample draws from a random stream of its own, so it never depends on its neighbours. Knows nothing of
prompts, queues or who waits.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from semievol_providers.local.chat_tokens import ChatTokens
from semievol_providers.local.constrained import Constraint, Grammars, SchemaError
from semievol_providers.local.packed import Layers, Look, PackedModel, Tokens, attention, cache_width, no_mask
from semievol_providers.local.requests import (
    Delta,
    FinishReason,
    GenerateRequest,
    Read,
    ReadRequest,
    SampleOutput,
    TokenChoice,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
        self._told = 0

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
        certain = len(output.token_ids) if output is not None else bisect_right(self._ends, self._sent)
        told = slice(self._told, certain)
        if not text and output is None:
            return None
        self._told = certain
        return Delta(
            index=self.index,
            text=text,
            output=output,
            token_ids=tuple(self._ids[told]),
            logprobs=tuple(self._logprobs[told]) if self._logprobs else None,
            top=tuple(self._top[told]) if self._top else None,
        )


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


_MAX_TOP = 20


class _Listener(Protocol):
    """Where the samples of one request go; called on the engine's thread."""

    @property
    def dropped(self) -> bool:
        """True when the request was cancelled."""
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
    listener: _Listener

    @property
    def grows(self) -> bool:
        """Whether it may need a place in the steps after its prompt was read."""
        return self.request.max_tokens > 1

    @property
    def over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.listener.dropped

    def fail(self, error: Exception) -> None:
        """It cannot be answered."""
        self.listener.fail(error)


@dataclass(frozen=True, slots=True, eq=False)
class ReadRow:
    """One look at the token after a prompt; it is answered by the prompt's pass."""

    request: ReadRequest
    future: Future[Read]
    grows = False
    sample = 0

    @property
    def over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.future.done()

    def answer(self, logprobs: Tensor) -> None:
        """`logprobs` float32 (vocabulary,) of the next token."""
        groups = self.request.token_groups
        read = tuple([float(torch.logsumexp(logprobs[list(group)], 0)) if group else None for group in groups])
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(Read(read, len(self.request.prompt_ids)))

    def fail(self, error: Exception) -> None:
        """It cannot be answered; nothing happens where it has been."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class DecodingSequence:
    """A sample under way. `token` was chosen last and is the next to be fed, at index `position` of its cache."""

    def __init__(self, row: Row, tokens: ChatTokens, constraint: Constraint | None = None) -> None:
        request = row.request
        self.constraint = constraint
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

    def fail(self, error: Exception) -> None:
        """It cannot be answered."""
        self.listener.fail(error)


class NextTokens:
    """`take` chooses and records one token for each sample of a pass."""

    def __init__(self, tokens: ChatTokens, end_ids: frozenset[int], grammars: Grammars | None = None) -> None:
        self._tokens = tokens
        self._end_ids = end_ids
        self._grammars = grammars

    def start(self, row: Row) -> DecodingSequence:
        """A sample whose prompt has been read."""
        schema, grammar = row.request.schema, row.request.grammar
        if self._grammars is None or (schema is None and grammar is None):
            return DecodingSequence(row, self._tokens)
        return DecodingSequence(row, self._tokens, self._grammars.start(schema, grammar))

    def take(self, logits: Tensor, samples: Sequence[DecodingSequence]) -> None:
        """Row i of the float32 `logits` (samples, vocabulary) belongs to `samples[i]`.

        A sample that is held to a schema draws from what that allows; its scores stay those of all tokens.
        """
        draws = torch.tensor([sample.draw() for sample in samples], dtype=torch.float64)
        for sample in samples:
            if sample.counts is None and sample.sampling.penalises:
                sample.counts = logits.new_zeros(logits.shape[1])
        allowed = _constrained(logits, samples)
        chosen = choose(allowed, [sample.sampling for sample in samples], draws, [sample.counts for sample in samples])
        ids: list[int] = chosen.tolist()
        scored = [i for i, sample in enumerate(samples) if sample.request.top_logprobs is not None]
        scores = _Scores(logits, chosen, scored, any(sample.request.top_logprobs for sample in samples))
        for i, sample in enumerate(samples):
            token = sample.token = ids[i]
            if sample.constraint is not None:
                if sample.listener.dropped:
                    continue
                sample.constraint.take(token)
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


def _constrained(logits: Tensor, samples: Sequence[DecodingSequence]) -> Tensor:
    """The logits with what each sample's schema forbids masked out; the same tensor where none has one."""
    held = [(i, sample) for i, sample in enumerate(samples) if sample.constraint is not None]
    if not held:
        return logits
    logits = logits.clone()
    for i, sample in held:
        assert sample.constraint is not None
        try:
            logits[i] = sample.constraint.masked(logits[i])
        except SchemaError as error:
            sample.listener.fail(error)
    return logits


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
            best = scores.topk(min(_MAX_TOP, scores.shape[1]), dim=-1)
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


_FIRST_SLOTS = 4


class KVCacheBucket:
    """Slots of `width` tokens; sample i lies in slot i."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.samples: list[DecodingSequence] = []
        self.stores: list[tuple[Tensor, Tensor]] = []

    @property
    def allocated_bytes(self) -> int:
        """Memory of keys and values."""
        return sum(store.numel() * store.element_size() for pair in self.stores for store in pair)

    def join(self, sample: DecodingSequence, layers: Layers) -> None:
        """Let a sample in with what its cache holds so far."""
        slot = len(self.samples)
        if not self.stores or slot == len(self.stores[0][0]):
            self._grow(layers)
        self.samples.append(sample)
        for pair, news in zip(self.stores, layers, strict=True):
            for store, new in zip(pair, news, strict=True):
                store[slot, :, : new.shape[1]] = new

    def leave(self, slot: int) -> DecodingSequence:
        """Take a sample out; the last one moves to its slot."""
        left, last = self.samples[slot], len(self.samples) - 1
        if slot != last:
            self.samples[slot] = self.samples[last]
            for pair in self.stores:
                for store in pair:
                    store[slot] = store[last]
        self.samples.pop()
        return left

    def layers_of(self, slot: int) -> Layers:
        """A copy of what one slot holds."""
        return [(keys[slot].clone(), values[slot].clone()) for keys, values in self.stores]

    def held_of(self, slot: int) -> Layers:
        """A copy of the tokens that one slot's sample has, without the empty rest."""
        end = self.samples[slot].position
        return [(keys[slot, :, :end].clone(), values[slot, :, :end].clone()) for keys, values in self.stores]

    def _grow(self, layers: Layers) -> None:
        slots = max(_FIRST_SLOTS, 2 * len(self.samples))
        grown: list[tuple[Tensor, Tensor]] = []
        for number, news in enumerate(layers):
            keys, values = (new.new_zeros((slots, new.shape[0], self.width, new.shape[2])) for new in news)
            if self.stores:
                for old, store in zip(self.stores[number], (keys, values), strict=True):
                    store[: len(old)] = old
            grown.append((keys, values))
        self.stores = grown


class KVCacheBuckets:
    """`put` samples in, `settle` after some ended, `advance` all by a token."""

    def __init__(self) -> None:
        self._buckets: dict[int, KVCacheBucket] = {}

    @property
    def samples(self) -> list[DecodingSequence]:
        """Those that are under way, in the order of their rows."""
        return [sample for bucket in self._buckets.values() for sample in bucket.samples]

    @property
    def allocated_bytes(self) -> int:
        """Memory of all slots."""
        return sum(bucket.allocated_bytes for bucket in self._buckets.values())

    def put(self, sample: DecodingSequence, layers: Layers) -> None:
        """Let a sample join that has read so many tokens."""
        width = cache_width(sample.position + 1)
        if width not in self._buckets:
            self._buckets[width] = KVCacheBucket(width)
        self._buckets[width].join(sample, layers)

    def compact(self) -> None:
        """Let those go that are over, and move those that have filled their slots."""
        for bucket in list(self._buckets.values()):
            for slot in reversed(range(len(bucket.samples))):
                sample = bucket.samples[slot]
                if sample.over:
                    bucket.leave(slot)
                elif sample.position >= bucket.width:
                    layers = bucket.layers_of(slot)
                    self.put(bucket.leave(slot), layers)

    def take_out(self, sample: DecodingSequence) -> Layers:
        """Let a sample go that is under way; `put` with what this returns lets it go on."""
        bucket = next(bucket for bucket in self._buckets.values() if sample in bucket.samples)
        slot = bucket.samples.index(sample)
        layers = bucket.held_of(slot)
        bucket.leave(slot)
        return layers

    def free(self) -> None:
        """Give back the slots of empty buckets."""
        self._buckets = {width: bucket for width, bucket in self._buckets.items() if bucket.samples}

    def advance(self, packed: PackedModel, model: PreTrainedModel) -> Tensor:
        """Feed every sample's token; float32 logits (samples, vocabulary) of the next, in the order of `samples`."""
        buckets = [bucket for bucket in self._buckets.values() if bucket.samples]
        samples = self.samples
        plan = _BucketPlan(buckets)
        tokens = Tokens(
            [sample.token for sample in samples],
            [sample.position for sample in samples],
            [(sample.request.adapter, 1) for sample in samples],
        )
        logits = packed.logits(model, tokens, plan, torch.arange(len(samples)))
        for sample in samples:
            sample.position += 1
        return logits


class _BucketRows:
    """The rows of one bucket in a pass: where their tokens are written, and what they see."""

    def __init__(self, bucket: KVCacheBucket, start: int) -> None:
        self._bucket = bucket
        self._device = bucket.stores[0][0].device
        self._places = torch.tensor([sample.position for sample in bucket.samples], device=self._device)
        self._span = slice(start, start + len(bucket.samples))
        self._masks: dict[int | None, Tensor] = {}
        self._index: Tensor | None = None

    def attend(self, layer: int, states: Sequence[Tensor], look: Look, out: Tensor) -> None:
        query, key, value = (state.transpose(0, 1)[self._span] for state in states)
        keys, values = self._bucket.stores[layer]
        count, kept = len(self._places), keys.shape[1]
        index = self._written(kept)
        for store, new in ((keys, key), (values, value)):
            store.view(-1, store.shape[3]).index_copy_(0, index, new.reshape(-1, new.shape[2]))
        grouped = query.reshape(count, kept, -1, query.shape[2])  # heads that share keys are as rows of one head
        mask = self._mask(look.window, grouped)
        found = attention(grouped, keys[:count], values[:count], mask, look)
        out[self._span] = found.reshape(count, -1, found.shape[3])

    def _written(self, kept: int) -> Tensor:
        """Where the new tokens of all heads lie in a store of slots, heads and places."""
        if self._index is None:
            first = torch.arange(len(self._places) * kept, device=self._device) * self._bucket.width
            self._index = first + self._places.repeat_interleave(kept)
        return self._index

    def _mask(self, window: int | None, query: Tensor) -> Tensor:
        found = self._masks.get(window)
        if found is None:
            index = torch.arange(self._bucket.width, device=self._device)
            hidden = index > self._places[:, None]
            if window is not None:
                hidden |= index <= self._places[:, None] - window
            shown = no_mask(hidden.shape, query).masked_fill_(hidden, -math.inf)
            found = self._masks[window] = shown[:, None, None]
        return found.expand(-1, 1, query.shape[2], -1)


class _BucketPlan:
    """One token of every sample of these buckets."""

    def __init__(self, buckets: Iterable[KVCacheBucket]) -> None:
        self._parts: list[_BucketRows] = []
        start = 0
        for bucket in buckets:
            self._parts.append(_BucketRows(bucket, start))
            start += len(bucket.samples)

    def attend(self, layer: int, states: tuple[Tensor, Tensor, Tensor], look: Look) -> Tensor:
        query, _, value = states
        out = query.new_zeros((query.shape[1], query.shape[0], value.shape[2]))
        for part in self._parts:
            part.attend(layer, states, look, out)
        return out
