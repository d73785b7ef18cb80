"""What a run has paid so far: answers from its journal, trainings from its models.

Knows nothing of plans.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semievol_api.config import Config
from semievol_api.engine.journal import Journal
from semievol_api.records import Usage


@dataclass(frozen=True)
class Spent:
    """Sums over all processes of a run; `stages` are the engine's names, `trained_tokens` by job.

    `usd` is what requests cost; `trainings_usd` what trainings did, None where a price is not known.
    """

    requests: int
    usage: Usage
    usd: float
    stages: Mapping[str, Usage]
    trained_tokens: Mapping[str, int]
    trainings_usd: float | None = None


def spent_by(config: Config) -> Spent | None:
    """The run's ledger; None where nothing was paid yet."""
    path = config.run.journal or config.run.folder / "journal.sqlite"
    if not path.is_file():
        return None
    journal = Journal.create(path)
    try:
        totals = [t for t in journal.totals() if t.source.run == str(config.run.folder)]
    finally:
        journal.close()
    stages: dict[str, Usage] = {}
    for t in totals:
        usage = Usage(t.prompt_tokens, t.completion_tokens, t.cached_tokens)
        stages[t.source.stage] = stages.get(t.source.stage, Usage()) + usage
    jobs = _jobs(config.run.folder)
    prices = [float(job["training_usd"]) for job in jobs.values() if job.get("training_usd") is not None]
    return Spent(
        requests=sum(t.requests for t in totals),
        usage=sum(stages.values(), Usage()),
        usd=sum(t.usd for t in totals),
        stages=stages,
        trained_tokens={name: int(job["trained_tokens"]) for name, job in jobs.items() if job.get("trained_tokens")},
        trainings_usd=sum(prices) if len(prices) == len(jobs) else None,
    )


def _jobs(folder: Path) -> dict[str, dict[str, Any]]:
    """What is noted of each model that was trained, by job."""
    return {
        path.parent.name.removesuffix("-model"): json.loads(path.read_text("utf-8"))
        for path in sorted(folder.glob("jobs/*-model/model.json"))
    }
