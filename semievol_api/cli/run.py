"""`semievol run`, `status`, `experiment` and `demo`, and a run's verdict as a table.

Heavy imports are inside the functions. Knows nothing of how the numbers were made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from semievol_api.cli.screen import (
    AcceptChange,
    AcceptLost,
    AsJson,
    Bars,
    ConfigPath,
    err,
    out,
    pairs,
    print_json,
    table,
)

if TYPE_CHECKING:
    from semievol_api.config.settings import Config
    from semievol_api.experiments.results import Results
    from semievol_api.planning.bill import Spent
    from semievol_api.session import RunResult
    from semievol_api.store.verdict import Difference, Verdict


def run(  # noqa: PLR0913 - a command line has as many options as it has
    config: ConfigPath,
    as_json: AsJson = False,
    accept_config_change: AcceptChange = False,
    yes: Annotated[bool, typer.Option("--yes", help="Skip the cost confirmation.")] = False,
    cassette: Annotated[
        Path | None, typer.Option(help="Folder to record the run into, or to replay it from.", show_default=False)
    ] = None,
    cassette_mode: Annotated[
        str | None, typer.Option(help="replay, record, record-missing or off.", show_default="replay")
    ] = None,
    accept_lost_journal: AcceptLost = False,
) -> None:
    """Run the method on a config. Run it again to continue where it stopped."""
    from semievol_api.config.settings import load_config
    from semievol_api.planning.bill import spent_by
    from semievol_api.session import refuse_lost_journal, run_async, run_blocking

    changes: dict[str, object] = {}
    if cassette is not None:
        changes["cassette.path"] = str(cassette.resolve())
    if cassette_mode is not None:
        changes["cassette.mode"] = cassette_mode
    settings = load_config(config, changes)
    if not accept_lost_journal:
        refuse_lost_journal(settings)
    if not yes:
        _agree_on_price(settings)
    with Bars(err()) as bars:
        result = run_blocking(run_async(settings, watcher=bars, accept_change=accept_config_change))
    show_result(result, as_json=as_json, spent=spent_by(settings))


def _agree_on_price(settings: Config) -> None:
    """Stop a run that costs more than allowed before its first paid call; a finished run is not planned again."""
    from semievol_api.planning.estimating import estimate, refuse_too_dear, worth_planning
    from semievol_api.session import run_blocking
    from semievol_api.store.run_store import stages_done

    if "verdict" not in stages_done(settings.run.folder) and worth_planning(settings):
        refuse_too_dear(settings, run_blocking(estimate(settings)), agreed=False)


def status(config: ConfigPath, as_json: AsJson = False) -> None:
    """Show which stages of a run are done, also while it runs."""
    from semievol_api.config.settings import load_config
    from semievol_api.store.run_store import stages_done

    done = stages_done(load_config(config).run.folder)
    if as_json:
        print_json({"done": done})
    elif not done:
        out().print(f"Nothing is done yet. Start with: semievol run {config}", markup=False)
    else:
        pairs(out(), "Done", {name: f"{seconds:.1f} s" for name, seconds in done.items()})


def experiment(
    path: Annotated[Path, typer.Argument(help="The experiment file, such as examples/ablations.toml.")],
    quick: Annotated[bool, typer.Option("--quick", help="Use tiny sizes and one seed, to check the setup.")] = False,
    folder: Annotated[Path | None, typer.Option(help="Folder for the results. Default: the one in the file.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of the demo server.")] = 1,
    as_json: AsJson = False,
    accept_lost_journal: AcceptLost = False,
) -> None:
    """Run a grid of arms and seeds. Run it again to continue where it stopped."""
    from semievol_api.cli.demo import run_grid

    lines = err()
    found = run_grid(
        path,
        lambda line: lines.print(line, markup=False),
        quick=quick,
        folder=folder,
        threads=threads,
        accept_lost_journal=accept_lost_journal,
    )
    if as_json:
        print_json(results_as_json(found))
    else:
        show_results(out(), found)


def demo(
    folder: Annotated[
        Path | None,
        typer.Option(help="Folder for the run and its server's state. Default: runs/demo, or runs/demo-MODEL."),
    ] = None,
    model: Annotated[
        Literal["smollm2"] | None,
        typer.Option(help="A real language model and customers' messages instead; downloads 180 MB once."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Use a sixth of the data.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run the whole method on this machine with a small model. Needs no API key and no GPU."""
    from semievol_api.cli.demo import run_demo

    place = folder or Path("runs/demo" if model is None else f"runs/demo-{model}")
    run_demo(place, real=model is not None, quick=quick, as_json=as_json)


