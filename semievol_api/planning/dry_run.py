"""The pipeline itself, on a sample of the data, over providers that send nothing: what would it ask?

Runs in a temporary folder and leaves nothing behind. Knows nothing of prices.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from semievol_api.config import Config, Limits
from semievol_api.data import RawData, subsample
from semievol_api.pipeline import semievol
from semievol_api.planning.answer_key import AnswerKey, Guess
from semievol_api.planning.demand import Demand, Shares
from semievol_api.planning.dry_provider import DryCounter, DrySettings, dry_provider
from semievol_api.planning.prefix_cache import PrefixCache
from semievol_api.records import Example
from semievol_api.run_store import RunStore
from semievol_api.session import Plan, Silent, open_tools
from semievol_api.tasks import Task

SAMPLE_SEED = 0
OWN_SERVER = "semievol"


async def dry_run(plan: Plan, raw: RawData, counter: DryCounter, guess: Guess, rows: int) -> Demand:
    """The demand of the whole run, from at most `rows` rows of each part of the data."""
    sample = _sample(raw, rows)
    demand = Demand(_shares(plan.task, raw, sample))
    known = (*sample.unlabeled, *sample.test, *sample.development, *sample.labeled)
    key = AnswerKey(plan.task, known, guess)

    def on_stage(name: str, state: str) -> None:
        if state == "started":
            demand.stage = name

    with tempfile.TemporaryDirectory(prefix="semievol-plan-") as folder:
        config = _dry_config(plan.config, Path(folder))
        providers = {
            name: dry_provider(
                provider,
                DrySettings(
                    provider=name,
                    counter=counter,
                    demand=demand,
                    key=key,
                    cache=PrefixCache.of_vendor(plan.catalogue, provider.vendor),
                    own_server=provider.vendor == OWN_SERVER,
                ),
            )
            for name, provider in plan.providers.items()
        }
        dry = replace(plan, config=config, providers=providers)
        with RunStore.open(Path(folder), "plan") as store:
            store.on_stage = on_stage
            async with open_tools(dry, sample, Silent()) as tools:
                await semievol(tools, store, plan.task, sample, config)
    return demand


def _dry_config(config: Config, folder: Path) -> Config:
    """The same config in another folder, without caps, and without the costly parts of the verdict."""
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"folder": folder, "journal": None, "engine": "local"}),
            "limits": Limits(),
            "train": config.train.model_copy(update={"poll_s": 0.001}),
            "evaluate": config.evaluate.model_copy(update={"resamples": 100}),
        }
    )


def _sample(raw: RawData, rows: int) -> RawData:
    return replace(
        raw,
        labeled=subsample(raw.labeled, rows, SAMPLE_SEED),
        unlabeled=subsample(raw.unlabeled, rows, SAMPLE_SEED),
        test=subsample(raw.test, rows, SAMPLE_SEED),
        development=subsample(raw.development, rows, SAMPLE_SEED),
    )


def _shares(task: Task, raw: RawData, sample: RawData) -> Shares:
    part_of_turn = {
        task.prompt(example).messages[-1].content: part
        for part, examples in (
            ("test", sample.test),
            ("unlabeled", sample.unlabeled),
            ("development", sample.development),
            ("labeled", sample.labeled),
        )
        for example in examples
    }
    return Shares(
        labeled=_ratio(raw.labeled, sample.labeled),
        unlabeled=_ratio(raw.unlabeled, sample.unlabeled),
        test=_ratio(raw.test, sample.test),
        development=_ratio(raw.development, sample.development),
        part_of_turn=part_of_turn,
    )


def _ratio(whole: Sequence[Example], part: Sequence[Example]) -> float:
    return len(whole) / len(part) if part else 1.0
