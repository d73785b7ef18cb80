"""Iterations: what one round keeps is labelled data in the next, which works on the rest (paper §3.5, method §1.7).

A round is the whole pipeline in a folder of its own. Its calibration fold is drawn anew from the labels that people
gave; these are like the whole pool and not like what is left of it, which selection takes into account. Knows nothing
of what happens inside a round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from semievol_api.artifacts import Folds, Prepared, Selection, Verdict
from semievol_api.config import Config
from semievol_api.data import Pool, RawData
from semievol_api.pipeline import semievol
from semievol_api.records import Example
from semievol_api.run_store import RunStore
from semievol_api.tasks import Task
from semievol_api.tools import Tools


async def all_rounds(tools: Tools, store: RunStore, task: Task, raw: RawData, config: Config) -> Verdict:
    """The verdict of the last round; later rounds lie in `round-2`, `round-3` ...

    It ends early where a round keeps too little to train on, or nothing is left to label. Such a round has no evolved
    model of its own: the verdict before it stands.
    """
    if config.select.rule != "human-budget":
        raw = with_reviewed(raw)
    verdict, room = await semievol(tools, store, task, raw, config), store
    for turn in range(2, config.run.rounds + 1):
        chosen = room.load("select", Selection)
        if not chosen.enough or not chosen.kept or len(chosen.kept) == len(chosen.scores):
            break
        raw = after(raw, room.load("prepare", Prepared), room.load("split", Folds), chosen)
        room = store.room(f"round-{turn}")
        fresh = config.run.model_copy(update={"seed": config.run.seed + turn - 1})
        found = await semievol(tools, room, task, raw, config.model_copy(update={"run": fresh}))
        added = room.load("select", Selection)
        if not added.enough:
            return _standing(verdict, turn, len(added.kept))
        verdict = found
    return verdict


def _standing(verdict: Verdict, turn: int, kept: int) -> Verdict:
    """The verdict of the round before one that kept too little, and that this is so."""
    said = f"Round {turn} kept {kept} pseudo-labels more, too few to train on: this is the verdict of round {turn - 1}."
    notes = cast("Sequence[str]", verdict.document["notes"])
    return Verdict({**verdict.document, "notes": [*notes, said]})


def with_reviewed(raw: RawData) -> RawData:
    """The data in which what a person reviewed is labelled and no longer asked about."""
    if not raw.reviewed:
        return raw
    answered = tuple(replace(e, answer=raw.reviewed[e.id]) for e in raw.unlabeled if e.id in raw.reviewed)
    unlabeled = raw.unlabeled
    rest: Sequence[Example]
    if isinstance(unlabeled, Pool):
        rest = unlabeled.without([row for row, name in unlabeled.ids() if name in raw.reviewed])
    else:
        rest = tuple(e for e in unlabeled if e.id not in raw.reviewed)
    return replace(raw, labeled=(*raw.labeled, *answered), unlabeled=rest)


def after(raw: RawData, data: Prepared, folds: Folds, chosen: Selection) -> RawData:
    """The data of the next round: kept pseudo-labels are taught, what gates stays held out."""
    answers = {p.example_id: p.answer for p in chosen.kept}
    gate = {e.id for e in folds.development}
    return replace(
        raw,
        labeled=tuple(e for e in data.labeled if e.id not in gate),
        unlabeled=tuple(e for e in data.unlabeled if e.id not in answers),
        test=data.test,
        development=folds.development,
        taught=(*raw.taught, *(replace(e, answer=answers[e.id]) for e in data.unlabeled if e.id in answers)),
    )
