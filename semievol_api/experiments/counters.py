"""Was anything asked or trained twice? Counted from what is on disk, whichever process did it.

Knows nothing of servers; what one says that it served can be laid beside these counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from semievol_api.engine.journal import Journal
from semievol_api.experiments.cell import DoneCell
from semievol_api.experiments.grid import Experiment, cells
from semievol_api.experiments.runner import JOURNAL
from semievol_api.jobs import jobs_under


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What all arms needed against what was paid for.

    `answers_repeated`: samples that were paid for although the journal held them. `jobs_repeated`: jobs beyond one
    per training file, base, hyper-parameters and seed.
    """

    answers_needed: int
    answers_paid: int
    answers_repeated: int
    requests_paid: int
    trainings_needed: int
    jobs_paid: int
    jobs_repeated: int


def count(experiment: Experiment, done: Sequence[DoneCell]) -> Counters:
    """The counters of a finished experiment, or of one on its way."""
    folder = experiment.experiment.folder
    runs = [folder / "runs" / cell.name for cell in cells(experiment)]
    journals = [folder / JOURNAL] if experiment.experiment.share else [run / JOURNAL for run in runs]
    counted = [_journal(path, {str(run) for run in runs}) for path in journals]
    jobs = [job for run in runs for job in jobs_under(run)]
    ids, keys = {job.job_id for job in jobs}, {job.run_key for job in jobs}
    return Counters(
        answers_needed=sum(cell.row.answers for cell in done),
        answers_paid=sum(one.answers for one in counted),
        answers_repeated=sum(one.repeated for one in counted),
        requests_paid=sum(cell.row.paid_requests for cell in done),
        trainings_needed=len(jobs),
        jobs_paid=len(ids),
        jobs_repeated=len(ids) - len(keys),
    )


@dataclass(frozen=True, slots=True)
class _Counted:
    """One journal: answers that were paid for by some runs, and those that any run paid for a second time."""

    answers: int
    repeated: int


def _journal(path: Path, runs: set[str]) -> _Counted:
    with closing(Journal.read_only(path)) as journal:
        totals = journal.totals()
        (stored,) = journal.connection.execute(
            "SELECT count(*) FROM samples JOIN sources ON sources.id = samples.source WHERE sources.kind <> 'embed'"
        ).fetchone()
    chats = [total for total in totals if total.source.kind != "embed"]
    mine = sum(total.samples for total in chats if total.source.run in runs)
    return _Counted(mine, sum(total.samples for total in chats) - int(stored))
