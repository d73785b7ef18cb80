"""The command line's app: the commands of every group, and those that providers and rooms bring by entry point.

Exit codes: 0 done; 1 the run failed (a provider, a job, too many failed rows, the budget) and can go on later;
2 something in the command, the config or the data needs mending. Knows nothing of what a command does.
"""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

import typer

from semievol_api.cli.data import check, init, preview
from semievol_api.cli.journal import app as journal
from semievol_api.cli.models import evaluate, predict
from semievol_api.cli.plan import plan
from semievol_api.cli.report import export, report, review
from semievol_api.cli.run import demo, experiment, run, status
from semievol_api.cli.vendors import clean, jobs, probe, providers


def build_app() -> typer.Typer:
    """The commands of every group, and those that providers and rooms bring by entry point."""
    app = typer.Typer(
        name="semievol",
        help="Semi-supervised fine-tuning of language models over any provider.",
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
