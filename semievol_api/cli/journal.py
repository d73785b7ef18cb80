"""`semievol journal`: what a journal holds, what it cost, and all of it as JSONL.

    semievol journal count | spend | export OUT.jsonl   --journal PATH

Reads only; a run that is going on is not disturbed. Knows nothing of configs and runs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from semievol_api.errors import UserError

_JournalPath = Annotated[Path, typer.Argument(help="A run folder, or its journal.sqlite.")]

app = typer.Typer(no_args_is_help=True, help="Read the journal of paid answers.")


def _file(journal: Path) -> Path:
    return journal / "journal.sqlite" if journal.is_dir() else journal


def _rows(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


@app.command()
def count(journal: _JournalPath) -> None:
    """Count stored answers by stage, kind and model."""
    from semievol_api.engine.journal import Journal

    opened = Journal.read_only(_file(journal))
    lines = [("stage", "kind", "model", "mode", "requests", "samples")]
    for total in opened.totals():
        source = total.source
        lines.append((source.stage, source.kind, source.model, source.mode, str(total.requests), str(total.samples)))
    opened.close()
    typer.echo(_rows(lines))


@app.command()
def spend(journal: _JournalPath) -> None:
    """Show the cost by stage, model and endpoint. Lost replies count at their upper bound."""
    from semievol_api.engine.journal import Journal

    opened = Journal.read_only(_file(journal))
    lines = [("stage", "model", "provider", "mode", "prompt", "cached", "completion", "USD")]
    totals, lost = opened.totals(), opened.lost()
    opened.close()
    for total in totals:
        source = total.source
        tokens = (str(total.prompt_tokens), str(total.cached_tokens), str(total.completion_tokens))
        lines.append((source.stage, source.model, source.provider, source.mode, *tokens, f"{total.usd:.4f}"))
    lines.append(("sum", "", "", "", "", "", "", f"{sum(total.usd for total in totals):.4f}"))
    typer.echo(_rows(lines))
    if lost[1]:
        typer.echo(f"Lost on the way, or in flight now: up to {lost[0]:.4f} USD, {lost[1]} tokens.")


@app.command()
def export(
    journal: _JournalPath,
    out: Annotated[Path, typer.Argument(help="The JSONL file to write, or - for standard output.")],
) -> None:
    """Write all stored samples as JSONL."""
    from semievol_api.engine.journal import Journal
    from semievol_api.engine.requests import as_json

    opened = Journal.read_only(_file(journal))
    try:
        if str(out) == "-":
            for record in opened.export():
                typer.echo(json.dumps(as_json(record), ensure_ascii=False))
            return
        with out.open("w", encoding="utf-8") as file:
            for record in opened.export():
                file.write(json.dumps(as_json(record), ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"The file {str(out)!r} could not be written: {error.strerror}.") from None
    finally:
        opened.close()
