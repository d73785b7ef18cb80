"""In-weight propagation: the base model learns the labelled examples (paper §3.2, M_warm = FT(M_base, D_lab))."""

from __future__ import annotations

from collections.abc import Sequence

from semievol_api.artifacts import TrainingFile
from semievol_api.fingerprints import stage
from semievol_api.records import Example
from semievol_api.stages.fine_tune import chat_jsonl, check_enough, training_line
from semievol_api.tasks import Task


@stage("warm_up_file")
async def warm_up_file(task: Task, labeled: Sequence[Example]) -> TrainingFile:
    """Labelled examples as a training file."""
    check_enough(len(labeled), "The labelled data")
    return chat_jsonl(training_line(task, e, e.answer or "") for e in labeled)
