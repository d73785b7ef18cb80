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
from semievol_api.experiments.grid import Experiment
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
    journals = [folder / JOURNAL] if experiment.experiment.share else sorted(folder.glob(f"runs/*/{JOURNAL}"))
    paid = stored = requests = 0
    for path in journals:
        of = _journal(path)
        paid, stored, requests = paid + of[0], stored + of[1], requests + of[2]
    jobs = jobs_under(folder / "runs")
    ids, keys = {job.job_id for job in jobs}, {job.run_key for job in jobs}
    return Counters(
        answers_needed=sum(cell.row.answers for cell in done),
        answers_paid=paid,
        answers_repeated=paid - stored,
        requests_paid=requests,
        trainings_needed=len(jobs),
        jobs_paid=len(ids),
        jobs_repeated=len(ids) - len(keys),
    )


def _journal(path: Path) -> tuple[int, int, int]:
    """Chat samples that were paid for, those that are stored, and all requests."""
    with closing(Journal.read_only(path)) as journal:
        totals = journal.totals()
        (stored,) = journal.connection.execute(
            "SELECT count(*) FROM samples JOIN sources ON sources.id = samples.source WHERE sources.kind <> 'embed'"
        ).fetchone()
    chats = [total for total in totals if total.source.kind != "embed"]
    return sum(t.samples for t in chats), int(stored), sum(t.requests for t in totals)
