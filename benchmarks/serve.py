"""How much work `semievol serve` gets out of a CPU, against plain `generate` on the same model and shapes.

    python -m benchmarks.serve --json            # demo model and a 100 M-parameter random Llama, some minutes
    python -m benchmarks.serve --quick --check   # the demo model and a small one; exit 1 below the target
    python -m benchmarks.serve --vllm-bin FOLDER --transformers-bin FOLDER     # ask these servers the same

`share_of_static` is the server's rate with all requests at once divided by that of one static batch of the same
prompts: what it keeps of the gain over asking one by one; `share_of_static_n4` likewise for single requests of four
samples against static batches of four. Prompts are the same texts, answers as long (`tokens` says how many each
made), threads equal; four samples are drawn at a temperature near zero, so that both sides make the same lengths.
The server's numbers include HTTP, JSON and the chat template. Both sides take turns and the best round of each
counts, since other work on the machine only takes away. Knows nothing of quality.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serve_servers import (
    NEAR_GREEDY,
    Rates,
    Shape,
    prompts,
    semievol_server,
    served_rates,
    transformers_server,
    vllm_server,
)

ROOT = Path(__file__).resolve().parent.parent
DEMO_MODEL = ROOT / "semievol_api" / "demo" / "model"
TARGET_SHARE = 0.85
TEMPLATE = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '<|end|>' + m['content'] | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>' }}{% endif %}"
)


def make_model(folder: Path, layers: int, width: int) -> None:
    """Write a random Llama with a byte tokenizer; 14 layers of width 768 are 100 M parameters."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    kind: Any = PreTrainedTokenizerFast
    fast = kind(tokenizer_object=tokenizer, eos_token="<|eot|>", pad_token="<|pad|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>"]})
    fast.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=width, num_hidden_layers=layers,
        intermediate_size=-(-width * 8 // 3 // 64) * 64,  # a multiple of 64, as real models have
        num_attention_heads=max(4, width // 64), max_position_embeddings=1024, tie_word_embeddings=True,
        eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


# --------------------------------------------------------------------------------------------- plain generate
class Plain:
    """`generate` on the model: one prompt at a time, all in one static batch, four samples of one."""

    def __init__(self, folder: Path, shape: Shape, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(threads)
        self._shape = shape
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        eos: int | list[int] = self._model.generation_config.eos_token_id
        self._ends = {eos} if isinstance(eos, int) else set(eos)

    def rates(self) -> Rates:
        """Tokens per second, the chat template and the tokenizer included."""
        self._tokens([prompts(self._shape)[:1]])
        return Rates.of(alone=self.alone, together=self.together, four=self.four)

    def alone(self) -> int:
        """Some prompts one by one; the tokens made."""
        return self._tokens([[chat] for chat in prompts(self._shape)[: self._shape.alone]])

    def together(self) -> int:
        """All prompts in one static batch; the tokens made."""
        return self._tokens([prompts(self._shape)])

    def four(self) -> int:
        """Some prompts one by one, four samples of each; the tokens made."""
        return self._tokens([[chat] for chat in prompts(self._shape)[: self._shape.alone]], n=4)

    def _tokens(self, groups: Sequence[list[list[dict[str, str]]]], n: int = 1) -> int:
        import torch

        sampling: Any = {"do_sample": False}
        if n > 1:
            sampling = {"do_sample": True, "num_return_sequences": n, "temperature": NEAR_GREEDY, "top_k": 0}
        made = 0
        with torch.inference_mode():
            for group in groups:
                inputs = self._tokenizer.apply_chat_template(
                    group, add_generation_prompt=True, return_tensors="pt", padding=True, return_dict=True
                )
                out = self._model.generate(
                    **inputs,
                    **sampling,
                    max_new_tokens=self._shape.tokens,
                    pad_token_id=self._tokenizer.pad_token_id,
                )
                made += sum(_length(row, self._ends) for row in out[:, inputs["input_ids"].shape[1] :].tolist())
        return made


def _length(tokens: list[int], ends: set[int]) -> int:
    """Tokens of one answer, its end included: what a server counts too."""
    return next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))


# --------------------------------------------------------------------------------------------------- measuring
@dataclass(frozen=True, slots=True)
class OtherServers:
    """Folders with the commands of other servers; None where there is none to ask."""

    transformers: Path | None
    vllm: Path | None


def measure(name: str, folder: Path, shape: Shape, threads: int, rounds: int) -> dict[str, Any]:
    """All rates on one model, in tokens per second, and what they mean."""
    plain, ours = Rates(), Rates()
    with tempfile.TemporaryDirectory() as work, semievol_server(folder, Path(work), threads) as url:
        generate = Plain(folder, shape, threads)
        for _ in range(rounds):
            plain = plain.best(generate.rates())
            ours = ours.best(asyncio.run(served_rates(url, "m", shape)))
    return {
        "model": name,
        "requests": shape.requests,
        "max_tokens": shape.tokens,
        "generate": plain.report(),
        "semievol_serve": ours.report(),
        "gain_static": plain.together / plain.alone,
        "gain_concurrent": ours.together / plain.alone,
        "share_of_static": ours.together / plain.together,
        "share_of_static_n4": ours.four / plain.four,
    }


def measure_beside(folder: Path, shape: Shape, threads: int, beside: OtherServers) -> dict[str, Any]:
    """The same requests to other servers; null where there is none, and why."""
    found: dict[str, Any] = {"transformers_serve": None, "vllm_cpu": None, "absent": {}}
    for name, bin_folder, start, with_n in (
        ("transformers_serve", beside.transformers, transformers_server, False),
        ("vllm_cpu", beside.vllm, vllm_server, True),
    ):
        if bin_folder is None:
            found["absent"][name] = "not installed here; give its folder of commands, see --help"
            continue
        with tempfile.TemporaryDirectory() as work:
            try:
                with start(folder, Path(work), threads, bin_folder) as url:
                    asyncio.run(served_rates(url, str(folder), shape, with_n=with_n))
                    found[name] = asyncio.run(served_rates(url, str(folder), shape, with_n=with_n)).report()
            except (OSError, RuntimeError) as error:
                log = (Path(work) / "log").read_text()[-600:] if (Path(work) / "log").exists() else ""
                found["absent"][name] = f"{type(error).__name__}: {str(error)[:300]} {log}".strip()
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--check", action="store_true", help="exit 1 below the target")
    parser.add_argument("--quick", action="store_true", help="the demo model and a small random one only")
    parser.add_argument("--model", type=Path, help="folder of a model to measure instead")
    parser.add_argument("--only", choices=("demo", "random"), help="one of the two models")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side; the best counts")
    parser.add_argument("--transformers-bin", type=Path, help="folder with a `transformers` command that can serve")
    parser.add_argument("--vllm-bin", type=Path, help="folder with a `vllm` command, for the CPU")
    return parser.parse_args()


def models(asked: argparse.Namespace, work: Path) -> list[tuple[str, Path, Shape]]:
    """What to measure: name, folder, shape."""
    if asked.model is not None:
        return [(asked.model.name, asked.model, Shape(64, 16, 32))]
    size, layers, width = ("3 M", 4, 256) if asked.quick else ("100 M", 14, 768)
    make_model(work / "random", layers, width)
    shape = Shape(64, 16, 32) if asked.quick else Shape(64, 2, 16, words=8)
    found = {
        "demo": ("demo", DEMO_MODEL, Shape(64, 16, 32)),
        "random": (f"random Llama, {size}", work / "random", shape),
    }
    return [found[asked.only]] if asked.only else list(found.values())


def main() -> int:
    """Measure, print, and compare with the target."""
    asked = parse_arguments()
    beside = OtherServers(asked.transformers_bin, asked.vllm_bin)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        for name, folder, shape in models(asked, Path(work)):
            measured = measure(name, folder, shape, asked.threads, asked.rounds)
            results.append(_rounded(measured | measure_beside(folder, shape, asked.threads, beside)))
    shares = [result[key] for result in results for key in ("share_of_static", "share_of_static_n4")]
    report = {
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "threads": asked.threads},
        "load_average": round(os.getloadavg()[0], 2),
        "target_share": TARGET_SHARE,
        "results": results,
        "met": all(share >= TARGET_SHARE for share in shares),
    }
    sys.stdout.write(json.dumps(report, indent=None if asked.json else 2) + "\n")
    return 1 if asked.check and not report["met"] else 0


if __name__ == "__main__":
    sys.exit(main())
