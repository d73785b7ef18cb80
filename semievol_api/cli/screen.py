"""What the groups of commands share: common options, bars on long work, tables, JSON for a program.

Plain lines stand in for the bars where there is no terminal. Knows nothing of what a run computes.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from rich.progress import TaskID

    from semievol_api.capabilities import JobEvent
    from semievol_api.engine import Progress as RowDone

ConfigPath = Annotated[Path, typer.Argument(help="The config file, such as semievol.toml.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AcceptChange = Annotated[
    bool, typer.Option("--accept-config-change", help="Continue in a run folder that another config made.")
]
AcceptLost = Annotated[bool, typer.Option("--accept-lost-journal", help="Pay again for answers whose journal is gone.")]
OnDay = Annotated[datetime.datetime | None, typer.Option("--on", formats=["%Y-%m-%d"], help="Use this date as today.")]

_PLAIN_INTERVAL_S = 5.0
_PLAIN_WIDTH = 120


class Bars:
    """A `Watcher` that draws: one line a stage on a terminal, a plain line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._rows: Counter[str] = Counter()
        self._spoke_at = 0.0

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def on_stage(self, name: str, state: str) -> None:
        """See `Watcher`."""
        if not self._console.is_terminal:
            if state != "loaded":
                self._console.print(f"{name}: {state}")
        elif state == "started":
            self._tasks[name] = self._progress.add_task(name, total=None, note="")
        elif name in self._tasks:
            task = self._tasks.pop(name)
            done = self._progress.tasks[self._progress.task_ids.index(task)].completed or 1
            self._progress.update(task, total=done, completed=done, note="")

    def on_row(self, progress: RowDone) -> None:
        """See `Watcher`."""
        self._rows[progress.stage] += 1
        name = next((n for n in reversed(self._tasks) if n.startswith(progress.stage)), None)
        if name is not None:
            self._progress.advance(self._tasks[name])
        elif not self._console.is_terminal and self._may_speak():
            self._console.print(f"{progress.stage}: {self._rows[progress.stage]} rows answered")

    def on_job(self, name: str, event: JobEvent) -> None:
        """See `Watcher`."""
        bar = next((n for n in self._tasks if n.startswith(f"jobs/{name}")), None)
        if bar is not None:
            self._progress.update(self._tasks[bar], note=event.message[:60])
        elif not self._console.is_terminal and self._may_speak():
            self._console.print(f"{name}: {event.message}")

    def _may_speak(self) -> bool:
        now = time.monotonic()
        if now - self._spoke_at < _PLAIN_INTERVAL_S:
            return False
        self._spoke_at = now
        return True


def out() -> Console:
    """Where results go."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)


def err() -> Console:
    """Where errors and progress go."""
    return Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else _PLAIN_WIDTH)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table whose first column is text and whose others are numbers."""
    made = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def pairs(console: Console, title: str, values: Mapping[str, object]) -> None:
    """A short list of facts."""
    console.print(f"[bold]{title}[/bold]")
    width = max((len(k) for k in values), default=0)
    for key, value in values.items():
        console.print(f"  {key:<{width}}  {value}", markup=False)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")
