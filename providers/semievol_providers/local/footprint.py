"""How much memory and time a model takes, by formula, from its config.json alone.

    python -m semievol_providers.local.footprint models/Llama-3.1-8B-Instruct --gpu-gb 24

The formulas hold for decoders like Llama, Qwen and Mistral; tests hold them to parameters counted and to tensors that
a training really keeps. Imports no torch. Knows nothing of engines or jobs.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_RESERVED_BYTES = 1_500_000_000
"""What CUDA, its libraries and fragmentation take of a GPU before anything is computed: an allowance, not measured."""
_FOUR_BIT_BYTES = 0.5 + 0.016
"""Of a weight in NormalFloat4, its doubly quantized scale included (QLoRA, section 3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The numbers of a config.json that sizes follow from."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int
    tied: bool

    @property
    def key_value_width(self) -> int:
        """Of a token's key, and of its value."""
        return self.key_value_heads * self.head_size

    def linear(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a layer's linear parts."""
        h, f, a, kv = self.hidden, self.intermediate, self.heads * self.head_size, self.key_value_width
        return {
            "q_proj": (h, a), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (a, h),
            "gate_proj": (h, f), "up_proj": (h, f), "down_proj": (f, h),
        }  # fmt: skip


def read_shape(config: Path) -> Shape:
    """The shape in a config.json."""
    named: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    named = named.get("text_config", named)
    heads = int(named["num_attention_heads"])
    return Shape(
        layers=int(named["num_hidden_layers"]),
        hidden=int(named["hidden_size"]),
        intermediate=int(named["intermediate_size"]),
        heads=heads,
        key_value_heads=int(named.get("num_key_value_heads") or heads),
        head_size=int(named.get("head_dim") or named["hidden_size"] // heads),
        vocabulary=int(named["vocab_size"]),
        tied=bool(named.get("tie_word_embeddings", False)),
    )


def _linear_parameters(shape: Shape) -> int:
    """Of all layers' linear parts, which are what 4 bits hold and what a LoRA is laid over."""
    return shape.layers * sum(inputs * outputs for inputs, outputs in shape.linear().values())


def parameters(shape: Shape) -> int:
    """Of the whole model."""
    embeddings = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    norms = (2 * shape.layers + 1) * shape.hidden
    return _linear_parameters(shape) + embeddings + norms


def adapter_parameters(shape: Shape, rank: int, targets: tuple[str, ...] = _ALL_LINEAR) -> int:
    """Of a LoRA of this rank."""
    sides = shape.linear()
    return shape.layers * rank * sum(sum(sides[target]) for target in targets)


def cache_bytes(shape: Shape, bytes_each: int = 2) -> int:
    """Keys and values of one token."""
    return 2 * shape.layers * shape.key_value_width * bytes_each


def activation_bytes(shape: Shape, rank: int, *, checkpointing: bool = False) -> int:
    """What a training in bfloat16 keeps of one token for the way back.

    Half of it are PEFT's float32 copies of the inputs of every LoRA: 4 (6 h + f) bytes a layer. With checkpointing, a
    layer's input, and one layer at a time in full (which `training_bytes` adds).
    """
    if checkpointing:
        return shape.layers * 2 * shape.hidden
    return shape.layers * _layer_bytes(shape, rank)


def _layer_bytes(shape: Shape, rank: int) -> int:
    h, f, a, kv = shape.hidden, shape.intermediate, shape.heads * shape.head_size, shape.key_value_width
    norms = 2 * 4 * h  # float32
    lora = 4 * (5 * h + a + f) + 7 * 4 * rank
    attention = 2 * (2 * a + 2 * kv) + 4 * shape.heads
    feed_forward = 3 * 2 * f
    return norms + lora + attention + feed_forward


@dataclass(frozen=True, slots=True, kw_only=True)
class _TrainingBytes:
    """What a training holds at its fullest."""

    weights: int
    adapter: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.adapter + self.activations + self.logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A way to train: the LoRA's rank, tokens and learnt tokens of a pass, the base in 4 bits, checkpointing."""

    rank: int = 16
    tokens_per_pass: int = 8192
    learnt_per_pass: int = 200
    qlora: bool = False
    checkpointing: bool = False


def weight_bytes(shape: Shape, *, qlora: bool = False) -> int:
    """In bfloat16, or with the linear parts in 4 bits."""
    if not qlora:
        return 2 * parameters(shape)
    linear = _linear_parameters(shape)
    return 2 * (parameters(shape) - linear) + round(linear * _FOUR_BIT_BYTES)


def training_bytes(shape: Shape, plan: Plan) -> _TrainingBytes:
    """By the parts; an adapter's parameter has itself, a gradient and two moments in float32."""
    kept = plan.tokens_per_pass * activation_bytes(shape, plan.rank, checkpointing=plan.checkpointing)
    one_layer = plan.tokens_per_pass * _layer_bytes(shape, plan.rank) if plan.checkpointing else 0
    return _TrainingBytes(
        weights=weight_bytes(shape, qlora=plan.qlora),
        adapter=16 * adapter_parameters(shape, plan.rank),
        activations=kept + one_layer,
        logits=12 * shape.vocabulary * plan.learnt_per_pass,
    )


def tokens_that_fit(shape: Shape, gpu_bytes: float, plan: Plan) -> int:
    """The largest `tokens_per_pass` for a GPU; 0 where not even the weights fit."""
    none = training_bytes(
        shape, Plan(rank=plan.rank, tokens_per_pass=0, learnt_per_pass=plan.learnt_per_pass, qlora=plan.qlora)
    )
    of_one = activation_bytes(shape, plan.rank, checkpointing=plan.checkpointing)
    of_one += _layer_bytes(shape, plan.rank) if plan.checkpointing else 0
    return max(0, int((gpu_bytes - _RESERVED_BYTES - none.total) // of_one))


def _cached_tokens_that_fit(shape: Shape, gpu_bytes: float, share: float = 0.9) -> int:
    """Tokens of prompts and answers that an engine in bfloat16 holds at a time."""
    return max(0, int((share * gpu_bytes - _RESERVED_BYTES - weight_bytes(shape)) // cache_bytes(shape)))


def training_flops(shape: Shape, tokens: int, *, checkpointing: bool = False) -> float:
    """Products of a frozen base: two a parameter forward, two for the gradient of its inputs, two once more."""
    return (6.0 if checkpointing else 4.0) * parameters(shape) * tokens


def main() -> None:
    """Print what fits one GPU."""
    parser = argparse.ArgumentParser(description="What fits one GPU, by formula.")
    parser.add_argument("model", type=Path, help="folder with a config.json")
    parser.add_argument("--gpu-gb", type=float, default=24.0, help="memory of one GPU in 10^9 bytes")
    parser.add_argument("--rank", type=int, default=16)
    given = parser.parse_args()
    shape, room = read_shape(given.model / "config.json"), given.gpu_gb * 1e9
    lines = [
        f"parameters                     {parameters(shape):,} ({weight_bytes(shape) / 1e9:.1f} GB in bfloat16, "
        f"{weight_bytes(shape, qlora=True) / 1e9:.1f} GB in 4 bits)",
        f"LoRA of rank {given.rank:<4}              {adapter_parameters(shape, given.rank):,} parameters, "
        f"{16 * adapter_parameters(shape, given.rank) / 1e9:.2f} GB with gradient and moments",
        f"cache                          {cache_bytes(shape) / 1e3:.0f} kB a token, room for "
        f"{_cached_tokens_that_fit(shape, room):,} tokens at gpu_memory_share = 0.9",
    ]
    for name, plan in (
        ("", Plan(rank=given.rank)),
        (", checkpointing", Plan(rank=given.rank, checkpointing=True)),
        (", qlora", Plan(rank=given.rank, qlora=True)),
        (", qlora and checkpointing", Plan(rank=given.rank, qlora=True, checkpointing=True)),
    ):
        lines.append(f"{'tokens_per_pass' + name:42} {tokens_that_fit(shape, room, plan):,}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
