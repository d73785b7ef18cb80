"""The old address of `semievol_api.cassettes`: its imports keep working until 0.3, with one warning each.

    from semievol_api.transport.cassette import open_cassette     # now semievol_api.cassettes.cassette

Every old module stands here as a stand-in that asks the new one for a name when the name is used, so that both
addresses mean the same objects and importing one imports nothing else. Knows nothing of cassettes.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import MappingProxyType, ModuleType

MOVED = MappingProxyType(
    {
        "cassette": "cassette",
        "clock": "clock",
        "commands": "commands",
        "compare": "compare",
        "deadlines": "http",
        "exchange": "exchange",
        "foreign": "foreign",
        "http": "http",
        "loopback": "commands",
        "nearest": "compare",
        "pytest_plugin": "pytest_plugin",
        "scrub": "scrub",
        "sdk": "http",
        "store": "exchange",
        "strict": "miss",
    }
)


class MovedModule(ModuleType):
    """Stands at a module's old address; the first use of a name warns where the module is now."""

    def __init__(self, old: str, new: str) -> None:
        super().__init__(old, f"The old address of `{new}`, until 0.3.")
        self.__spec__ = ModuleSpec(old, None, origin=new)
        self._new = new
        self._warned = False

    def __getattr__(self, name: str) -> object:
        """The name as the new address has it."""
        if name.startswith("__"):
            raise AttributeError(name)
        if not self._warned:
            self._warned = True
            message = f"{self.__name__} has moved to {self._new}; the old address goes away in 0.3"
            warnings.warn(message, DeprecationWarning, stacklevel=2)
        # A pytest plugin's stand-in brings the plugin in by name: one module can't be registered under two.
        return (self._new,) if name == "pytest_plugins" else getattr(importlib.import_module(self._new), name)


for _old, _new in MOVED.items():
    _module = MovedModule(f"{__name__}.{_old}", f"semievol_api.cassettes.{_new}")
    globals()[_old] = sys.modules[_module.__name__] = _module
