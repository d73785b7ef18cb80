"""Whether any bit of an answer depends on what else is asked: samples alone, then in thousands of random mixes.

    python -m benchmarks.serve_mixes --json --check    # 2,000 mixes on the demo model; exit 1 if a bit differs
    python -m benchmarks.serve_mixes --seed 7 --mixes 500 --threads 2 --model FOLDER

A mix is 2 to 64 samples of a pool that arrive at random steps of the engine; some leave in the middle. Compared are
texts, tokens, every log-probability and every alternative. Knows nothing of speed, threads or HTTP.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semievol_providers.local.batcher import Batcher
    from semievol_providers.local.decoding import Transcript
    from semievol_providers.local.requests import GenerateRequest, SampleOutput

DEMO_MODEL = Path(__file__).resolve().parent.parent / "semievol_api" / "demo" / "model"
SIZES = (2, 3, 5, 9, 17, 33, 64)
LAST_ARRIVAL = 20


@dataclass
class RecordingListener:
    """Listens to one sample; it leaves when it has listeners `patience` tokens."""

    patience: int | None = None
    output: SampleOutput | None = None
    error: Exception | None = None
    tokens: int = 0

    @property
    def dropped(self) -> bool:
        """Whether it has left."""
        return self.error is not None or (self.patience is not None and self.tokens >= self.patience)

    def progress(self, transcript: Transcript, output: SampleOutput | None) -> None:
        """See Listener."""
        self.tokens += 1
        self.output = output

    def fail(self, error: Exception) -> None:
        """See Listener."""
        self.error = error


@dataclass(frozen=True, slots=True)
class Sample:
    """What is asked, and which of its samples is meant."""

    request: GenerateRequest
    number: int


@dataclass(frozen=True, slots=True)
class ScheduledSample:
    """A sample of a mix: when it comes and after how many tokens it leaves, None where it stays."""

    sample: Sample
    arrival: int = 0
    patience: int | None = None


def make_batcher(folder: str, threads: int, cache_bytes: int = 2**30, rows: int = 64) -> Batcher:
    """The engine's batcher on a model, run by hand; `rows` samples share a step."""
    from semievol_providers.local.engine import Engine
    from semievol_providers.local.requests import EngineSettings

    return Engine(folder, EngineSettings(threads=threads, decode_rows=rows, cache_bytes=cache_bytes)).batcher


def answers(batcher: Batcher, entries: Sequence[ScheduledSample]) -> list[SampleOutput | None]:
    """Each entry's answer, None for those that left before."""
    import torch

    from semievol_providers.local.decoding import Row

    listeners = [RecordingListener(entry.patience) for entry in entries]
    rows = [Row(entry.sample.request, entry.sample.number, one) for entry, one in zip(entries, listeners, strict=True)]
    step = 0
    with torch.inference_mode():
        while batcher.busy or step <= max(entry.arrival for entry in entries):
            for entry, row in zip(entries, rows, strict=True):
                if entry.arrival == step:
                    batcher.add(row)
            batcher.step()
            step += 1
    for one in listeners:
        if one.error is not None:
            raise one.error
    return [one.output for one in listeners]


def pool_of(
    count: int, vocabulary: int, chance: random.Random, adapters: Sequence[str | None] = (None,)
) -> list[Sample]:
    """Different samples: prompts of 1 to 300 tokens, answers of 1 to 90, every way of sampling."""
    from semievol_providers.local.requests import GenerateRequest

    pool: list[Sample] = []
    while len(pool) < count:
        length = chance.choice([chance.randrange(1, 40), chance.randrange(40, 140), chance.randrange(140, 300)])
        request = GenerateRequest(
            prompt_ids=tuple(chance.randrange(vocabulary) for _ in range(length)),
            max_tokens=chance.choice([1, 3, 8, 8, 20, 20, 90]),
            seed=chance.randrange(2**31),
            adapter=chance.choice(adapters),
            temperature=chance.choice([0.0, 0.7, 1.0, 1.5]),
            top_p=chance.choice([0.8, 1.0, 1.0]),
            top_logprobs=chance.choice([0, 5, 20]),
            frequency_penalty=chance.choice([0.0, 0.0, 0.6]),
        )
        pool += [Sample(request, number) for number in range(chance.choice([1, 1, 4]))]
    return pool[:count]


def random_mix(pool: Sequence[Sample], chance: random.Random) -> list[ScheduledSample]:
    """A random mix of the pool."""
    chosen = chance.sample(range(len(pool)), min(len(pool), chance.choice(SIZES)))
    spread = chance.choice([0, LAST_ARRIVAL])
    return [
        ScheduledSample(pool[i], chance.randint(0, spread), chance.randrange(1, 20) if chance.random() < 0.1 else None)
        for i in chosen
    ]


@dataclass
class Found:
    """What came out so far."""

    mixes: int = 0
    answers: int = 0
    logprobs: int = 0
    differing: list[dict[str, Any]] = field(default_factory=list)


def compare(batcher: Batcher, pool: Sequence[Sample], mixes: int, chance: random.Random) -> Found:
    """Every sample alone, then in mixes."""
    alone = {sample: answers(batcher, [ScheduledSample(sample)])[0] for sample in pool}
    found = Found()
    for _ in range(mixes):
        entries = random_mix(pool, chance)
        found.mixes += 1
        for entry, answer in zip(entries, answers(batcher, entries), strict=True):
            if answer is None:
                continue
            found.answers += 1
            found.logprobs += len(answer.logprobs or ()) + sum(len(top) for top in answer.top or ())
            if answer != alone[entry.sample]:
                request = entry.sample.request
                found.differing.append({"prompt_tokens": len(request.prompt_ids), "mix": len(entries)})
    return found


def main() -> int:
    """Ask, compare, print, and check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--check", action="store_true", help="exit 1 if a bit differs")
    parser.add_argument("--model", default=str(DEMO_MODEL), help="folder of the model")
    parser.add_argument("--mixes", type=int, default=2000)
    parser.add_argument("--pool", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    since = time.process_time()
    chance = random.Random(asked.seed)
    batcher = make_batcher(asked.model, asked.threads)
    vocabulary: int = json.loads((Path(asked.model) / "config.json").read_text())["vocab_size"]
    found = compare(batcher, pool_of(asked.pool, vocabulary, chance), asked.mixes, chance)
    report = {
        "model": Path(asked.model).name,
        "threads": asked.threads,
        "mixes": found.mixes,
        "answers": found.answers,
        "logprobs": found.logprobs,
        "differing_answers": len(found.differing),
        "first_differing": found.differing[:5],
        "cpu_s": round(time.process_time() - since, 1),
        "met": not found.differing,
    }
    sys.stdout.write(json.dumps(report, indent=None if asked.json else 2) + "\n")
    return 1 if asked.check and found.differing else 0


if __name__ == "__main__":
    sys.exit(main())
