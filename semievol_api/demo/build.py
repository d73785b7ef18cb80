"""The old address of the demo model's builder: `python -m semievol_api.demo.build` runs the new one until 0.3.

The builder lies in `benchmarks/demo_model` of a checkout and in no package. Knows nothing of how a model is built.
"""

from __future__ import annotations

import runpy
import sys
import warnings
from importlib.util import find_spec

_FOUND = find_spec("benchmarks.demo_model") if find_spec("benchmarks") else None
__path__: list[str] = list(
    (_FOUND and _FOUND.submodule_search_locations) or ()
)  # for `-m semievol_api.demo.build.NAME`
_MESSAGE = (
    "The builder of the demo's model has moved to benchmarks/demo_model of a checkout and is no part of the package. "
    "From the checkout's folder: python -m benchmarks.demo_model --data FOLDER. The old address goes away in 0.3."
)

if __name__ == "__main__":
    if _FOUND is None:
        sys.exit(f"semievol: {_MESSAGE}")
    warnings.warn(_MESSAGE, DeprecationWarning, stacklevel=1)
    runpy.run_module("benchmarks.demo_model", run_name="__main__")
