"""Starts the engine process, and ends it at once when the server is gone, even while torch is still being loaded.

Loading takes seconds; without this, engines of a server that is killed again and again would pile up. Knows nothing
of what the engine does.
"""

from __future__ import annotations

import os
import sys
import threading
import time

_LOOK_EVERY_S = 0.5


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY_S)
    os._exit(1)


def main() -> None:
    """Run the engine for the server whose process id is the second argument."""
    threading.Thread(target=_end_with, args=(int(sys.argv[2]),), daemon=True).start()
    from semievol_providers.server.engine_process import main as serve

    serve()


if __name__ == "__main__":
    main()
