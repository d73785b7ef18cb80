"""Semi-supervised fine-tuning of language models (SemiEvol, arXiv 2410.14745v2), over any provider.

    import semievol_api
    result = semievol_api.run("semievol.toml")

Importing this imports nothing else; the first call does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from semievol_api.session import RunResult

__all__ = ["__version__", "run"]
__version__ = "0.1.0"


def run(config: str | Path) -> RunResult:
    """Run a config to its end and return the verdict; works inside a notebook's running loop too.

    Raises:
        semievol_api.errors.UserError: something in the config or the data needs mending.
    """
    from semievol_api import session

    return session.run(config)
