"""The command line: thin commands over `run`, `data`, `tasks` and the providers' own.

Exit codes: 0 done; 1 the run failed (a provider, a job, too many failed rows, the budget) and can go on later;
2 something in the command, the config or the data needs mending. Heavy imports stand inside the commands.
"""

from __future__ import annotations

import datetime
import json
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from semievol_api.cli.journal import app as journal
from semievol_api.cli.report import export, report, review

if TYPE_CHECKING:
    from semievol_api.config.settings import Config

ConfigPath = Annotated[Path, typer.Argument(help="A config file, such as semievol.toml.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
AcceptChange = Annotated[
    bool, typer.Option("--accept-config-change", help="Go on in a folder that another config made.")
]
AcceptLost = Annotated[bool, typer.Option("--accept-lost-journal", help="Pay again for answers whose journal is gone.")]
OnDay = Annotated[datetime.datetime | None, typer.Option("--on", formats=["%Y-%m-%d"], help="As if it were this day.")]


def run(  # noqa: PLR0913 - a command line has as many options as it has
    config: ConfigPath,
    as_json: AsJson = False,
    accept_config_change: AcceptChange = False,
    yes: Annotated[bool, typer.Option("--yes", help="Start whatever the plan says it costs.")] = False,
    cassette: Annotated[
        Path | None, typer.Option(help="Record the run into this folder, or play it from there.", show_default=False)
    ] = None,
    cassette_mode: Annotated[
        str | None, typer.Option(help="replay, record, record-missing or off.", show_default="replay")
    ] = None,
    accept_lost_journal: AcceptLost = False,
) -> None:
    """Run a config to its verdict; run it again to go on where it stopped."""
    from semievol_api.cli.run import show_result
    from semievol_api.cli.screen import Bars, err
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
    """Stop a run that is too dear before its first paid call; what is done already is not asked about again."""
    from semievol_api.planning.estimating import estimate, refuse_too_dear, worth_planning
    from semievol_api.session import run_blocking
    from semievol_api.store.run_store import stages_done

    if "verdict" not in stages_done(settings.run.folder) and worth_planning(settings):
        refuse_too_dear(settings, run_blocking(estimate(settings)), agreed=False)


def plan(
    config: ConfigPath,
    vendors: Annotated[list[str] | None, typer.Argument(help="With --compare: vendors to price it at.")] = None,
    as_json: AsJson = False,
    compare: Annotated[bool, typer.Option("--compare", help="Price the same run at the vendors named.")] = False,
    on: OnDay = None,
) -> None:
    """Tell beforehand what a run asks, trains and costs, and until when its models exist; needs no key."""
    from semievol_api.cli.plan import plan_as_json, show_plan
    from semievol_api.cli.screen import out
    from semievol_api.config.settings import load_config
    from semievol_api.planning.bill import spent_by
    from semievol_api.planning.estimating import estimate
    from semievol_api.session import run_blocking

    settings = load_config(config)
    named = vendors or (["openai", "azure", "nebius", "local"] if compare else [])
    planned = run_blocking(estimate(settings, today=on.date() if on else None, vendors=named))
    spent = spent_by(settings)
    if as_json:
        print_json(plan_as_json(planned, spent))
    else:
        show_plan(out(), planned, spent)


def check(config: ConfigPath, as_json: AsJson = False, on: OnDay = None) -> None:
    """Validate a config, its data and its providers' tables, with no network."""
    from semievol_api.cli.data import show_check
    from semievol_api.config.settings import load_config

    show_check(load_config(config), config.name, on.date() if on else None, as_json=as_json)


def preview(
    config: ConfigPath,
    rows: Annotated[int, typer.Option(min=1, help="How many examples to show.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Show the exact prompts of a few examples, with token counts; nothing is sent."""
    from semievol_api.cli.data import show_prompts
    from semievol_api.config.settings import load_config

    show_prompts(load_config(config), rows, as_json=as_json)


def init(
    data: Annotated[Path, typer.Argument(help="Your labelled file: CSV, JSONL or Parquet.")],
    folder: Annotated[Path, typer.Option(help="Where to write task.toml and semievol.toml.")] = Path(),
    unlabeled: Annotated[Path | None, typer.Option(help="Your unlabelled file.")] = None,
    test: Annotated[Path | None, typer.Option(help="Your test file.")] = None,
    question: Annotated[str | None, typer.Option(help="The column with the text, if it is not found.")] = None,
    answer: Annotated[str | None, typer.Option(help="The column with the label, if it is not found.")] = None,
) -> None:
    """Write a task and a config from your own file, showing what was understood."""
    from semievol_api.cli.data import write_starter
    from semievol_api.data import start

    write_starter(start(data, unlabeled, test, question=question, answer=answer), folder)


def status(config: ConfigPath, as_json: AsJson = False) -> None:
    """Show which stages of a run are done; works while it runs."""
    from semievol_api.cli.screen import out, pairs
    from semievol_api.config.settings import load_config
    from semievol_api.store.run_store import stages_done

    done = stages_done(load_config(config).run.folder)
    if as_json:
        print_json({"done": done})
    elif not done:
        out().print(f"Nothing is done yet. Start with: semievol run {config}", markup=False)
    else:
        pairs(out(), "Done", {name: f"{seconds:.1f} s" for name, seconds in done.items()})


def jobs(
    path: Annotated[Path, typer.Argument(help="A config, or a folder of runs.")] = Path(),
    poll: Annotated[bool, typer.Option("--poll", help="Ask the vendor where the jobs stand (needs a config).")] = False,
    cancel: Annotated[str | None, typer.Option(help="Ask the vendor to stop this job (needs a config).")] = None,
    as_json: AsJson = False,
) -> None:
    """List the trainings of all runs: their jobs, models, tokens and price."""
    from semievol_api.cli.vendors import list_jobs, show_jobs

    found = list_jobs(path, poll=poll, stop=cancel)
    if as_json:
        print_json(found)
    else:
        show_jobs(found)


def clean(
    config: ConfigPath,
    remote: Annotated[
        bool, typer.Option("--remote", help="What lies at the vendor: files, superseded models.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete what is listed.")] = False,
    as_json: AsJson = False,
) -> None:
    """List, and with --yes delete, what a run left at its vendor."""
    from semievol_api.cli.vendors import clean_remote, show_clean
    from semievol_api.errors import UserError

    if not remote:
        raise UserError("Nothing to do without --remote. To remove a run from this machine, delete its folder.")
    result = clean_remote(config, yes=yes)
    if as_json:
        print_json(result)
    else:
        show_clean(result)


def providers(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="A config, for the facts of its own \\[catalogue] file.")] = None,
    fresh: Annotated[Path | None, typer.Option("--refresh", help="Take a newer table of prices and ends.")] = None,
    back: Annotated[bool, typer.Option("--reset", help="Go back to the package's own table.")] = False,
    as_json: AsJson = False,
    on: OnDay = None,
) -> None:
    """List the installed providers and what is known of vendors' models; `probe` asks one what it really does."""
    from semievol_api.cli.screen import out
    from semievol_api.cli.vendors import (
        catalogue_of,
        providers_as_json,
        refreshed_as_json,
        show_providers,
        show_refreshed,
    )
    from semievol_api.errors import UserError
    from semievol_api.planning.catalogue import utc_day
    from semievol_api.planning.catalogue_refresh import data_folder, refresh, reset

    if context.invoked_subcommand is not None:
        return
    today = on.date() if on else utc_day()
    if fresh is not None and back:
        raise UserError("--refresh takes a newer table and --reset drops it: give one of the two.")
    if fresh is not None or back:
        told = reset(data_folder()) if fresh is None else refresh(fresh, data_folder(), today)
        if as_json:
            print_json(refreshed_as_json(told))
        else:
            show_refreshed(out(), told)
        return
    catalogue = catalogue_of(config)
    if as_json:
        print_json(providers_as_json(catalogue, today))
    else:
        show_providers(out(), catalogue, today)


def probe(
    name: Annotated[str, typer.Argument(help="A provider of the config: \\[providers.NAME].")],
    config: Annotated[Path, typer.Option(help="The config that names it.")] = Path("semievol.toml"),
    as_json: AsJson = False,
) -> None:
    """Make one cheap call per ability and show what works, is ignored or refused; kept with the run."""
    from dataclasses import asdict

    from semievol_api.cli.vendors import probe_provider, show_findings

    findings, path = probe_provider(name, config)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        show_findings(findings, path)


def demo(
    folder: Annotated[Path, typer.Option(help="Where the run and the server keep their state.")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="A sixth of the data: quicker, and less to see.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run the whole method for real on this machine: own model, own server, no key, no GPU."""
    from semievol_api.cli.demo import run_demo

    run_demo(folder, quick=quick, as_json=as_json)


def experiment(
    path: Annotated[Path, typer.Argument(help="An experiment, such as examples/ablations.toml.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny sizes and one seed: to see that all of it works.")
    ] = False,
    folder: Annotated[Path | None, typer.Option(help="Where it lies; default: as the file says.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of the demo's server.")] = 1,
    as_json: AsJson = False,
    accept_lost_journal: AcceptLost = False,
) -> None:
    """Run a grid of arms and seeds over one pipeline; run it again to go on where it stopped."""
    from semievol_api.cli.demo import run_grid
    from semievol_api.cli.run import results_as_json, show_results
    from semievol_api.cli.screen import err, out

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


def evaluate(
    sides: Annotated[list[str], typer.Argument(help="Runs' folders, or folder:model, in pairs; one pair per task.")],
    run_config: Annotated[
        Path | None, typer.Option("--run", help="A config: sides are models of its run or provider, asked on its test.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two models or runs on the same test questions; several pairs are tested together (Holm)."""
    from semievol_api.cli.models import contests_as_json, contests_of, show_contests
    from semievol_api.cli.screen import out
    from semievol_api.errors import UserError

    if len(sides) % 2:
        raise UserError(f"Sides come in pairs, and there are {len(sides)}: semievol evaluate RUN_A RUN_B [RUN_C RUN_D]")
    contests = contests_of(list(zip(sides[::2], sides[1::2], strict=True)), run_config)
    if as_json:
        print_json(contests_as_json(contests))
    else:
        show_contests(out(), contests)


def predict(
    model: Annotated[str, typer.Argument(help="semievol, sft, warm or base of the run, or a model of its provider.")],
    data: Annotated[Path, typer.Argument(help="The rows to label: CSV, JSONL or Parquet, with the run's columns.")],
    run_config: Annotated[Path, typer.Option("--run", help="The run's config.")] = Path("semievol.toml"),
    alpha: Annotated[float | None, typer.Option(min=0.001, max=0.999, help="Tolerated share of wrong answers.")] = None,
    written: Annotated[Path | None, typer.Option("--out", help="The CSV to write; default: beside the data.")] = None,
    as_json: AsJson = False,
) -> None:
    """Label new rows, each with a confidence; rows below the run's calibrated cut are left to a person."""
    from semievol_api.cli.models import place_of, predictions_as_json, show_predictions, write_predictions
    from semievol_api.cli.screen import Bars, err, out
    from semievol_api.config.settings import load_config
    from semievol_api.report.prediction import predict as label
    from semievol_api.session import run_blocking

    place = place_of(data, written) if data.exists() else data
    with Bars(err()) as bars:
        found = run_blocking(label(load_config(run_config), model, data, alpha=alpha, watcher=bars))
    path = write_predictions(found, place)
    if as_json:
        print_json(predictions_as_json(found, path))
    else:
        show_predictions(out(), found, path)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")


def build_app() -> typer.Typer:
    """The commands of this module, and those that providers and rooms bring by entry point."""
    app = typer.Typer(
        name="semievol",
        help="Semi-supervised fine-tuning: labelled and unlabelled examples in, a better model and its proof out.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for command in (
        init,
        check,
        preview,
        plan,
        run,
        status,
        report,
        review,
        export,
        evaluate,
        predict,
        jobs,
        clean,
        experiment,
        demo,
    ):
        app.command()(command)
    app.add_typer(journal, name="journal")
    group = typer.Typer(invoke_without_command=True)
    group.callback()(providers)
    group.command()(probe)
    app.add_typer(group, name="providers")
    for point in sorted(entry_points(group="semievol.commands"), key=lambda p: p.name):
        brought = point.load()
        if isinstance(brought, typer.Typer):
            app.add_typer(brought, name=point.name)
        else:
            app.command(point.name)(brought)
    return app


def main() -> None:
    """The entry point: a user's mistake prints one calm paragraph, a bug prints a traceback."""
    from semievol_api.cassettes.miss import CassetteMiss
    from semievol_api.errors import SemievolError, UserError

    try:
        build_app()()
    except CassetteMiss as miss:
        _complain(miss)
        sys.exit(1)
    except UserError as error:
        _complain(error)
        sys.exit(2)
    except SemievolError as error:
        _complain(error)
        sys.exit(1)
    except KeyboardInterrupt:
        _complain("Stopped. Everything that was paid for is kept; run the same command to go on.")
        sys.exit(1)


def _complain(what: object) -> None:
    sys.stderr.write(f"semievol: {what}\n")


if __name__ == "__main__":
    main()
