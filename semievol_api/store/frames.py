"""A run's tables as pandas DataFrames, for notebooks. Knows nothing of how they are shown or made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import to_builtins

from semievol_api.store.artifacts import Answers, EvidenceTable, Selection
from semievol_api.store.run_store import load_artifact
from semievol_api.store.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd


def models_frame(verdict: Verdict) -> pd.DataFrame:
    """A row a model: accuracy with its interval in [0, 1], what it abstained from, tokens."""
    import pandas as pd

    rows = [{**to_builtins(m), "low": m.low, "high": m.high} for m in verdict.models]
    return pd.DataFrame(rows).drop(columns="interval", errors="ignore")


def evidence_frame(folder: Path) -> pd.DataFrame:
    """A row an answer: the stage that asked, the example, the annotator, its answer and how sure it was."""
    import pandas as pd

    frames: list[pd.DataFrame] = []
    for stage in ("collaborate", "justify"):
        table = load_artifact(folder, stage, EvidenceTable)
        if table is not None:
            frames.append(table.table.to_pandas().assign(stage=stage))
    for path in sorted((folder / "evaluate").glob("*")):
        answers = load_artifact(folder, f"evaluate/{path.name}", Answers) if path.name[0] != "." else None
        if answers is not None:
            frame = answers.evidence.table.to_pandas().assign(stage=f"evaluate/{path.name}")
            frames.append(frame.assign(correct=frame["example_id"].map(dict(answers.correct))))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def labels_frame(folder: Path) -> pd.DataFrame:
    """A row an unlabelled example: its pseudo-label, its score, whether it was kept and why not."""
    import pandas as pd

    chosen = load_artifact(folder, "select", Selection)
    return pd.DataFrame() if chosen is None else chosen.scores.to_pandas()
