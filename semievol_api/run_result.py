"""What a finished run is to its caller: the verdict, tables and arrays read from its folder, a view for notebooks.

    result = semievol_api.run("semievol.toml")
    looser = semievol_api.select(result.scores, result.calibration, alpha=0.2)

Reads the folder when it is asked. Knows nothing of how a run is walked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from semievol_api.engine import Ledger
from semievol_api.errors import RunFolderError
from semievol_api.notebook import html_table
from semievol_api.selection.values import Calibration, FloatArray
from semievol_api.selection.warnings import slow_stage
from semievol_api.store.artifacts import Selection
from semievol_api.store.frames import evidence_frame, labels_frame, models_frame
from semievol_api.store.run_store import load_artifact
from semievol_api.store.verdict import Verdict
from semievol_api.tasks import Task

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


@dataclass(frozen=True, repr=False)
class RunResult:
    """A finished run: what `semievol_api.run` returns. Tables are read from the run's folder when they are asked for.

    Attributes
    ----------
    verdict : Verdict
        Accuracies in [0, 1], paired differences in points, the gate and the selection's promise, as JSON values in
        `verdict.document`.
    folder : Path
        The run's folder: every artifact, the journal of paid answers, the report.
    computed : tuple of str
        The artifacts that this call made; the others were there already.
    ledger : Ledger
        What this call sent and paid by stage, in requests, tokens and USD.
    seconds : Mapping of str to float
        Wall seconds of each artifact, whichever process made it.
    calibration : Calibration or None
        Scores and errors, both of shape (n,), on the labelled examples that were held back (D_cal); None where the
        run held none back. With `scores` it selects anew: see `select`.
    scores : ndarray of float64, shape (m,)
        The score of every unlabelled example, higher is better, NaN = abstain, in the order of `labels`: the pooled
        probability of its label, or the negative `mean_nll` in nats in `paper` mode.
    labels, report, evidence : pandas.DataFrame
        A row an unlabelled example, a model, an answer; they need pandas.

    Raises
    ------
    MissingExtraError
        A data frame is asked for and pandas is not installed.

    Examples
    --------
    >>> result = semievol_api.run("semievol.toml")
    >>> result.calibration
    Calibration(n=50, wrong=...)
    >>> result.scores.shape
    (60,)
    """

    verdict: Verdict
    folder: Path
    computed: tuple[str, ...]
    ledger: Ledger
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    task: Task | None = field(default=None, compare=False)

    @property
    def advice(self) -> str | None:
        """What would make such a run shorter, where one stage took over half of its time."""
        return slow_stage(self.seconds)

    @property
    def report(self) -> pd.DataFrame:
        """A row a model: accuracy, interval, tokens."""
        return models_frame(self.verdict)

    @property
    def evidence(self) -> pd.DataFrame:
        """A row an answer of any model to any question, with how sure it was."""
        return evidence_frame(self.folder)

    @property
    def labels(self) -> pd.DataFrame:
        """A row an unlabelled example: its pseudo-label, its score, whether it was kept."""
        return labels_frame(self.folder)

    @property
    def calibration(self) -> Calibration | None:
        """Scores and errors on the held-out labelled examples; None where the run held none back."""
        table = self._selection.calibration
        if self.task is None or table is None or not len(table):
            return None
        pairs = zip(table["answer"].to_pylist(), table["gold"].to_pylist(), strict=True)
        wrong = np.array([not self.task.equal(answer, gold) for answer, gold in pairs], dtype=np.bool_)
        return Calibration(scores=_numbers(table["score"]), wrong=wrong)

    @property
    def scores(self) -> FloatArray:
        """The score of every unlabelled example, float64 (m,), higher is better, NaN = abstain."""
        table = self._selection.scores
        pooled = "score" in table.names(0)
        found = _numbers(table["score" if pooled else "mean_nll"])
        return found if pooled else -found

    @property
    def _selection(self) -> Selection:
        found = load_artifact(self.folder, "select", Selection)
        if found is None:
            raise RunFolderError(f"The run {str(self.folder)!r} has selected nothing yet. Run its config first.")
        return found

    def __repr__(self) -> str:
        verdict = self.verdict
        shown = ", ".join(f"{model.label} {model.accuracy:.1%}" for model in verdict.models)
        tested = f"{shown} of {verdict.n_test} test questions" if shown else "not tested"
        chosen = verdict.selection
        kept = "" if chosen is None else f"; {chosen.kept} of {chosen.unlabeled} pseudo-labels kept"
        return f"RunResult({str(self.folder)!r}: {tested}{kept})"

    def _repr_html_(self) -> str:
        """The verdict as a notebook shows it."""
        verdict = self.verdict
        rows = [(m.label, f"{m.accuracy:.1%}", f"{m.low:.1%} to {m.high:.1%}") for m in verdict.models]
        notes = [*verdict.notes, verdict.sentence, f"Everything is in {self.folder}"]
        return html_table(f"{verdict.n_test} test questions", ("model", "accuracy", "95 % interval"), rows, notes)


def _numbers(column: pa.ChunkedArray) -> FloatArray:
    """A column as float64, shape (rows,), NaN where it has no value."""
    return np.asarray(column.to_numpy(), dtype=np.float64)
