"""The formulas of memory: against parameters counted, and against the tensors that a training really keeps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from semievol_providers.local.footprint import (
    Plan,
    activation_bytes,
    adapter_parameters,
    cache_bytes,
    parameters,
    read_shape,
    tokens_that_fit,
    training_bytes,
    training_flops,
    weight_bytes,
)
from semievol_providers.local.training_data import TokenExample
from semievol_providers.local.training_passes import PaddedPasses

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
LLAMA_31_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
SMALL = {
    "hidden_size": 256, "intermediate_size": 896, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 512, "tie_word_embeddings": True,
}  # fmt: skip


def _write(folder: Path, named: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(named))
    return folder / "config.json"


def _model(named: dict[str, Any], device: str, rank: int = 16) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device(device):
        base = LlamaForCausalLM(LlamaConfig(**named)).to(torch.bfloat16)
        return get_peft_model(
            base, LoraConfig(r=rank, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        )


@pytest.mark.parametrize(("named", "rank"), [(LLAMA_31_8B, 16), (LLAMA_31_8B, 64), (SMALL, 8)])
def test_parameters_are_those_of_the_model_itself(tmp_path: Path, named: dict[str, Any], rank: int) -> None:
    shape, model = read_shape(_write(tmp_path, named)), _model(named, "meta", rank)
    counted = {True: 0, False: 0}
    for parameter in model.parameters():
        counted[parameter.requires_grad] += parameter.numel()
    assert parameters(shape) == counted[False]
    assert adapter_parameters(shape, rank) == counted[True]


def test_the_numbers_of_llama_31_8b_are_those_that_the_docs_tell(tmp_path: Path) -> None:
    shape = read_shape(_write(tmp_path, LLAMA_31_8B))
    docs = (Path(__file__).resolve().parents[2] / "docs" / "local.md").read_text(encoding="utf-8")
    told = (
        f"{weight_bytes(shape) / 1e9:.1f} GB",
        f"{weight_bytes(shape, qlora=True) / 1e9:.1f} GB",
        f"{cache_bytes(shape) / 1e3:.0f} kB",
        f"{adapter_parameters(shape, 16) / 1e6:.0f} M",
        f"{activation_bytes(shape, 16) / 1e6:.1f} MB per token",
        f"{activation_bytes(shape, 16, checkpointing=True) / 1e6:.2f} MB per token",
        f"{training_flops(shape, 400_000) / 1e15:.1f} PFLOP",
        *(
            f"{tokens_that_fit(shape, gb * 1e9, Plan(qlora=qlora, checkpointing=checkpointing)):,}"
            for gb in (24, 80)
            for qlora in (False, True)
            for checkpointing in (False, True)
        ),
    )
    assert [number for number in told if number not in docs] == []


def test_the_cache_is_as_large_as_transformers_makes_it(tmp_path: Path) -> None:
    shape, model = read_shape(_write(tmp_path, SMALL)), _model(SMALL, "cpu")
    with torch.inference_mode():
        kept = model(input_ids=torch.ones((1, 7), dtype=torch.long), use_cache=True).past_key_values
    size = sum(t.numel() * t.element_size() for layer in kept.layers for t in (layer.keys, layer.values))
    assert size == 7 * cache_bytes(shape)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_a_training_keeps_for_the_way_back(tmp_path: Path, checkpointing: bool) -> None:
    """By every storage that autograd saves, weights apart; two depths, so that only whole layers count."""
    shape = read_shape(_write(tmp_path, SMALL))
    tokens = 512
    row = TokenExample(tuple(5 + i % 300 for i in range(tokens)), (False,) * (tokens - 5) + (True,) * 5)
    kept = [_kept_bytes({**SMALL, "num_hidden_layers": layers}, row, checkpointing) for layers in (1, 3)]
    measured = (kept[1] - kept[0]) / 2 / tokens
    assert activation_bytes(shape, 16, checkpointing=checkpointing) / shape.layers == pytest.approx(measured, rel=0.02)


def _kept_bytes(named: dict[str, Any], row: TokenExample, checkpointing: bool) -> int:
    torch.set_num_threads(1)
    model = _model(named, "cpu").train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        PaddedPasses(0).loss(model, [row], "cpu")
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_what_fits_is_the_most_that_fits(tmp_path: Path) -> None:
    shape = read_shape(_write(tmp_path, LLAMA_31_8B))
    room = 80e9
    for plan in (Plan(), Plan(qlora=True), Plan(checkpointing=True)):
        most = tokens_that_fit(shape, room, plan)
        sizes = [
            training_bytes(
                shape, Plan(tokens_per_pass=most + more, qlora=plan.qlora, checkpointing=plan.checkpointing)
            ).total
            for more in (0, 1)
        ]
        assert sizes[0] <= room - 1.5e9 < sizes[1]
    assert tokens_that_fit(shape, 12e9, Plan()) == 0


def test_the_command_says_what_fits(tmp_path: Path, child_env: dict[str, str]) -> None:
    _write(tmp_path, LLAMA_31_8B)
    command = [sys.executable, "-m", "semievol_providers.local.footprint", str(tmp_path), "--gpu-gb", "24"]
    done = subprocess.run(command, env=child_env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "8,030,261,248" in done.stdout
    assert "qlora and checkpointing" in done.stdout
