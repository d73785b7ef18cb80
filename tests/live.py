"""One small run at a real vendor, recorded: `make live PROVIDER=openai`, or `python -m tests.live openai`.

    openai      examples/gpt-4o-mini.toml       needs OPENAI_API_KEY
    nebius      examples/llama-3.1-8b.toml      needs NEBIUS_API_KEY

Shows the plan, asks, spends 1 USD at most, and leaves a cassette in cassettes/PROVIDER/live whose manifest says who
answered. Without a key it says that it was not run. Nothing of this is part of `make test`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from semievol_api.cassettes.exchange import read_manifest
from semievol_api.cli.plan import show_plan
from semievol_api.cli.screen import out
from semievol_api.config.settings import Config, load_config
from semievol_api.errors import SemievolError
from semievol_api.planning.estimating import estimate
from semievol_api.session import run_async, run_blocking

ROOT = Path(__file__).resolve().parent.parent
MOST_USD = 1.0
SMALL = {"data.max_labeled": 24, "data.max_unlabeled": 24, "data.max_test": 12, "train.n_epochs": 1}
Say = Callable[[str], object]


@dataclass(frozen=True)
class Vendor:
    """Which example is run, and where its key is."""

    example: str
    key: str


VENDORS = {
    "openai": Vendor("gpt-4o-mini.toml", "OPENAI_API_KEY"),
    "nebius": Vendor("llama-3.1-8b.toml", "NEBIUS_API_KEY"),
}


def live(
    name: str,
    into: Path,
    ask: Callable[[str], str] = input,
    say: Say = sys.stdout.write,
    changes: Mapping[str, object] | None = None,
) -> int:
    """Plan, ask, run, record; the exit code. `changes` are further keys of the config."""
    vendor = VENDORS[name]
    if not os.environ.get(vendor.key):
        say(f"NOT RUN: the variable {vendor.key} is not set, so nothing was asked of {name} and nothing recorded.\n")
        return 0
    config = load_config(ROOT / "examples" / vendor.example, {**_settings(name, into), **(changes or {})})
    planned = run_blocking(estimate(config))
    show_plan(out(), planned, None)
    if planned.usd is None or planned.usd.high > MOST_USD:
        say(f"NOT RUN: the plan has no price, or may cost more than {MOST_USD:g} USD.\n")
        return 1
    answer = ask(f"Up to {planned.usd.high:.2f} USD at {name}, {MOST_USD:g} at the very most. Start? [y/N] ")
    if answer.strip().lower() not in ("y", "yes"):
        say("NOT RUN: you did not say yes.\n")
        return 0
    return _record(config, into, say)


def _settings(name: str, into: Path) -> dict[str, object]:
    return {
        **SMALL,
        "run.folder": str(ROOT / "runs" / f"live-{name}"),
        "limits.max_usd": MOST_USD,
        "cassette.path": str(into.resolve()),
        "cassette.mode": "record",
    }


def _record(config: Config, into: Path, say: Say) -> int:
    result = run_blocking(run_async(config))
    manifest = read_manifest(into)
    usd = sum(bill.usd for bill in result.ledger.stages.values())
    say(f"{result.verdict.document['sentence']}\nRequests cost {usd:.4f} USD; trainings come besides.\n")
    say(f"{manifest.exchanges} exchanges in {into}, recorded against {manifest.recorded_against}.\n")
    return 0


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("provider", choices=sorted(VENDORS))
    chosen = parser.parse_args()
    try:
        code = live(chosen.provider, ROOT / "cassettes" / chosen.provider / "live")
    except SemievolError as error:
        sys.stderr.write(f"live: {error}\n")
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    main()
