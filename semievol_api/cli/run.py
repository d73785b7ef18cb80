"""A run's verdict as a table and one honest sentence.

Knows nothing of how the numbers were made.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from semievol_api.cli.screen import out, table
from semievol_api.experiments.results import Results
from semievol_api.planning.bill import Spent
from semievol_api.report.report_data import no_better_than_majority
from semievol_api.session import RunResult
from semievol_api.training.jobs import job_artifact, jobs_under


def show_result(result: RunResult, *, as_json: bool, spent: Spent | None = None) -> None:
    """Print the verdict of a finished run; JSON for a program, a table for a person.

    `spent` is what the run has cost over all its processes.
    """
    document: dict[str, Any] = dict(result.verdict.document)
    bills = result.ledger.stages.values()
    asked = {
        "requests": sum(bill.requests for bill in bills),
        "attempts": sum(bill.attempts for bill in bills),
        "computed": list(result.computed),
    }
    trained = {job.name: job.model for job in jobs_under(result.folder) if job.model}
    if as_json:
        document |= {"trained": trained, "folder": str(result.folder), "seconds": dict(result.seconds)}
        document |= {"this_process": asked}
        sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")
        return
    console = out()
    if document["n_test"]:
        console.print(_models(document, result.seconds))
        console.print(_differences(document["differences"]))
    for line in (*document["notes"], *_beware(document), *filter(None, [result.advice]), document["sentence"]):
        console.print(line, markup=False)
    for name, model in trained.items():
        console.print(f"Trained ({name}): {model}", markup=False, soft_wrap=True)
    if spent is not None and spent.usd + (spent.trainings_usd or 0.0) > 0:
        trainings = "an unknown price" if spent.trainings_usd is None else f"{spent.trainings_usd:.2f} USD"
        console.print(f"Paid so far: {spent.usd:.2f} USD for requests, {trainings} for trainings.", markup=False)
    console.print(
        f"This process asked {asked['requests']} requests and made {len(result.computed)} artifacts; the rest was "
        f"there. Everything is in {result.folder}",
        markup=False,
        soft_wrap=True,
    )
    console.print(f"To read it, with every label: semievol report {result.folder}", markup=False, soft_wrap=True)


def _beware(document: Mapping[str, Any]) -> list[str]:
    """Whether the trained model says more than the most frequent answer."""
    against = [d for d in document.get("differences", []) if d["against"] == "majority" and d["interval"][0] <= 0]
    return [f"Beware: {no_better_than_majority(d['of_label'], *d['interval'])}" for d in against]


def _models(document: Mapping[str, Any], seconds: Mapping[str, float]) -> object:
    rows = [
        [
            model["label"],
            f"{100 * model['accuracy']:.1f}",
            f"[{100 * model['interval'][0]:.1f}, {100 * model['interval'][1]:.1f}]".replace("[", r"\["),
            str(model["trained_tokens"] or "-"),
            str(model["tokens"] or "-"),
            _seconds(seconds, model["name"]),
        ]
        for model in document["models"]
    ]
    columns = ["model", "accuracy %", "95 % interval", "training tokens", "answer tokens", "seconds"]
    return table(f"n = {document['n_test']} test questions", columns, rows)


def _seconds(seconds: Mapping[str, float], name: str) -> str:
    """Training and evaluation of one model, as they took when they were made."""
    made_by = (job_artifact(name, "ticket"), job_artifact(name, "model"), f"evaluate/{name}")
    spent = [seconds.get(key, 0.0) for key in made_by]
    return f"{sum(spent):.1f}" if sum(spent) else "-"


def _differences(differences: Sequence[Mapping[str, Any]]) -> object:
    rows = [
        [
            f"{d['of_label']} - {d['against_label']}",
            f"{d['points']:+.1f}",
            rf"\[{d['interval'][0]:+.1f}, {d['interval'][1]:+.1f}]",
            f"{d['mcnemar_p']:.3g}",
            f"{d['smallest_detectable']:.1f}",
        ]
        for d in differences
    ]
    columns = ["paired difference", "points", "95 % interval", "McNemar p", "smallest detectable"]
    return table("", columns, rows)


def show_results(console: Console, results: Results) -> None:
    """The table in Markdown, and the counters in one sentence each."""
    console.print(results.text, markup=False, soft_wrap=True)
    counted = results.counters
    console.print(
        f"The arms needed {counted.answers_needed:,} answers and paid for {counted.answers_paid:,}; "
        f"{counted.answers_repeated} were paid for twice.\n"
        f"They needed {counted.trainings_needed} trainings and bought {counted.jobs_paid} jobs; "
        f"{counted.jobs_repeated} were bought twice.\n"
        f"Everything is in {results.folder}",
        markup=False,
    )


def results_as_json(results: Results) -> dict[str, object]:
    """The summary and the counters for a program."""
    return {
        "folder": str(results.folder),
        "arms": [asdict(arm) for arm in results.summary],
        "counters": asdict(results.counters),
    }
