"""One side of `benchmarks.llm`: loads a model, does the work that lines on standard input name, and tells its cost.

    python benchmarks/llm_sides.py engine FOLDER     # or: engine-float32, engine-exact, transformers, vllm

A line is the name of some work and a part's number; the answer is one line of JSON: CPU seconds of this process and
all its threads, tokens, and for reads the log-probabilities. Runs in any environment that has what the side needs,
with `PYTHONPATH` naming the tree whose engine is meant. Knows nothing of targets.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

PROMPT, HEAD, GROUP, PART, TRUTH = 200, 150, 16, 64, 8
CHAT, NEW_TOKENS, CHATS, ALONE = 60, 16, 64, 8
GROUPS = ((330,), (389, 340), (407,), (422, 420))
"""Token ids of the options that are read: single tokens that any vocabulary of some thousands has."""
_LEAST_ID, _MOST_ID = 100, 30_000

Ids = tuple[int, ...]


def _ids(chance: random.Random, count: int) -> Ids:
    return tuple(chance.randrange(_LEAST_ID, _MOST_ID) for _ in range(count))


def prompts_of(work: str, part: int) -> list[Ids]:
    """The prompts of one part of some work, different in each part."""
    chance = random.Random(f"{work} {part}")
    if work in ("reads", "truth"):
        chance = random.Random(f"reads {part}")
        return [_ids(chance, PROMPT) for _ in range(PART if work == "reads" else TRUTH)]
    if work == "heads":
        heads = [_ids(chance, HEAD) for _ in range(PART // GROUP)]
        mixed = [head + _ids(chance, PROMPT - HEAD) for head in heads for _ in range(GROUP)]
        chance.shuffle(mixed)
        return mixed
    return [_ids(chance, CHAT) for _ in range(CHATS if work == "together" else ALONE)]


class EngineSide:
    """The engine of this project, whichever commit's."""

    def __init__(self, folder: str, **settings: Any) -> None:
        from semievol_providers.local.engine import Engine
        from semievol_providers.local.requests import EngineSettings

        self._engine = Engine(folder, EngineSettings(**settings))
        self._engine.start()

    def read(self, prompts: Sequence[Ids]) -> list[list[float]]:
        """All asked at once."""
        from semievol_providers.local.requests import ReadRequest

        asked = [self._engine.read(ReadRequest(prompt, GROUPS)) for prompt in prompts]
        return [[value for value in one.result().logprobs if value is not None] for one in asked]

    def chat(self, prompts: Sequence[Ids], n: int, together: bool) -> int:
        """How many tokens were made."""
        from semievol_providers.local.requests import GenerateRequest

        requests = [
            GenerateRequest(prompt_ids=p, max_tokens=NEW_TOKENS, seed=1, n=n, temperature=0.7 if n > 1 else 0.0)
            for p in prompts
        ]
        if together:
            done = [one.result() for one in [self._engine.generate(request) for request in requests]]
        else:
            done = [self._engine.generate(request).result() for request in requests]
        return sum(sample.counted_tokens for answer in done for sample in answer.samples)