def show_result(result: RunResult, *, as_json: bool, spent: Spent | None = None) -> None:
    """Print the verdict of a finished run; JSON for a program, a table for a person.

    `spent` is what the run has cost over all its processes.
    """
    from semievol_api.training.jobs import jobs_under

    verdict = result.verdict
    bills = result.ledger.stages.values()
    asked = {
        "requests": sum(bill.requests for bill in bills),
        "attempts": sum(bill.attempts for bill in bills),
        "computed": list(result.computed),
    }
    trained = {job.name: job.model for job in jobs_under(result.folder) if job.model}
    if as_json:
        process = {"trained": trained, "folder": str(result.folder), "seconds": dict(result.seconds)}
        print_json({**verdict.document, **process, "this_process": asked})
        return
    console = out()
    if verdict.n_test:
        console.print(_models(verdict, result.seconds))
        console.print(_differences(verdict.differences))
    lines = (*verdict.notes, *_beware(verdict.differences))
    faster = [] if result.advice is None or _contradicts(result.advice, lines) else [result.advice]
    for line in (*lines, *faster, verdict.sentence):
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


def _contradicts(faster: str, lines: Sequence[str]) -> bool:
    """Whether advice to lower a setting stands against a line that asks to raise it."""
    raised = [line for line in lines if "raise [" in line or "more epochs" in line]
    return any(key in faster and any(key in line for line in raised) for key in ("n_epochs", "max_tokens"))


def _beware(differences: Sequence[Difference]) -> list[str]:
    """A warning for a model that is not shown to be better than the most frequent answer."""
    from semievol_api.report.report_data import no_better_than_majority

    against = [d for d in differences if d.against == "majority" and d.low <= 0]
    return [f"Beware: {no_better_than_majority(d.of_label, d.low, d.high)}" for d in against]


def _models(verdict: Verdict, seconds: Mapping[str, float]) -> object:
    from semievol_api.store.verdict import FieldScores

    fields = any(isinstance(model.fields, FieldScores) for model in verdict.models)
    rows = [
        [
            model.label,
            f"{100 * model.accuracy:.1f}",
            rf"\[{100 * model.low:.1f}, {100 * model.high:.1f}]",
            *([f"{100 * model.fields.micro_f1:.1f}"] if isinstance(model.fields, FieldScores) else []),
            str(model.trained_tokens or "-"),
            str(model.tokens or "-"),
            _seconds(seconds, model.name),
        ]
        for model in verdict.models
    ]
    more = ["field F1 %"] if fields else []
    columns = ["model", "accuracy %", "95 % interval", *more, "training tokens", "tokens", "seconds"]
    return table(f"n = {verdict.n_test} test questions", columns, rows)


def _seconds(seconds: Mapping[str, float], name: str) -> str:
    """Training and evaluation of one model, as they took when they were made."""
    from semievol_api.training.jobs import job_artifact

    made_by = (job_artifact(name, "ticket"), job_artifact(name, "model"), f"evaluate/{name}")
    spent = [seconds.get(key, 0.0) for key in made_by]
    return f"{sum(spent):.1f}" if sum(spent) else "-"


def _differences(differences: Sequence[Difference]) -> object:
    rows = [
        [
            f"{d.of_label} - {d.against_label}",
            f"{d.points:+.1f}",
            rf"\[{d.low:+.1f}, {d.high:+.1f}]",
            f"{d.mcnemar_p:.3g}",
            f"{d.smallest_detectable:.1f}",
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
