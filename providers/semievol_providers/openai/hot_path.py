"""One POST to one endpoint, with the key in the headers and errors as ours.

Knows nothing of what is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from semievol_api.errors import TransientError
from semievol_providers.openai.error_translation import error_from_answer, error_on_the_way
from semievol_providers.openai.settings import Connection

if TYPE_CHECKING:  # aiohttp takes its time to import: only who sends needs it
    from semievol_api.transport.http import HttpResponse, HttpSend

SLOT_HEADER = "x-semievol-slot"
"""Read by cassettes; what sends to the network drops it."""


class HotPath:
    """Sends bodies to the paths of one connection."""

    def __init__(self, connection: Connection, send: HttpSend) -> None:
        self.connection = connection
        self._send = send
        self._headers = connection.headers

    async def post(self, path: str, body: bytes, model: str, slot: str = "") -> HttpResponse:
        """The answer with status 200. `slot` tells a cassette apart what is worded alike.

        Raises:
            RateLimitError, TransientError, RefusedError: see error_translation.py.
        """
        connection = self.connection
        headers = {**self._headers, SLOT_HEADER: slot} if slot else self._headers
        try:
            answer = await self._send("POST", connection.url(path, model), body, headers, connection.timeout_s)
        except TransientError as error:
            raise error_on_the_way(path.strip("/"), error, connection) from error
        if answer.status != 200:
            raise error_from_answer(path.strip("/"), answer.status, answer.headers, answer.body, connection)
        return answer
