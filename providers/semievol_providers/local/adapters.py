"""The adapters of one base model, ready to answer side by side: as LoRA products of their own rows, or merged copies.

A plain LoRA costs its own few bytes: `ready` makes it known to the base model's layers, and rows of one pass may have
different ones. What is more than a plain LoRA (DoRA, trained embeddings, other ranks by layer), and every adapter of a
model that owes equal bits, gets a merged copy. Knows nothing of passes, samples or jobs.
"""

from __future__ import annotations

import copy
import json
import math
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from semievol_providers.local.model_folder import ModelFolderError, check_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from semievol_providers.local.packed import PackedModel

_PREFIX = "base_model.model."
_PLAIN_KEYS = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias", "trainable_token_indices")


class AdapterShelf:
    """`ready(adapter_folder)` gives the model whose forward pass answers for it; None is the base."""

    def __init__(self, packed: PackedModel, load: Callable[[], PreTrainedModel], limit_bytes: int) -> None:
        """`load` reads the base model again, for a merged copy; adapters may take `limit_bytes` together."""
        self._packed = packed
        self._load = load
        self._limit_bytes = limit_bytes
        base = packed.base
        self._model_bytes = sum(p.numel() * p.element_size() for p in base.parameters())
        self._merged: OrderedDict[str, PreTrainedModel] = OrderedDict()
        self._loras: OrderedDict[str, int] = OrderedDict()
        self._groups: dict[str, str | None] = {}

    def group_of(self, adapter: str | None) -> str | None:
        """Adapters of one group share passes: None for the base and every plain LoRA, else the adapter itself."""
        if adapter is None:
            return None
        if adapter not in self._groups:
            plain = not self._packed.exact and _is_plain(adapter, set(self._packed.linears))
            self._groups[adapter] = None if plain else adapter
        return self._groups[adapter]

    def ready(self, adapter: str | None) -> PreTrainedModel:
        """The model for a pass in which this adapter has rows.

        Raises:
            ModelFolderError: the folder holds no adapter in safetensors, or one that does not fit the model.
        """
        if adapter is None:
            return self._packed.base
        if self.group_of(adapter) is not None:
            return self._merged_copy(adapter)
        if adapter not in self._loras:
            self._loras[adapter] = self._add_loras(adapter)
        self._loras.move_to_end(adapter)
        return self._packed.base

    def trim(self) -> None:
        """Forget the LoRAs that were used longest ago where all together take too much; between passes."""
        while len(self._loras) > 1 and sum(self._loras.values()) > self._limit_bytes:
            self._remove_loras(next(iter(self._loras)))

    def forget(self, adapter: str) -> None:
        """Free what an adapter holds."""
        self._groups.pop(adapter, None)
        self._merged.pop(adapter, None)
        if adapter in self._loras:
            self._remove_loras(adapter)

    def _remove_loras(self, adapter: str) -> None:
        del self._loras[adapter]
        for layer in self._packed.linears.values():
            layer.remove_lora(adapter)

    def _add_loras(self, adapter: str) -> int:
        check_adapter(adapter)
        scale, tensors = _read_lora(adapter)
        base = self._packed.base
        size = 0
        for target, (down, up) in tensors.items():
            layer = self._packed.linears[target]
            if down.shape[1] != layer.in_features or up.shape[0] != layer.out_features:
                raise ModelFolderError(
                    f"The adapter {adapter!r} does not belong to this model: its layer {target!r} maps "
                    f"{down.shape[1]} to {up.shape[0]} values, that of the model {layer.in_features} to "
                    f"{layer.out_features}. Train a new adapter for this model."
                )
        for target, (down, up) in tensors.items():
            pair = (down.to(base.device, base.dtype), (up.float() * scale).to(base.device, base.dtype))
            self._packed.linears[target].add_lora(adapter, *pair)
            size += sum(part.numel() * part.element_size() for part in pair)
        return size

    def _merged_copy(self, adapter: str) -> PreTrainedModel:
        found = self._merged.get(adapter)
        if found is None:
            from peft import PeftModel

            check_adapter(adapter)
            own = copy.deepcopy(self._packed.base) if self._packed.exact else self._load()
            wrapped: Any = PeftModel.from_pretrained(own, adapter)
            merged: PreTrainedModel = wrapped.merge_and_unload().eval()
            while self._merged and (len(self._merged) + 1) * self._model_bytes > self._limit_bytes:
                self._merged.popitem(last=False)
            if not self._packed.exact:
                self._packed.prepare(merged)
            found = self._merged[adapter] = merged
        self._merged.move_to_end(adapter)
        return found


def _is_plain(adapter: str, layers: set[str]) -> bool:
    """Whether a folder holds nothing but one rank's LoRA of these layers."""
    config_path = Path(adapter) / "adapter_config.json"
    if not config_path.is_file() or not (Path(adapter) / "adapter_model.safetensors").is_file():
        return False
    config = json.loads(config_path.read_text(encoding="utf-8"))
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        return False
    if any(config.get(key) for key in _PLAIN_KEYS):
        return False
    from safetensors import safe_open

    with safe_open(Path(adapter) / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    return all(_target_of(name) in layers for name in names)


def _target_of(name: str) -> str:
    for side in (".lora_A.weight", ".lora_B.weight"):
        if name.endswith(side):
            return name.removeprefix(_PREFIX).removesuffix(side)
    return ""


def _read_lora(adapter: str) -> tuple[float, dict[str, tuple[Tensor, Tensor]]]:
    """The scale, and every layer's two matrices."""
    from safetensors.torch import load_file

    config = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
    rank = int(config["r"])
    scale = float(config["lora_alpha"]) / (math.sqrt(rank) if config.get("use_rslora") else rank)
    tensors = load_file(Path(adapter) / "adapter_model.safetensors")
    targets = dict.fromkeys(_target_of(name) for name in tensors)
    with torch.inference_mode():
        sides = {target: tuple(tensors[f"{_PREFIX}{target}.lora_{side}.weight"] for side in "AB") for target in targets}
    return scale, {target: (down, up) for target, (down, up) in sides.items()}
