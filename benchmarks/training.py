"""Real tokens per second of our training batches against the released recipe's shape, on one model in one run.

    python -m benchmarks.training --json --check          # a random Llama of 100 M parameters on the CPU
    python -m benchmarks.training --json --trl             # TRL's trainer beside both
    python -m benchmarks.training --model 8b --device cuda # the shape of Llama-3.1-8B, with MFU and peak memory

Ours: passes of similar lengths up to a token budget, logits only where something is learnt, no activation
checkpointing. The released recipe: batch 1, 8 accumulated, checkpointing, logits everywhere. Both take the same
examples in the same steps of 8, and must arrive at the same loss. Lengths follow fpb, mmlu and pubmedqa (a third
each, by their deciles). Padding counts as work, not as tokens. On a CPU, seconds are the process's own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.training_ways import ours, released, trl
from semievol_providers.local.training_data import TokenExample
from semievol_providers.local.training_job import TrainingJob

DECILES = {
    "fpb": (84, 93, 97, 100, 103, 107, 111, 115, 120, 128, 152),
    "mmlu": (70, 88, 96, 104, 114, 129, 146, 162, 201, 333, 843),
    "pubmedqa": (162, 317, 361, 382, 400, 424, 437, 457, 486, 525, 668),
}
"""Tokens of a chat at 0 %, 10 % .. 100 % of each data set's labelled questions."""
ANSWER_TOKENS = 5
PER_STEP = 8
PROMISED = {"cpu": 1.3, "cuda": 3.0}
"""How many times the released recipe's tokens per second."""
LARGEST_DIFFERENCE = 1e-3
SHAPES = {
    "100m": {
        "hidden_size": 640,
        "intermediate_size": 1792,
        "num_hidden_layers": 16,
        "num_attention_heads": 10,
        "num_key_value_heads": 5,
        "vocab_size": 32000,
        "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured, where, and on how much."""

    model: str
    device: str
    steps: int
    tokens_per_pass: int
    threads: int
    with_trl: bool = False


@dataclass(frozen=True, kw_only=True)
class Result:
    """One way to train: seconds, the losses of all steps, peak memory of the device (0 on the CPU)."""

    seconds: float
    losses: list[float]
    peak_bytes: int
    parameters: int


def examples(count: int, vocabulary: int) -> list[TokenExample]:
    """Random tokens in the mix's lengths, the last few learnt; the same ones every time."""
    chance = np.random.default_rng(0)
    made: list[TokenExample] = []
    for _, name in zip(range(count), itertools.cycle(DECILES), strict=False):
        length = int(np.interp(chance.random(), np.linspace(0, 1, 11), DECILES[name]))
        ids = chance.integers(10, vocabulary, length).tolist()
        made.append(TokenExample(tuple(ids), (False,) * (length - ANSWER_TOKENS) + (True,) * ANSWER_TOKENS))
    return made


def make_model(setting: Setting) -> Any:
    """A random Llama with a LoRA of rank 16 on all linear layers; the same one every time."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    dtype = torch.float32 if setting.device == "cpu" else torch.bfloat16
    with torch.device(setting.device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        base = LlamaForCausalLM(LlamaConfig(**SHAPES[setting.model], max_position_embeddings=2048))
        torch.set_default_dtype(before)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(base, config)


def measure(way: Any, setting: Setting, rows: Sequence[TokenExample], folder: Path) -> Result:
    """Time one way on a fresh model; on a GPU after a step of warming up on another."""
    job = TrainingJob(
        base="", training_file="", folder=str(folder), n_epochs=1, batch_size=PER_STEP, learning_rate=2e-4,
        warmup_share=0.0, tokens_per_pass=setting.tokens_per_pass, save_every_s=1e9, device=setting.device,
    )  # fmt: skip
    model = make_model(setting)
    if setting.device != "cpu":
        way(model, rows[:PER_STEP], job)
        model = None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        model = make_model(setting)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.safetensors").unlink(missing_ok=True)
    started = clock(setting.device)
    losses = way(model, rows, job)
    seconds = clock(setting.device) - started
    peak = torch.cuda.max_memory_allocated() if setting.device != "cpu" else 0
    parameters = sum(p.numel() for name, p in model.named_parameters() if "lora" not in name)
    return Result(seconds=seconds, losses=losses, peak_bytes=peak, parameters=parameters)


def clock(device: str) -> float:
    """Seconds: this process's own on a CPU, so that what else runs there does not count; by the wall on a GPU."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def matmul_peak_flops(device: str) -> float:
    """The best rate of a large matrix product on this device, in operations per second."""
    size, dtype = (1024, torch.float32) if device == "cpu" else (8192, torch.bfloat16)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        started = clock(device)
        a @ b
        best = min(best, clock(device) - started)
    return 2.0 * size**3 / best


def report(setting: Setting) -> dict[str, Any]:
    """Both ways, one after the other, and their comparison."""
    shape = SHAPES[setting.model]
    rows = examples(setting.steps * PER_STEP, int(shape["vocab_size"]))
    tokens = sum(len(row.ids) for row in rows)
    peak = matmul_peak_flops(setting.device)
    with TemporaryDirectory() as folder:
        theirs = measure(released, setting, rows, Path(folder) / "released")
        mine = measure(ours, setting, rows, Path(folder) / "ours")
        beside = _beside(measure(trl, setting, rows, Path(folder) / "trl"), mine, tokens) if setting.with_trl else {}
    body = mine.parameters
    # A frozen base needs two products forward and two for the gradient of its inputs, none for its weights.
    useful = 4.0 * body * tokens
    return {
        "model": setting.model,
        "parameters": body,
        "device": setting.device,
        "threads": setting.threads,
        "torch": torch.__version__,
        "examples": len(rows),
        "real_tokens": tokens,
        "released_tokens_per_s": round(tokens / theirs.seconds, 1),
        "ours_tokens_per_s": round(tokens / mine.seconds, 1),
        "speedup": round(theirs.seconds / mine.seconds, 2),
        "largest_loss_difference": max(abs(a - b) for a, b in zip(theirs.losses, mine.losses, strict=True)),
        "last_losses": [theirs.losses[-1], mine.losses[-1]],
        "matmul_peak_gflops": round(peak / 1e9),
        "mfu": round(useful / mine.seconds / peak, 3),
        "peak_gib": [round(r.peak_bytes / 2**30, 2) for r in (theirs, mine)],
        **beside,
    }


def _beside(theirs: Result, mine: Result, tokens: int) -> dict[str, Any]:
    """TRL's figures against ours."""
    return {
        "trl_tokens_per_s": round(tokens / theirs.seconds, 1),
        "speedup_over_trl": round(theirs.seconds / mine.seconds, 2),
        "largest_loss_difference_to_trl": max(abs(a - b) for a, b in zip(theirs.losses, mine.losses, strict=True)),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(SHAPES), default="100m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps of 8 examples")
    parser.add_argument("--tokens-per-pass", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--trl", action="store_true", help="TRL's SFTTrainer as well (pip install trl)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true", help="fail where a promise is not kept")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    budget = given.tokens_per_pass or (1024 if given.device == "cpu" else 8192)
    setting = Setting(
        model=given.model, device=given.device, steps=given.steps, tokens_per_pass=budget, threads=given.threads,
        with_trl=given.trl,
    )  # fmt: skip
    found = report(setting)
    if given.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:26} {value}")
    if given.check:
        _check(found)


def _check(found: dict[str, Any]) -> None:
    least = PROMISED[str(found["device"]).partition(":")[0]]
    if found["largest_loss_difference"] > LARGEST_DIFFERENCE:
        sys.exit(f"The two ways do not train the same: {found['largest_loss_difference']} > {LARGEST_DIFFERENCE}.")
    if found["speedup"] < least:
        sys.exit(f"Only {found['speedup']} x the released recipe's tokens per second; {least} x is promised.")


if __name__ == "__main__":
    main()
