"""A loopback server in a thread of its own, for commands that run a loop of theirs.

    with serving(LoopbackServer()) as server: ...

Knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.providers.openai_loopback import LoopbackServer


@contextmanager
def serving(server: LoopbackServer) -> Iterator[LoopbackServer]:
    """The server, up until the block ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="loopback", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(10)
        yield server
        asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
