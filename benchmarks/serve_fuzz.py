"""Made-up requests from the API's specification, sent to a server of ours: 5,000 of them, and what was answered.

    python -m benchmarks.serve_fuzz --json --check      # exit 1 at a 5xx, a hang or an answer that does not conform

Needs `schemathesis` (in the extra `dev`). Knows nothing of what the server does with them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.serve import ROOT, make_model
from benchmarks.serve_servers import semievol_server

FUZZ = ROOT / "tests" / "providers" / "server_fuzz.py"


def main() -> int:
    """Fuzz, print, and check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--check", action="store_true", help="exit 1 where an answer is none of the API")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        make_model(model, layers=2, width=64)
        since = time.monotonic()
        with semievol_server(model, Path(folder), 1) as url:
            command = [sys.executable, str(FUZZ), url, "--requests", str(asked.requests), "--seed", str(asked.seed)]
            done = subprocess.run(command, capture_output=True, text=True)
    found = json.loads(done.stdout) if done.returncode == 0 else {"failure": done.stderr[-1500:], "requests": 0}
    met = found["requests"] >= asked.requests
    report = {"met": met, "seconds": round(time.monotonic() - since, 1), **found}
    sys.stdout.write(json.dumps(report, indent=None if asked.json else 2) + "\n")
    return 1 if asked.check and not met else 0


if __name__ == "__main__":
    sys.exit(main())
