"""The named modes: sets of defaults for the settings, and nothing else.

A mode is written as a user would write it in a config; what the config says itself wins. Knows nothing of what the
settings do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

Mode: TypeAlias = Literal["calibrated", "paper", "official-2025"]

MODES: Mapping[object, Mapping[str, Mapping[str, object]]] = {
    # Findings of NAACL 2025, arXiv 2410.14745 v2: all settings' own defaults.
    "paper": {},
    # Diverse annotators, a calibration slice, a false-label budget, a gate.
    "calibrated": {
        "split": {"calibration": "auto", "development": "auto"},
        "annotate": {"draw": "diverse"},
        "justify": {"on": "uncertain", "show": "answer"},
        "select": {"rule": "fdr", "score": "pooled"},
    },
    # The code released with the paper, for reproduction only.
    "official-2025": {
        "run": {"propagation": "in-weight"},
        "annotate": {"draw": "identical"},
        "justify": {"on": "disagreements"},
        "select": {"rule": "official-2025", "share": 0.3},
        "train": {"data": "selected", "start": "warm", "final_learning_rate_multiplier": 0.01},
        "evaluate": {"temperature": 0.5},
    },
}
