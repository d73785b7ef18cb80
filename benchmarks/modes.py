"""The three modes on the demo, side by side: `python -m benchmarks.modes --json`.

Each mode runs against one server of its own with the demo's model and data; what a run made is kept in `--folder`,
so a second call only prints. Knows nothing of how a mode works.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import semievol_api.demo
from semievol_api.config.settings import MODES, Config, load_config
from semievol_api.demo.embedded_server import serving
from semievol_api.session import run_async, run_blocking

DEMO = Path(semievol_api.demo.__file__).parent


def main() -> None:
    """Run the modes and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "semievol-modes")
    parser.add_argument(
        "--modes", nargs="+", choices=sorted(map(str, MODES)), default=["paper", "calibrated", "official-2025"]
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--demo", type=Path, default=DEMO, help="a folder like semievol_api/demo")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON", help="overrides, such as select.alpha=0.2")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    overrides = {key: json.loads(value) for key, _, value in (text.partition("=") for text in chosen.set)}
    with serving(chosen.demo / "model", "demo-llama", chosen.folder / "server") as url:
        overrides = {"run.seed": chosen.seed, "providers.server.base_url": url, **overrides}
        rows = [run_mode(mode, chosen.demo, chosen.folder, overrides) for mode in chosen.modes]
    print(json.dumps(rows, indent=2) if chosen.json else table(rows))


def run_mode(mode: str, demo: Path, folder: Path, overrides: Mapping[str, object]) -> dict[str, Any]:
    """One mode's run, as a row."""
    config = demo_config(mode, demo, folder, overrides)
    result = run_blocking(run_async(config, accept_change=True))
    document: dict[str, Any] = dict(result.verdict.document)
    selection, oracle, gate = document["selection"], document["oracle"] or {}, document.get("gate", {})
    accuracies = {model["label"]: round(100 * model["accuracy"], 1) for model in document["models"]}
    gain = next((d for d in document["differences"] if d["of"] == "semievol"), None)
    return {
        "mode": mode,
        **accuracies,
        "evolved - SFT": None if gain is None else [round(x, 1) for x in (gain["points"], *gain["interval"])],
        "kept": selection["kept"],
        "coverage": round(selection["kept"] / selection["unlabeled"], 3),
        "false share": round(oracle["false_share"], 3) if oracle else None,
        "promised": f"alpha {selection['alpha']:g} on average" if selection.get("guarantee") else "nothing",
        "gate": gate.get("message", "none"),
        "requests": sum(bill.requests for bill in result.ledger.stages.values()),
        "seconds": round(sum(result.seconds.values()), 1),
        "notes": document["notes"],
    }


def demo_config(mode: str, demo: Path, folder: Path, overrides: Mapping[str, object]) -> Config:
    """The demo's config in another mode; a gate on the development file in the calibrated one."""
    name = f"{mode}-{overrides.get('run.seed', 0)}"
    changes: dict[str, object] = {
        "run.mode": mode,
        "run.folder": str(folder.resolve() / name),
        "run.journal": str(folder.resolve() / "journal.sqlite"),
        **overrides,
    }
    if mode == "calibrated":
        changes["data.dev"] = "data/dev.csv"
    return load_config(demo / "demo.toml", changes)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown, modes as columns."""
    names = list(dict.fromkeys(name for row in rows for name in row if name not in ("mode", "notes")))
    lines = [f"| | {' | '.join(row['mode'] for row in rows)} |", "|---" * (len(rows) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(str(row.get(name, '-')) for row in rows)} |" for name in names]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
