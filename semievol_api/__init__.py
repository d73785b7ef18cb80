"""Semi-supervised fine-tuning of language models (SemiEvol, arXiv 2410.14745v2), over any provider.

    import semievol_api
    result = semievol_api.run("semievol.toml")

Whole runs: `run`, `check`, `plan`, `predict`, `evaluate`, `report`. Pieces of them: `select`, `nearest`, `connect`,
`ask`, `tune`, `cassette`. Importing this imports nothing else; a name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from semievol_api.annotate.nearest import Nearest, nearest
    from semievol_api.cassettes.cassette import Cassette, cassette
    from semievol_api.config.settings import Config, load_config
    from semievol_api.engine.asking import Replies, aask, ask, connect
    from semievol_api.errors import BudgetError, ConfigError, DataError, ProviderError, SemievolError, UserError
    from semievol_api.library import check, evaluate, plan, predict, run
    from semievol_api.planning.checking import CheckedConfig
    from semievol_api.report.page import report
    from semievol_api.run_result import RunResult
    from semievol_api.selection.arrays import ChosenLabels, select
    from semievol_api.selection.values import Calibration, RuleSettings
    from semievol_api.tasks.task import Task, load_task
    from semievol_api.training.tuning import tune

__all__ = [
    "BudgetError",
    "Calibration",
    "Cassette",
    "CheckedConfig",
    "ChosenLabels",
    "Config",
    "ConfigError",
    "DataError",
    "Nearest",
    "ProviderError",
    "Replies",
    "RuleSettings",
    "RunResult",
    "SemievolError",
    "Task",
    "UserError",
    "__version__",
    "aask",
    "ask",
    "cassette",
    "check",
    "connect",
    "evaluate",
    "load_config",
    "load_task",
    "nearest",
    "plan",
    "predict",
    "report",
    "run",
    "select",
    "tune",
]
__version__ = "0.1.0"

_HOMES = {
    "annotate.nearest": ("Nearest", "nearest"),
    "cassettes.cassette": ("Cassette", "cassette"),
    "config.settings": ("Config", "load_config"),
    "engine.asking": ("Replies", "aask", "ask", "connect"),
    "errors": ("BudgetError", "ConfigError", "DataError", "ProviderError", "SemievolError", "UserError"),
    "library": ("check", "evaluate", "plan", "predict", "run"),
    "planning.checking": ("CheckedConfig",),
    "run_result": ("RunResult",),
    "selection.arrays": ("ChosenLabels", "select"),
    "selection.values": ("Calibration", "RuleSettings"),
    "tasks.task": ("Task", "load_task"),
    "training.tuning": ("tune",),
}
"""The module of every name but `report`, which is a package that can be called."""


def __getattr__(name: str) -> object:
    """A public name, imported when it is first used (PEP 562)."""
    if name == "report":
        return import_module("semievol_api.report")
    for home, names in _HOMES.items():
        if name in names:
            return vars(import_module(f"semievol_api.{home}"))[name]
    raise AttributeError(f"module 'semievol_api' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted(__all__)
