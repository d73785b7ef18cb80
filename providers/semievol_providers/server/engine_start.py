"""Starts the engine process; gives signs of its life, and ends it when the server is gone, while torch still loads.

Loading takes seconds; without this, engines of a server that is killed again and again would pile up. Knows nothing
of what the engine does.
"""

from __future__ import annotations

import json
import os
import select
import sys
import threading

from semievol_providers.server.engine_pulse import SharedPipe, start_beating


def _end_with_input() -> None:
    """End as soon as nobody writes to standard input any more, whatever else is done or still to be read."""
    gone = select.poll()
    gone.register(0, select.POLLHUP)
    gone.poll()
    os._exit(1)


def main() -> None:
    """Run the engine for the server at the other end of standard input."""
    threading.Thread(target=_end_with_input, daemon=True).start()
    out = SharedPipe(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # whatever prints by accident goes to standard error
    start_beating(out, json.loads(sys.argv[1])["beat_s"])
    from semievol_providers.server.engine_process import main as serve

    serve(out)


if __name__ == "__main__":
    main()
