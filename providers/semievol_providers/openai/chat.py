"""Chat completions over an `HttpSend`: one POST per request, decoded only as far as it is used.

Knows nothing of retrying, pacing, journals or the SDK.
"""

from __future__ import annotations

import msgspec

from semievol_api.capabilities import ChatRequest, Reply
from semievol_providers.openai.chat_answer import ChatDecoder
from semievol_providers.openai.chat_body import chat_body, encode
from semievol_providers.openai.error_translation import error_in_body, invalid_answer
from semievol_providers.openai.hot_path import HotPath
from semievol_providers.openai.pace import pace_of


class OpenAIChat:
    """`Chat` and `ScoredChat` at one endpoint."""

    def __init__(self, path: HotPath) -> None:
        self._path = path
        self._decoder = ChatDecoder()

    async def complete(self, request: ChatRequest) -> Reply:
        """Answer once.

        Raises:
            RateLimitError: too many requests or tokens.
            TransientError: no answer, a broken one, or a server's own failure.
            RefusedError: the vendor does not accept the request.
            MissingAbilityError: the prompt has a prefill and the server cannot go on from one.
        """
        connection = self._path.connection
        slot = f"sample/{request.first_sample}" if request.first_sample else ""
        answer = await self._path.post(
            "/chat/completions", encode(chat_body(request, connection.dialect)), request.model, slot
        )
        try:
            reply = self._decoder.reply(answer.body, pace_of(answer.headers), alternatives=request.top_logprobs > 0)
        except msgspec.DecodeError as error:
            raise invalid_answer("chat/completions", answer.body, connection) from error
        if reply is None:
            raise error_in_body("chat/completions", answer, connection)
        return reply
