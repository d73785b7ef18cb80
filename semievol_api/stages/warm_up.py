"""In-weight propagation: the base model learns the labelled examples (paper §3.2, M_warm = FT(M_base, D_lab))."""

from __future__ import annotations

from semievol_api.artifacts import Prepared, TrainingFile
from semievol_api.stages.fine_tune import chat_jsonl, check_enough, training_line
from semievol_api.tasks import Task


async def warm_up_file(task: Task, data: Prepared) -> TrainingFile:
    """The labelled examples as a training file."""
    check_enough(data.labeled, "The labelled data")
    return chat_jsonl(training_line(task, e, e.answer or "") for e in data.labeled)
