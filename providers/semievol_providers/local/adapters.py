"""The base model with any of its adapters in place, loaded when first asked for.

Small bases keep one merged copy per adapter, the least recently used going first; larger ones switch adapters
inside one PEFT model. Knows nothing of requests or sampling.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semievol_providers.local.model_folder import ModelFolderError
from semievol_providers.local.requests import EngineSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from semievol_providers.local.row_linear import BlockSizes


class AdapterShelf:
    """`model_for(adapter_folder)` gives a model ready for a forward pass; None is the base."""

    def __init__(self, base: PreTrainedModel, blocks: BlockSizes, settings: EngineSettings) -> None:
        self._base = base
        self._blocks = blocks
        self._settings = settings
        self._bytes = sum(p.numel() * p.element_size() for p in base.parameters())
        self._merged: OrderedDict[str, PreTrainedModel] = OrderedDict()
        self._switching: Any = None
        self._names: dict[str, str] = {}

    @property
    def merges(self) -> bool:
        """True where every adapter has a merged copy of its own, so that several can run side by side."""
        return self._bytes <= self._settings.merge_limit_bytes

    def model_for(self, adapter: str | None) -> PreTrainedModel:
        """The model with this adapter in place.

        Raises:
            ModelFolderError: the folder holds no adapter in safetensors.
        """
        if adapter is None and self._switching is None:
            return self._base
        if self.merges:
            return self._base if adapter is None else self._merged_copy(adapter)
        return self._switched(adapter)

    def forget(self, adapter: str) -> None:
        """Free what an adapter holds."""
        self._merged.pop(adapter, None)
        name = self._names.pop(adapter, None)
        if name is not None and self._switching is not None:
            self._switching.delete_adapter(name)

    def _merged_copy(self, adapter: str) -> PreTrainedModel:
        found = self._merged.get(adapter)
        if found is None:
            from peft import PeftModel

            check_adapter(adapter)
            wrapped: Any = PeftModel.from_pretrained(copy.deepcopy(self._base), adapter)
            merged: PreTrainedModel = wrapped.merge_and_unload().eval()
            while self._merged and (len(self._merged) + 1) * self._bytes > self._settings.adapter_cache_bytes:
                self._merged.popitem(last=False)
            found = self._merged[adapter] = merged
        self._merged.move_to_end(adapter)
        return found

    def _switched(self, adapter: str | None) -> PreTrainedModel:
        self._switch(adapter)
        switched: PreTrainedModel = self._switching
        return switched

    def _switch(self, adapter: str | None) -> None:
        from peft import PeftModel

        from semievol_providers.local.row_linear import use_row_linears

        if adapter is None:
            self._switching.disable_adapter_layers()
            return
        check_adapter(adapter)
        if adapter not in self._names:
            name = f"adapter{len(self._names)}"
            if self._switching is None:
                self._switching = PeftModel.from_pretrained(self._base, adapter, adapter_name=name).eval()
            else:
                self._switching.load_adapter(adapter, adapter_name=name)
            use_row_linears(self._switching, self._blocks)
            self._names[adapter] = name
        self._switching.enable_adapter_layers()
        self._switching.set_adapter(self._names[adapter])


def check_adapter(folder: str) -> None:
    """Refuse a folder that is no safetensors adapter.

    Raises:
        ModelFolderError: adapter_config.json or adapter_model.safetensors is missing.
    """
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (Path(folder) / name).is_file():
            raise ModelFolderError(f"The adapter folder {folder!r} has no {name}.")