class TransformersSide:
    """Plain transformers with static batches of equal lengths, the size that is fastest here."""

    def __init__(self, folder: str, dtype: str = "bfloat16") -> None:
        import torch
        from transformers import AutoModelForCausalLM

        auto: Any = AutoModelForCausalLM
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        self._model: Any = auto.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        self.batch = 8
        trial = prompts_of("reads", -1)[:32]
        costs = {}
        for size in (1, 8, 32) if dtype != "float32" else ():
            self.batch = size
            costs[size] = _cost(lambda: self.read(trial))
        self.batch = min(costs, key=costs.__getitem__, default=8)

    def read(self, prompts: Sequence[Ids]) -> list[list[float]]:
        """The logits of the last place only, and their softmax in float32."""
        import torch

        found: list[list[float]] = []
        with torch.inference_mode():
            for start in range(0, len(prompts), self.batch):
                ids = torch.tensor(prompts[start : start + self.batch])
                out = self._model(input_ids=ids, use_cache=False, logits_to_keep=1)
                scores = out.logits[:, -1].float().log_softmax(-1)
                groups = [torch.logsumexp(scores[:, list(group)], -1) for group in GROUPS]
                found += torch.stack(groups, 1).tolist()
        return found

    def chat(self, prompts: Sequence[Ids], n: int, together: bool) -> int:
        """How many tokens were made; all are as long as they may be."""
        import torch

        made = 0
        settings: dict[str, Any] = {"min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS, "do_sample": n > 1}
        settings |= {"num_return_sequences": n, "temperature": 0.7} if n > 1 else {}
        with torch.inference_mode():
            for batch in [prompts] if together else [[prompt] for prompt in prompts]:
                ids = torch.tensor(batch)
                out = self._model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
                made += out.shape[0] * (out.shape[1] - ids.shape[1])
        return made


class VllmSide:
    """vLLM for the CPU in this process."""

    def __init__(self, folder: str) -> None:
        os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
        from vllm import LLM

        self._model: Any = LLM(
            folder, dtype="bfloat16", max_model_len=1024, max_num_seqs=64, enable_prefix_caching=True,
            enable_chunked_prefill=False, max_num_batched_tokens=8192, disable_log_stats=True,
        )  # fmt: skip

    def _ask(self, prompts: Sequence[Ids], **settings: Any) -> list[Any]:
        from vllm import SamplingParams

        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        found: list[Any] = self._model.generate(asked, SamplingParams(**settings), use_tqdm=False)
        return found

    def read(self, prompts: Sequence[Ids]) -> list[list[float]]:
        """One token each, with the likeliest ones' log-probabilities; options further down have none."""
        self._ask(prompts, max_tokens=1, temperature=0.0, logprobs=20)
        return []

    def chat(self, prompts: Sequence[Ids], n: int, together: bool) -> int:
        """How many tokens were made."""
        settings = {"max_tokens": NEW_TOKENS, "ignore_eos": True, "n": n, "temperature": 0.7 if n > 1 else 0.0}
        parts = [prompts] if together else [[prompt] for prompt in prompts]
        answers = [answer for part in parts for answer in self._ask(part, **settings)]
        return sum(len(sample.token_ids) for answer in answers for sample in answer.outputs)


Side = EngineSide | TransformersSide | VllmSide
SIDES: dict[str, Callable[[str], Side]] = {
    "engine": EngineSide,
    "engine-float32": lambda folder: EngineSide(folder, dtype="float32"),
    "engine-exact": lambda folder: EngineSide(folder, exact_limit_bytes=2**62),
    "transformers": TransformersSide,
    "float32": lambda folder: TransformersSide(folder, "float32"),
    "vllm": VllmSide,
}


def _cost(work: Callable[[], object]) -> float:
    since = time.process_time()
    work()
    return time.process_time() - since


def run(side: Side, work: str, part: int) -> dict[str, Any]:
    """Do one part of some work."""
    prompts = prompts_of(work, part)
    told: dict[str, Any] = {"tokens": sum(map(len, prompts))}
    since = time.process_time()
    if work in ("reads", "heads", "truth"):
        told["logprobs"] = side.read(prompts)
    else:
        told["tokens"] = side.chat(prompts, 4 if work == "four" else 1, together=work == "together")
    return {"cpu_s": time.process_time() - since, **told}


def main() -> None:
    """Load, say so, and work until the input ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries talk on standard output
    side = SIDES[sys.argv[1]](sys.argv[2])
    side.read(prompts_of("reads", -1)[:4])
    batch = side.batch if isinstance(side, TransformersSide) else None
    print(json.dumps({"ready": True, "batch": batch}), file=out, flush=True)
    for line in sys.stdin:
        work, part = line.split()
        print(json.dumps(run(side, work, int(part))), file=out, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
