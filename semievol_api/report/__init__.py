"""What a person sees of a run: the report with its label browser, the review page, exports.

    page.write_report(run_folder)                     one self-contained HTML file
    review_server.serve_review(run_folder, port)      decisions by keyboard; `labels.read_decisions` reads them
    export.export_labels(run_folder, out, "openai")   labels for other tools; `export.model_card` the card

`semievol_api.report(run)` writes the report too: the function that the library offers has this package's name, so the
package can be called. Reads run folders and changes nothing in them but `review.jsonl`. Knows nothing of providers.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from semievol_api.run_result import RunResult


class ReportPackage(ModuleType):
    """This package; calling it is `semievol_api.report.page.report`."""

    def __call__(self, run: str | Path | RunResult, out: str | Path | None = None) -> Path:
        """Write one HTML file with the proof, every label, the cost and the config."""
        from semievol_api.report.page import report

        return report(run, out)


sys.modules[__name__].__class__ = ReportPackage
