"""Is a model folder whole, can it chat, and does an adapter belong to it? Answered from headers, in milliseconds.

Imports no torch and reads no weights. Knows nothing of who will load them.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

from semievol_providers.local.model_folder import ModelFolderError, read_facts

_MAX_HEADER_BYTES = 2**27


def check_model_folder(folder: str) -> None:
    """Refuse a folder that is missing, half downloaded, or whose tokenizer has no chat template.

    Raises:
        ModelFolderError: with what is wrong and what to do.
    """
    read_facts(folder)
    path = Path(folder)
    _check_shards(path)
    for weights in sorted(path.glob("*.safetensors")):
        _tensor_shapes(weights, folder)
    if not (path / "tokenizer.json").is_file() and not (path / "tokenizer.model").is_file():
        raise ModelFolderError(
            f"The model folder {folder!r} has weights but no tokenizer (tokenizer.json or tokenizer.model), as after "
            "a download that was broken off. Download it again; files that are whole are not fetched twice."
        )
    if not _has_chat_template(path):
        raise ModelFolderError(
            f"The tokenizer in {folder!r} has no chat template, so it isn't known how a question looks to this "
            "model; base models often come without one. Use the model's instruct version, or put a template of "
            f"its family there as {str(path / 'chat_template.jinja')!r} (the instruct version's file will do)."
        )


def check_adapter_fits(adapter: str, base_folder: str) -> None:
    """Refuse an adapter that was trained on a model of other shapes.

    Raises:
        ModelFolderError: with both sides' numbers.
    """
    from semievol_providers.local.adapters import check_adapter

    check_adapter(adapter)
    base: dict[str, list[int]] = {}
    for weights in sorted(Path(base_folder).glob("*.safetensors")):
        base |= _tensor_shapes(weights, base_folder)
    config = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
    for name, shape in _tensor_shapes(Path(adapter) / "adapter_model.safetensors", adapter).items():
        target, found, _ = name.removeprefix("base_model.model.").partition(".lora_A.")
        if not found or target.startswith("lm_head"):
            continue
        there = base.get(f"{target}.weight")
        if there is None or there[-1] != shape[-1]:
            width = "no such layer" if there is None else f"{there[-1]} inputs there"
            raise ModelFolderError(
                f"The adapter {adapter!r} does not belong to the model in {base_folder!r}: its layer {target!r} takes "
                f"{shape[-1]} inputs, and the model has {width}. It was trained on "
                f"{config.get('base_model_name_or_path')!r}: name that model, or train a new adapter."
            )


def _check_shards(path: Path) -> None:
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return
    wanted = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
    missing = sorted(name for name in wanted if not (path / name).is_file())
    if missing:
        raise ModelFolderError(
            f"The model folder {str(path)!r} is not complete: {len(missing)} of {len(wanted)} weight files are "
            f"missing, {missing[0]} first. Download it again; files that are whole are not fetched twice."
        )


def _tensor_shapes(weights: Path, folder: str) -> dict[str, list[int]]:
    """Tensor names and shapes of a safetensors file whose length fits its header."""
    size = weights.stat().st_size
    with weights.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else _MAX_HEADER_BYTES
        raw = file.read(length) if length < min(size, _MAX_HEADER_BYTES) else b""
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        end = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError):
        end = size + 1
        header = {}
    if end > size:
        raise ModelFolderError(
            f"The file {weights.name} in {folder!r} is cut off or is no safetensors file (it has {size:,} bytes), as "
            "after a download or a copy that was broken off, or a pointer of a repository without its large files. "
            "Download it again."
        )
    return {name: tensor["shape"] for name, tensor in header.items()}


def _has_chat_template(path: Path) -> bool:
    if (path / "chat_template.jinja").is_file() or (path / "chat_template.json").is_file():
        return True
    config = path / "tokenizer_config.json"
    return config.is_file() and bool(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))
