"""The command line: thin commands over `run`, `data`, `tasks` and the providers' own.

Exit codes: 0 done; 1 the run failed (a provider, a job, too many failed rows, the budget) and can go on later;
2 something in the command, the config or the data needs mending. Heavy imports stand inside the commands.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer

from semievol_api.report.commands import export, report, review
from semievol_api.terminal.journal import app as journal

ConfigPath = Annotated[Path, typer.Argument(help="A config file, such as semievol.toml.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
AcceptChange = Annotated[
    bool, typer.Option("--accept-config-change", help="Go on in a folder that another config made.")
]


def run(
    config: ConfigPath,
    as_json: AsJson = False,
    accept_config_change: AcceptChange = False,
    cassette: Annotated[
        Path | None, typer.Option(help="Record the run into this folder, or play it from there.", show_default=False)
    ] = None,
    cassette_mode: Annotated[
        str | None, typer.Option(help="replay, record, record-missing or off.", show_default="replay")
    ] = None,
) -> None:
    """Run a config to its verdict; run it again to go on where it stopped."""
    from semievol_api.config import load_config
    from semievol_api.run import run_async, run_blocking
    from semievol_api.terminal.bars import Bars, err
    from semievol_api.terminal.verdict import show_result

    changes: dict[str, object] = {}
    if cassette is not None:
        changes["cassette.path"] = str(cassette.resolve())
    if cassette_mode is not None:
        changes["cassette.mode"] = cassette_mode
    settings = load_config(config, changes)
    with Bars(err()) as bars:
        result = run_blocking(run_async(settings, watcher=bars, accept_change=accept_config_change))
    show_result(result, as_json=as_json)


def check(config: ConfigPath, as_json: AsJson = False) -> None:
    """Validate a config, its data and its providers' tables, with no network."""
    from semievol_api.config import load_config
    from semievol_api.data import read_data
    from semievol_api.run import check as check_config
    from semievol_api.run import check_data
    from semievol_api.terminal.bars import out, pairs

    plan = check_config(load_config(config))
    raw = read_data(plan.config.data, plan.task)
    check_data(plan, raw)
    facts = {
        "task": plan.task.name,
        "labelled": len(raw.labeled),
        "unlabelled": len(raw.unlabeled),
        "test": len(raw.test),
        "student": f"{plan.config.roles.student.model} at {plan.config.roles.student.provider}",
        "trainer": f"{plan.trainer_ref.model} at {plan.trainer_ref.provider}",
    }
    if as_json:
        print_json({"ok": True, **facts})
        return
    pairs(out(), f"{config.name} is good", facts)


def preview(
    config: ConfigPath,
    rows: Annotated[int, typer.Option(min=1, help="How many examples to show.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Show the exact prompts of a few examples, with token counts; nothing is sent."""
    from semievol_api.config import load_config
    from semievol_api.terminal.prompts import show_prompts

    show_prompts(load_config(config), rows, as_json=as_json)


def init(
    data: Annotated[Path, typer.Argument(help="Your labelled file: CSV, JSONL or Parquet.")],
    folder: Annotated[Path, typer.Option(help="Where to write task.toml and semievol.toml.")] = Path(),
    unlabeled: Annotated[Path | None, typer.Option(help="Your unlabelled file.")] = None,
    test: Annotated[Path | None, typer.Option(help="Your test file.")] = None,
) -> None:
    """Write a task and a config from your own file, showing what was understood."""
    from semievol_api.terminal.starter import write_starter

    write_starter(data, folder, unlabeled, test)


def status(config: ConfigPath, as_json: AsJson = False) -> None:
    """Show which stages of a run are done; works while it runs."""
    from semievol_api.config import load_config
    from semievol_api.run_store import stages_done
    from semievol_api.terminal.bars import out, pairs

    done = stages_done(load_config(config).run.folder)
    if as_json:
        print_json({"done": done})
    elif not done:
        out().print(f"Nothing is done yet. Start with: semievol run {config}", markup=False)
    else:
        pairs(out(), "Done", {name: f"{seconds:.1f} s" for name, seconds in done.items()})


def providers(as_json: AsJson = False) -> None:
    """List the installed providers."""
    from semievol_api.registry import provider_kinds
    from semievol_api.terminal.bars import out, pairs

    kinds = {name: point.value for name, point in provider_kinds().items()}
    if as_json:
        print_json(kinds)
    else:
        pairs(out(), "Providers", kinds)


def demo(
    folder: Annotated[Path, typer.Option(help="Where the run and the server keep their state.")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="A sixth of the data: quicker, and less to see.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run the whole method for real on this machine: own model, own server, no key, no GPU."""
    from semievol_api.demo.command import run_demo

    run_demo(folder, quick=quick, as_json=as_json)


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
    for command in (init, check, preview, run, status, report, review, export, demo, providers):
        app.command()(command)
    app.add_typer(journal, name="journal")
    for point in sorted(entry_points(group="semievol.commands"), key=lambda p: p.name):
        brought = point.load()
        if isinstance(brought, typer.Typer):
            app.add_typer(brought, name=point.name)
        else:
            app.command(point.name)(brought)
    return app


def main() -> None:
    """The entry point: a user's mistake prints one calm paragraph, a bug prints a traceback."""
    from semievol_api.errors import SemievolError, UserError
    from semievol_api.transport.strict import CassetteMiss

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
