"""What notebooks need: coroutines run inside a running loop, results as HTML, progress in the cell.

    result = run_blocking(coroutine)               # in a script, and where an event loop is running already

Knows nothing of runs, requests or of what is shown; imports IPython only where it is running.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape
from typing import Any, Protocol, TypeVar

ResultT = TypeVar("ResultT")
NOTEBOOK_SHELL = "ZMQInteractiveShell"
"""IPython's shell behind a notebook; a terminal's has another name."""
REDRAW_S = 0.2


def run_blocking(coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run a coroutine to its end, in a thread of its own where this thread's loop is already running."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1, thread_name_prefix="semievol-run") as thread:
        # With the cell's context: what the thread shows belongs to the cell that started it.
        return thread.submit(contextvars.copy_context().run, asyncio.run, coroutine).result()


def html_facts(caption: str, facts: Mapping[str, object], notes: Sequence[str] = ()) -> str:
    """A table of two columns under a caption, and remarks below it."""
    return html_table(caption, (), [(name, value) for name, value in facts.items()], notes)


def html_table(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[object]], notes: Sequence[str] = ()
) -> str:
    """A table under a caption, and remarks below it; every text is escaped."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    below = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return (
        f'<div><table><caption style="text-align:left"><b>{escape(caption)}</b></caption>'
        f"{f'<thead><tr>{head}</tr></thead>' if columns else ''}<tbody>{body}</tbody></table>{below}</div>"
    )


def cell_display() -> Callable[[str], None] | None:
    """What shows HTML in the running cell, each call in place of the last; None outside a notebook."""
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython
    from IPython.display import HTML, display

    if type(get_ipython()).__name__ != NOTEBOOK_SHELL:
        return None
    handles: list[Any] = []

    def show(html: str) -> None:
        if handles:
            handles[0].update(HTML(html))
        else:
            handles.append(display(HTML(html), display_id=True))

    return show


class RowEvent(Protocol):
    """One more answered row of a stage."""

    @property
    def stage(self) -> str: ...

    @property
    def cached(self) -> bool: ...

    @property
    def failed(self) -> bool: ...


class JobEventLike(Protocol):
    """One line of a training's log."""

    @property
    def message(self) -> str: ...


class CellProgress:
    """A `Watcher` that draws a table in the running cell: a row a stage, with its rows and its jobs' last words."""

    def __init__(self, show: Callable[[str], None], caption: str = "Progress") -> None:
        self._show = show
        self._caption = caption
        self._states: dict[str, str] = {}
        self._notes: dict[str, str] = {}
        self._rows: Counter[str] = Counter()
        self._drawn_at_s = float("-inf")

    def on_stage(self, name: str, state: str) -> None:
        """A stage is `started`, `loaded` or `made`."""
        self._states[name] = state
        self._draw(at_once=True)

    def on_row(self, progress: RowEvent) -> None:
        """One more row of a stage is answered."""
        self._rows[progress.stage] += 1
        kind = "failed" if progress.failed else "from the journal" if progress.cached else ""
        if kind:
            self._rows[f"{progress.stage} {kind}"] += 1
        self._states.setdefault(progress.stage, "started")
        self._draw()

    def on_job(self, name: str, event: JobEventLike) -> None:
        """A training job reported something."""
        self._notes[next((stage for stage in reversed(self._states) if name in stage), name)] = event.message[:80]
        self._draw()

    def finish(self) -> None:
        """Draw what came last; stages that nobody said are over are `done`."""
        self._states = {name: "done" if state == "started" else state for name, state in self._states.items()}
        if self._states:
            self._draw(at_once=True)

    def _draw(self, *, at_once: bool = False) -> None:
        now_s = time.monotonic()
        if at_once or now_s - self._drawn_at_s >= REDRAW_S:
            self._drawn_at_s = now_s
            rows = [(name, state, self._count(name), self._notes.get(name, "")) for name, state in self._states.items()]
            self._show(html_table(self._caption, ("stage", "state", "answered", ""), rows))

    def _count(self, stage: str) -> str:
        counts = {kind: self._rows[f"{stage} {kind}"] for kind in ("from the journal", "failed")}
        more = ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count)
        return f"{self._rows[stage]:,}{f' ({more})' if more else ''}" if self._rows[stage] else ""
