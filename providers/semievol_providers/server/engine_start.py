"""Starts the engine process; gives signs of its life, and ends it when the server is gone, while torch still loads.

Loading takes seconds; without this, engines of a server that is killed again and again would pile up. Knows nothing
of what the engine does.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

from semievol_providers.server.engine_pulse import SharedPipe, start_beating

_LOOK_EVERY_S = 0.5


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY_S)
    os._exit(1)


def main() -> None:
    """Run the engine for the server whose process id is the second argument."""
    threading.Thread(target=_end_with, args=(int(sys.argv[2]),), daemon=True).start()
    out = SharedPipe(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # whatever prints by accident goes to standard error
    start_beating(out, json.loads(sys.argv[1])["beat_s"])
    from semievol_providers.server.engine_process import main as serve

    serve(out)


if __name__ == "__main__":
    main()
