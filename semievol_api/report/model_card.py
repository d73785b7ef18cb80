"""A model card for the evolved model: how it was made, what it was measured to do, and where not to trust it.

Knows nothing of where models are published.
"""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from semievol_api.artifacts import TunedModel
from semievol_api.report.page import percent, seconds, signed, thousands
from semievol_api.report.read_run import read_report_data
from semievol_api.run_store import load_artifact


def model_card(run_folder: Path) -> str:
    """The card as Markdown, with the verdict's own numbers.

    Raises:
        RunFolderError: the folder is no run.
    """
    made = Environment(
        loader=PackageLoader("semievol_api.report"),
        autoescape=False,  # Markdown, not HTML
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(percent=percent, signed=signed, seconds=seconds, thousands=thousands)
    model = load_artifact(run_folder, "jobs/semievol-model", TunedModel)
    return made.get_template("model_card.md.j2").render(data=read_report_data(run_folder), model=model)
