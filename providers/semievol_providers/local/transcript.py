"""The growing answer of one sample: its tokens, its text, and whether it has ended.

Works on bytes, so that characters made of several tokens and stop strings that cross tokens come out right.
Knows nothing of models, batches or probabilities beyond storing them.
"""

from __future__ import annotations

from collections.abc import Sequence

from semievol_providers.local.chat_tokens import ChatTokens
from semievol_providers.local.requests import Delta, FinishReason, SampleOutput, TokenChoice


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
