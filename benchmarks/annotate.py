"""Pseudo-labels per second on real vLLM: one engine and one n = 4 request against the released code's shape.

    .venv-vllm/bin/python -m benchmarks.annotate --json --check

Released shape: four annotators, one after the other, each over all questions with n = 1 and shots of its own for
each question, in an engine of its own. Ours: one engine, n = 4 in one request, questions ordered by their group of
shots. Option read: one engine, one prefill a question. Starts of engines count. The demo's model and questions.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semievol_api.capabilities import ChatRequest, OptionRequest, Provider, ProviderSettings
from semievol_api.records import Message, Prompt
from semievol_providers.vllm import connect

DEMO = Path(__file__).resolve().parent.parent / "semievol_api" / "demo"
FIELDS = ("medicine", "physics", "economics", "psychology", "philosophy")
LABELS = ("A", "B", "C", "D", "E")
NAME = "demo-llama"
ANNOTATORS = 4
SHOTS = 3
PROMISED = {"speedup_with_starts": 3.0, "option_read_over_ours_of_asking": 3.0}


@dataclass(frozen=True)
class Timed:
    """One way: seconds with starts, seconds without, engine starts, share of prompt tokens read from the cache."""

    seconds: float
    asking_seconds: float
    starts: int
    cached_share: float


def read_rows(name: str, count: int) -> list[dict[str, str]]:
    """The first rows of one of the demo's files."""
    with (DEMO / "data" / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))[:count]


def prompt_of(question: str, shots: Sequence[dict[str, str]], prefill: str | None = None) -> Prompt:
    """The wording of the project: shots first, so that a shared group of them is read from the cache."""
    lines = [
        f"Example {i}\nQuestion: {shot['question']}\nAnswer: {shot['answer']}" for i, shot in enumerate(shots, start=1)
    ]
    options = "\n".join(f"{letter}. {field}" for letter, field in zip(LABELS, FIELDS, strict=True))
    asked = f"Which field does this exam question belong to?\n\nQuestion: {question}\n\nOptions:\n{options}"
    system = "You answer multiple-choice questions. Solved examples:\n\n" + "\n\n".join(lines)
    turns = (Message("system", system), Message("user", f"{asked}\n\nReply with one line: Answer: LETTER"))
    return Prompt(turns, prefill)


Ask = Callable[[Provider, str, Sequence[dict[str, str]]], Awaitable[Any]]


async def timed(passes: Sequence[tuple[Ask, list[tuple[str, Sequence[dict[str, str]]]]]]) -> Timed:
    """Every pass in an engine of its own, all its questions at once."""
    started, asking, prompt, cached = time.perf_counter(), 0.0, 0, 0
    for ask, work in passes:
        with tempfile.TemporaryDirectory() as folder:
            options = {"model": str(DEMO / "model"), "name": NAME, "device": "cpu"}
            provider = connect(ProviderSettings(name="vllm", options=options, environ={}, base_folder=folder))
            await ask(provider, *work[0])  # starts the engine
            begun = time.perf_counter()
            replies = await asyncio.gather(*(ask(provider, *one) for one in work[1:]))
            asking += time.perf_counter() - begun
            print(
                f"{ask.__name__}: {time.perf_counter() - started:.0f} s, {asking:.1f} of them asking", file=sys.stderr
            )
            prompt += sum(reply.usage.prompt for reply in replies)
            cached += sum(reply.usage.cached for reply in replies)
            await provider.aclose()
    return Timed(time.perf_counter() - started, asking, len(passes), cached / prompt)


async def ask_once(provider: Provider, question: str, shots: Sequence[dict[str, str]]) -> Any:
    """One sample."""
    return await _ask(provider, question, shots, 1)


async def ask_four(provider: Provider, question: str, shots: Sequence[dict[str, str]]) -> Any:
    """Four samples of one prefill."""
    return await _ask(provider, question, shots, ANNOTATORS)


async def _ask(provider: Provider, question: str, shots: Sequence[dict[str, str]], n: int) -> Any:
    assert provider.scored is not None
    return await provider.scored.complete(
        ChatRequest(model=NAME, prompt=prompt_of(question, shots), max_tokens=8, n=n, seed=1, logprobs=True)
    )


async def read_options(provider: Provider, question: str, shots: Sequence[dict[str, str]]) -> Any:
    """The labels' probabilities."""
    assert provider.option_reader is not None
    return await provider.option_reader.read(
        OptionRequest(model=NAME, prompt=prompt_of(question, shots, "Answer:"), labels=LABELS)
    )


async def compare(count: int, groups: int) -> dict[str, Any]:
    """All three ways, one after the other."""
    questions = [row["question"] for row in read_rows("unlabeled.csv", count)]
    pool = read_rows("labeled.csv", 100)
    own = [
        [(q, [pool[(7 * i + 31 * a + s) % len(pool)] for s in range(SHOTS)]) for i, q in enumerate(questions)]
        for a in range(ANNOTATORS)
    ]
    shared = [(q, pool[(i * groups // count) * SHOTS :][:SHOTS]) for i, q in enumerate(questions)]
    theirs = await timed([(ask_once, work) for work in own])
    ours = await timed([(ask_four, shared)])
    read = await timed([(read_options, shared)])
    return {
        "questions": count,
        "shot_groups": groups,
        "pseudo_labels_per_s": {
            "released": round(count / theirs.seconds, 3),
            "ours": round(count / ours.seconds, 3),
            "option_read": round(count / read.seconds, 3),
        },
        "speedup_with_starts": round(theirs.seconds / ours.seconds, 2),
        "speedup_of_asking": round(theirs.asking_seconds / ours.asking_seconds, 2),
        "option_read_over_ours_with_starts": round(ours.seconds / read.seconds, 2),
        "option_read_over_ours_of_asking": round(ours.asking_seconds / read.asking_seconds, 2),
        "engine_starts": [theirs.starts, ours.starts, read.starts],
        "cached_share_of_prompts": [round(t.cached_share, 3) for t in (theirs, ours, read)],
        "seconds": [round(t.seconds, 1) for t in (theirs, ours, read)],
        "asking_seconds": [round(t.asking_seconds, 2) for t in (theirs, ours, read)],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=120)
    parser.add_argument("--groups", type=int, default=8, help="different groups of shots")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true", help="fail where a promise is not kept")
    given = parser.parse_args()
    found = asyncio.run(compare(given.questions, given.groups))
    if given.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:34} {value}")
    low = {name: least for name, least in PROMISED.items() if found[name] < least}
    if given.check and low:
        sys.exit("; ".join(f"{name} is {found[name]}, {least} is promised" for name, least in low.items()))


if __name__ == "__main__":
    main()
