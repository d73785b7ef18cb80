"""Whether answers depend on company: 2,000 prompts asked one by one, and again 32 at a time, on the demo model.

    python -m benchmarks.serve_exact --json --check      # exit 1 below 99.9 % equal greedy answers

Also compares the log-probabilities of sampled tokens with a plain forward pass. Knows nothing of speed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from typing import Any

from benchmarks.serve import DEMO_MODEL

WORDS = ("mass", "law", "market", "memory", "cell", "force", "ethics", "price", "mind", "heart", "what", "is", "the")
TARGET_EQUAL = 0.999
TARGET_LOGPROB = 1e-4
TOGETHER = 32
SCORED = 40


def main() -> int:
    """Ask, compare, print, and check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--check", action="store_true", help="exit 1 below the targets")
    parser.add_argument("--prompts", type=int, default=2000)
    asked = parser.parse_args()
    found = compare(asked.prompts)
    met = found["equal_greedy_share"] >= TARGET_EQUAL and found["largest_logprob_gap"] <= TARGET_LOGPROB
    sys.stdout.write(json.dumps({"met": met, **found}, indent=None if asked.json else 2) + "\n")
    return 1 if asked.check and not met else 0


def compare(count: int) -> dict[str, Any]:
    """Answers alone and in company, and log-probabilities beside a plain pass."""
    import torch

    from semievol_providers.local.engine import Engine
    from semievol_providers.local.model_folder import load_model
    from semievol_providers.local.requests import EngineSettings, GenerateRequest

    engine = Engine(str(DEMO_MODEL), EngineSettings())
    engine.start()
    chance = random.Random(0)
    texts = [" ".join(chance.choices(WORDS, k=chance.randrange(3, 60))) for _ in range(count)]
    prompts = [engine.tokens.encode_chat([{"role": "user", "content": text}]) for text in texts]

    def request(prompt: tuple[int, ...], temperature: float) -> GenerateRequest:
        return GenerateRequest(prompt_ids=prompt, max_tokens=8, seed=1, temperature=temperature, top_logprobs=0)

    greedy = [request(prompt, 0.0) for prompt in prompts]
    alone = [engine.generate(one).result() for one in greedy]
    company = []
    for start in range(0, count, TOGETHER):
        futures = [engine.generate(one) for one in greedy[start : start + TOGETHER]]
        company += [future.result() for future in futures]
    model = load_model(str(DEMO_MODEL), "cpu")
    gap = 0.0
    for prompt in prompts[:SCORED]:
        sample = engine.generate(request(prompt, 1.0)).result().samples[0]
        with torch.inference_mode():
            scores = model(input_ids=torch.tensor([[*prompt, *sample.token_ids]])).logits[0].log_softmax(-1)
        for at, (token, logprob) in enumerate(zip(sample.token_ids, sample.logprobs or (), strict=True)):
            gap = max(gap, abs(float(scores[len(prompt) - 1 + at, token]) - logprob))
    engine.close()
    pairs = list(zip(alone, company, strict=True))
    return {
        "prompts": count,
        "equal_greedy_share": sum(a.samples[0].token_ids == b.samples[0].token_ids for a, b in pairs) / count,
        "equal_bits_share": sum(a == b for a, b in pairs) / count,
        "largest_logprob_gap": gap,
    }


if __name__ == "__main__":
    sys.exit(main())
