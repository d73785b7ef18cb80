"""Plays the engine process: answers every chat with one word at once, and notes each question it is asked."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import msgspec

from semievol_providers.server.engine_wire import (
    Ask,
    ChatAsk,
    Choice,
    ChoicesTell,
    ReadyTell,
    SharedPipe,
    frame,
    read_ask,
    start_beating,
)


def main() -> None:
    """Answer until the input ends.

    A question that begins with BUSY keeps the processor for as many seconds; one that begins with NEVER has no answer.
    """
    out = SharedPipe(os.fdopen(os.dup(1), "wb"))
    start_beating(out, json.loads(sys.argv[1])["beat_s"])
    out.write(frame(ReadyTell(512)))
    decoder: msgspec.msgpack.Decoder[Ask] = msgspec.msgpack.Decoder(Ask)
    while (ask := read_ask(sys.stdin.buffer, decoder)) is not None:
        if isinstance(ask, ChatAsk):
            words = ask.messages[-1]["content"].split()
            with Path(sys.argv[2]).open("a") as asked:
                asked.write(" ".join(words) + "\n")
            if words[0] == "NEVER":
                continue
            until = time.monotonic() + (float(words[1]) if words[0] == "BUSY" else 0.0)
            while time.monotonic() < until:
                sum(range(100_000))
            out.write(frame(ChoicesTell(ask.id, 3, (Choice(index=0, text="yes", finish="stop", tokens=1),))))


if __name__ == "__main__":
    main()
