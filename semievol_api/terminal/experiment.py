"""What a person sees of a finished experiment: the table, what was shared, where everything is.

Knows nothing of how the figures were made.
"""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Console

from semievol_api.experiments.results import Results


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
