"""Open a model folder: weights as safetensors, tokenizer, end-of-turn tokens, context length.

Refuses pickled weights and code from the folder. Knows nothing of requests, adapters or training.
"""

from __future__ import annotations

import json
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

    `cache_values` is how many numbers the cache of one token holds, 0 where the config does not tell.
    """

    folder: str
    context_tokens: int
    hidden_size: int
    vocab_size: int
    weight_bytes: int
    cache_values: int = 0


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


def load_model(folder: str, device: str, **options: Any) -> PreTrainedModel:
    """The model in `folder`, in eval mode: float32 on the CPU, bfloat16 on an accelerator.

    `options` go to transformers; a model in 4 bits is made where it stays.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    chatter: Any = transformers.utils.logging
    chatter.disable_progress_bar()
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    in_place = "quantization_config" in options
    if in_place:
        options = {**options, "device_map": {"": device}}
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True, **options
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
