"""The log-probabilities of answer labels, read off the alternatives at one place of a chat answer.

Two strategies. `prefill`: the server goes on from the prompt's first words of an answer, and the one token that
it adds is the place. `position`: the server writes a short answer itself and the place is where the label stands
in it. Either way a label counts only as a whole token, with or without a space before it; one that the server did
not list is None. Knows nothing of probabilities' use: calibration and votes are elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from semievol_api.capabilities import ChatRequest, OptionReply, OptionRequest
from semievol_providers.openai.chat import ChatDecoder, HotPath, TokenWithAlternatives, chat_body, encode
from semievol_providers.openai.errors import error_in_body, invalid_answer, pace_of

_WHAT = "chat/completions"
_ANSWER_TOKENS = 8
"""`Answer: X` in any vocabulary, a little markup and the end of the turn; a model that goes on is cut off."""
_UNSEEN = -9999.0
"""What vLLM writes for a token that it did not score."""


class OpenAIOptionReader:
    """`OptionReader` at one endpoint, by the strategy of its dialect."""

    def __init__(self, path: HotPath) -> None:
        self._path = path
        self._decoder = ChatDecoder()

    async def read(self, request: OptionRequest) -> OptionReply:
        """Read once; all None where the server shows no alternatives.

        Raises:
            RateLimitError: too many requests or tokens.
            TransientError: no answer, a broken one, or a server's own failure.
            RefusedError: the vendor does not accept the request.
        """
        connection = self._path.connection
        asked = self._question(request)
        answer = await self._path.post("/chat/completions", encode(chat_body(asked, connection.dialect)), request.model)
        try:
            positions = self._decoder.positions(answer.body)
        except msgspec.DecodeError as error:
            raise invalid_answer(_WHAT, answer.body, connection) from error
        if positions is None:
            raise error_in_body(_WHAT, answer, connection)
        place = 0 if asked.prompt.prefill is not None else label_place(positions.entries, request)
        here = positions.entries[place] if place is not None and place < len(positions.entries) else None
        logprobs = tuple([label_logprob(label, here) for label in request.labels])
        return OptionReply(
            logprobs=logprobs,
            usage=positions.usage,
            pace=pace_of(answer.headers),
            others=other_logprobs(request.labels, here) if None in logprobs else (),
        )

    def _question(self, request: OptionRequest) -> ChatRequest:
        """Temperature 1: some servers show the distribution after tempering."""
        dialect = self._path.connection.dialect
        by_prefill = dialect.option_read == "prefill" and request.prompt.prefill is not None
        return ChatRequest(
            model=request.model,
            prompt=request.prompt if by_prefill else replace(request.prompt, prefill=None),
            max_tokens=1 if by_prefill else _ANSWER_TOKENS,
            temperature=1.0 if by_prefill else 0.0,
            logprobs=True,
            top_logprobs=dialect.top_logprobs,
        )


def label_place(entries: Sequence[TokenWithAlternatives], request: OptionRequest) -> int | None:
    """Index of the first label after the last of the prefill's words, of the first word there without one.

    Without the prefill's words that of the first label.
    """
    marker, labels = (request.prompt.prefill or "").strip(), set(request.labels)
    start = "".join([entry.token for entry in entries]).rfind(marker)
    announced = bool(marker) and start >= 0
    words = _words_after(entries, start + len(marker) if announced else 0)
    label = next((place for place, word in words if word in labels), None)
    return words[0][0] if label is None and announced and words else label


def _words_after(entries: Sequence[TokenWithAlternatives], end: int) -> list[tuple[int, str]]:
    """Places and words of the tokens after so many characters."""
    found: list[tuple[int, str]] = []
    position = 0
    for place, entry in enumerate(entries):
        if position >= end and entry.token.strip():
            found.append((place, entry.token.strip()))
        position += len(entry.token)
    return found


def label_logprob(label: str, entry: TokenWithAlternatives | None) -> float | None:
    """Natural log of the label's probability at one place, its spellings with and without a space added up."""
    if entry is None:
        return None
    wanted = label.strip()
    seen = [logprob for token, logprob in _shown(entry).items() if token.strip() == wanted]
    if not seen:
        return None
    highest = max(seen)
    return highest + math.log(math.fsum([math.exp(value - highest) for value in seen]))


def other_logprobs(labels: Sequence[str], entry: TokenWithAlternatives | None) -> tuple[float, ...]:
    """Natural logs of the probabilities shown at one place for tokens that are no label."""
    wanted = {label.strip() for label in labels}
    shown = {} if entry is None else _shown(entry)
    return tuple([logprob for token, logprob in shown.items() if token.strip() not in wanted])


def _shown(entry: TokenWithAlternatives) -> dict[str, float]:
    """Every token shown at a place, each once."""
    pairs = [(entry.token, entry.logprob), *((o.token, o.logprob) for o in entry.top_logprobs or ())]
    return {token: logprob for token, logprob in pairs if logprob is not None and logprob > _UNSEEN}
