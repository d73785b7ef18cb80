"""Open a model folder: weights as safetensors, tokenizer, end-of-turn tokens, context length.

Refuses pickled weights and code from the folder. Knows nothing of requests, adapters or training.
"""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semievol_api.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ModelFolderError(UserError):
    """A model or adapter folder is missing something or holds something that is refused."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What can be read about a model folder without loading any weight.

    `cache_values` is how many numbers the cache of one token holds, 0 where the config does not tell. `family` is the
    config's `model_type`, `dtype` the type of its weights.
    """

    folder: str
    context_tokens: int
    hidden_size: int
    vocab_size: int
    weight_bytes: int
    cache_values: int = 0
    family: str = ""
    dtype: str = ""


def read_facts(folder: str | Path) -> ModelFacts:
    """Facts of the model in `folder`.

    Raises:
        ModelFolderError: no config.json, no safetensors weights, or code that would have to be run.
    """
    path = Path(folder)
    config_path = path / "config.json"
    if not config_path.is_file():
        raise ModelFolderError(
            f"The model folder {str(folder)!r} has no config.json. Give the folder of a model in the "
            "Hugging Face format (config.json, *.safetensors, tokenizer.json)."
        )
    config = json.loads(config_path.read_text(encoding="utf-8"))
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        raise ModelFolderError(
            f"The model folder {str(folder)!r} has no *.safetensors file. Other weight formats can run code "
            "when they are opened and are refused: convert the model with save_pretrained() first."
        )
    if "auto_map" in config:
        raise ModelFolderError(
            f"The model in {str(folder)!r} needs its own Python code (auto_map in config.json), which is "
            "never run here. Choose a model whose architecture is part of transformers."
        )
    text_config = config.get("text_config", config)
    return ModelFacts(
        folder=str(path.resolve()),
        context_tokens=int(text_config.get("max_position_embeddings", 4096)),
        hidden_size=int(text_config.get("hidden_size", 0)),
        vocab_size=int(text_config.get("vocab_size", 0)),
        weight_bytes=sum(file.stat().st_size for file in weights),
        cache_values=_cache_values(text_config),
        family=str(text_config.get("model_type", "")),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or ""),
    )


def _cache_values(config: Mapping[str, Any]) -> int:
    heads = int(config.get("num_attention_heads") or 0)
    size = int(config.get("head_dim") or (int(config.get("hidden_size") or 0) // heads if heads else 0))
    kept = int(config.get("num_key_value_heads") or heads)
    return 2 * int(config.get("num_hidden_layers") or 0) * kept * size


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The tokenizer of the model in `folder`, from disk only."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def load_model(folder: str, device: str, *, dtype: str | None = None, **options: Any) -> PreTrainedModel:
    """The model in `folder`, in eval mode: by default in float32 on the CPU, in bfloat16 on an accelerator.

    `options` go to transformers; a model in 4 bits is made where it stays.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    chatter: Any = transformers.utils.logging
    chatter.disable_progress_bar()
    dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
    in_place = "quantization_config" in options
    if in_place:
        options = {**options, "device_map": {"": device}}
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        **options,
    )
    ready: PreTrainedModel = (model if in_place else model.to(device)).eval()
    return ready


def quiet_known_warnings() -> None:
    """Keep a deprecation inside peft, about which nobody here can do anything, out of a process's log."""
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)


def end_of_turn_ids(folder: str, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that end a turn: those of generation_config.json and the tokenizer's own."""
    ids: set[int] = set()
    path = Path(folder) / "generation_config.json"
    if path.is_file():
        named = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        ids.update([named] if isinstance(named, int) else named or [])
    if isinstance(tokenizer.eos_token_id, int):
        ids.add(tokenizer.eos_token_id)
    return frozenset(ids)


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


def check_adapter(folder: str) -> None:
    """Refuse a folder that is no safetensors adapter.

    Raises:
        ModelFolderError: adapter_config.json or adapter_model.safetensors is missing.
    """
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (Path(folder) / name).is_file():
            raise ModelFolderError(f"The adapter folder {folder!r} has no {name}.")
