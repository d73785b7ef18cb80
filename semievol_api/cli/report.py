"""`semievol report`, `semievol review` and `semievol export`: thin commands; heavy imports are inside them.

Knows nothing of what they do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

RunFolder = Annotated[Path, typer.Argument(help="The run folder, as set in \\[run] folder.")]


def report(
    run_folder: RunFolder,
    out: Annotated[Path | None, typer.Option(help="The file to write. Default: report.html in the run folder.")] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Write an HTML report of a run: results, every label, cost and config."""
    from semievol_api.report.page import write_report

    path = write_report(run_folder, out)
    typer.echo(f"The report is in {path}")
    if open_it:
        typer.launch(path.resolve().as_uri())


def review(
    run_folder: RunFolder,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Local port. 0 picks a free one.")] = 0,
    open_it: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Review labels in a local web page: accept, correct or skip them by keyboard, the least certain first."""
    from semievol_api.report.labels import read_decisions
    from semievol_api.report.review_server import serve_review

    def ready(address: str) -> None:
        typer.echo(f"Review at {address}\nEvery decision is saved at once. End with Ctrl-C.")
        if open_it:
            typer.launch(address)

    path = serve_review(run_folder, port, on_ready=ready)
    typer.echo(f"{len(read_decisions(path))} decisions stand in {path}")


def export(
    run_folder: RunFolder,
    out: Annotated[Path, typer.Option(help="The file to write; for hf, the folder.")],
    format: Annotated[
        Literal["openai", "parquet", "hf", "model-card"],
        typer.Option(help="openai: chat JSONL for fine-tuning. hf: a folder for datasets.load_from_disk."),
    ] = "openai",
) -> None:
    """Export the selected labels, with reviewed answers taking precedence, or a model card."""
    from semievol_api.report.export import export_labels

    count = export_labels(run_folder, out, format)
    typer.echo(f"{out}: {count} {'card' if format == 'model-card' else 'labels'}")
