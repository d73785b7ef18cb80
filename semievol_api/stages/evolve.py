"""The final training: M_evol = FT(M_base, D_sel and D_lab) (paper Eq. 9; Algorithm 1 leaves D_lab out)."""

from __future__ import annotations

from collections.abc import Mapping

from semievol_api.artifacts import Prepared, Selection, TrainingFile
from semievol_api.config import TrainSettings
from semievol_api.records import TrainingExample
from semievol_api.stages.fine_tune import chat_jsonl, check_enough, training_line
from semievol_api.tasks import Task


async def evolve_file(task: Task, data: Prepared, selection: Selection, settings: TrainSettings) -> TrainingFile:
    """Labelled examples and kept pseudo-labels as a training file."""
    unlabeled = {e.id: e for e in data.unlabeled}
    lines = [training_line(task, unlabeled[p.example_id], p.answer, p.text) for p in selection.kept]
    return _with_labeled(task, data, lines, settings)


async def ceiling_file(
    task: Task, data: Prepared, selection: Selection, gold: Mapping[str, str], settings: TrainSettings
) -> TrainingFile:
    """The same rows with their gold answers: what perfect pseudo-labels would have taught."""
    unlabeled = {e.id: e for e in data.unlabeled}
    rows = [(unlabeled[p.example_id], gold[p.example_id]) for p in selection.kept if p.example_id in gold]
    return _with_labeled(task, data, [training_line(task, e, answer) for e, answer in rows], settings)


def _with_labeled(task: Task, data: Prepared, lines: list[TrainingExample], settings: TrainSettings) -> TrainingFile:
    if settings.data == "selected+labeled":
        lines = [training_line(task, e, e.answer or "") for e in data.labeled] + lines
    check_enough(lines, "The final training file")
    return chat_jsonl(lines)
