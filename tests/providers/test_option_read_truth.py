"""One read of the whole option distribution says what thousands of samples say, and costs one request and one token."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from server_running import RunningServer

import semievol_api.demo
from semievol_api.capabilities import OptionReply, OptionRequest, ProviderSettings
from semievol_api.data import read_examples, read_source
from semievol_api.records import Prompt
from semievol_api.tasks import load_task
from semievol_providers.openai import connect

DEMO = Path(semievol_api.demo.__file__).parent
ITEMS, SAMPLES, PER_REQUEST, LEVEL = 20, 2_000, 125, 0.05
LABELS = ("A", "B", "C", "D", "E")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The demo's model: it has opinions, unlike a random one."""
    with RunningServer(DEMO / "model", tmp_path_factory.mktemp("truth")) as running:
        yield running


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    """Twenty short questions with a solved example each, so that distributions differ from item to item."""
    task = load_task(DEMO / "task.toml")
    labeled, asked = (
        read_examples(read_source(DEMO / "data" / name), task, "labeled").examples
        for name in ("labeled.csv", "dev.csv")
    )
    short = sorted(asked, key=lambda e: len(e.question))[:ITEMS]
    shots = sorted(labeled, key=lambda e: len(e.question))[:ITEMS]
    return [task.prompt(example, (shot,)) for example, shot in zip(short, shots, strict=True)]


def read_all(server: RunningServer, prompts: Sequence[Prompt], **options: object) -> list[OptionReply]:
    """Every prompt's labels through the OpenAI provider."""

    async def ask() -> list[OptionReply]:
        table = {"base_url": server.url, "vendor": "semievol", "api_key_env": "", **options}
        provider = connect(ProviderSettings(name="mine", options=table, environ={}))
        assert provider.option_reader is not None
        reader = provider.option_reader
        wanted = [OptionRequest(model="tiny", prompt=replace(p, prefill="Answer:"), labels=LABELS) for p in prompts]
        replies = [await reader.read(request) for request in wanted]
        await provider.aclose()
        return replies

    return asyncio.run(ask())


def served(server: RunningServer) -> int:
    """Chat requests that the server answered."""
    with urllib.request.urlopen(f"{server.url.removesuffix('/v1')}/metrics", timeout=30) as reply:
        text = reply.read().decode()
    found = re.findall(r'semievol_requests_total\{method="POST",route="(\w*chat\w*)",status="200"\} ([0-9.e+]+)', text)
    return sum(int(float(count)) for _, count in found)


def p_value(logprobs: Sequence[float | None], counts: Counter[str], labels: Sequence[str]) -> float:
    """Pearson's chi-square of samples against a read distribution; "other" is a cell, small cells are pooled."""
    probs = [0.0 if value is None else float(np.exp(value)) for value in logprobs]
    total = sum(counts.values())
    expected = total * np.array([*probs, max(0.0, 1.0 - sum(probs))])
    seen = np.array([*(counts[label] for label in labels), total - sum(counts[label] for label in labels)], dtype=float)
    small = expected < 5
    if small.any():
        expected = np.append(expected[~small], expected[small].sum())
        seen = np.append(seen[~small], seen[small].sum())
        if expected[-1] < 5 and len(expected) > 1:
            smallest = int(expected[:-1].argmin())
            expected[smallest] += expected[-1]
            seen[smallest] += seen[-1]
            expected, seen = expected[:-1], seen[:-1]
    if len(expected) < 2:
        return 1.0
    return float(stats.chi2.sf(((seen - expected) ** 2 / expected).sum(), len(expected) - 1))


def rejected(p_values: Sequence[float]) -> list[int]:
    """Holm's procedure over all items: which are told apart at the 5 % level."""
    order = np.argsort(p_values)
    found: list[int] = []
    for rank, item in enumerate(order.tolist()):
        if p_values[item] > LEVEL / (len(p_values) - rank):
            break
        found.append(item)
    return found


def sampled(server: RunningServer, prompt: Prompt, seed: int) -> Counter[str]:
    """The first tokens of 2,000 answers after the same prefill."""
    client = server.client()
    turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
    counts: Counter[str] = Counter()
    for part in range(SAMPLES // PER_REQUEST):
        reply = client.chat.completions.create(
            model="tiny",
            messages=[*turns, {"role": "assistant", "content": "Answer:"}],
            n=PER_REQUEST,
            seed=1_000 * seed + part,
            temperature=1.0,
            max_tokens=1,
            extra_body={"continue_final_message": True, "add_generation_prompt": False},
        )
        counts.update((choice.message.content or "").strip() for choice in reply.choices)
    return counts


def test_one_read_agrees_with_two_thousand_samples_of_each_of_twenty_items(
    server: RunningServer, prompts: list[Prompt]
) -> None:
    before = served(server)
    replies = read_all(server, prompts)
    assert served(server) - before == ITEMS, "one request per item"
    assert {reply.usage.completion for reply in replies} == {1}, "one output token"
    with ThreadPoolExecutor(max_workers=2) as both:
        counts = list(both.map(partial(sampled, server), prompts, range(ITEMS)))
    truth = [p_value(reply.logprobs, count, LABELS) for reply, count in zip(replies, counts, strict=True)]
    assert rejected(truth) == [], truth
    # The test can fail: the next item's distribution, and one that is off by a tenth, are told apart.
    others = [p_value(replies[i - 1].logprobs, count, LABELS) for i, count in enumerate(counts)]
    assert len(rejected(others)) >= ITEMS // 2
    bent = [tuple(1.15 * v for v in reply.logprobs if v is not None) for reply in replies]
    assert rejected([p_value(b, count, LABELS) for b, count in zip(bent, counts, strict=True)])


def test_a_server_without_prefill_writes_no_more_than_the_answers_line(
    server: RunningServer, prompts: list[Prompt]
) -> None:
    replies = read_all(server, prompts[:5], option_read="position")
    by_prefill = read_all(server, prompts[:5])
    for reply, exact in zip(replies, by_prefill, strict=True):
        assert 1 < reply.usage.completion <= 4  # Answer, colon, letter, end of turn
        assert np.allclose(
            [np.nan if v is None else v for v in reply.logprobs],
            [np.nan if v is None else v for v in exact.logprobs],
            atol=1e-3,
        )


def test_labels_that_the_server_does_not_list_are_reported_and_not_guessed(
    server: RunningServer, prompts: list[Prompt]
) -> None:
    replies = read_all(server, prompts[:5], top_logprobs=2)
    for reply in replies:
        assert reply.logprobs.count(None) >= 2


def test_small_cells_are_pooled_and_holm_is_step_down() -> None:
    sure = [0.0, None, None]
    assert p_value(sure, Counter({"A": 2_000}), LABELS[:3]) == 1.0
    even = [float(np.log(0.5)), float(np.log(0.499)), float(np.log(0.001))]
    assert p_value(even, Counter({"A": 1_000, "B": 998, "C": 2}), LABELS[:3]) > 0.9
    assert p_value(even, Counter({"A": 900, "B": 1_098, "C": 2}), LABELS[:3]) < 1e-4
    assert rejected([0.02, 0.9, 0.001, 0.04]) == [2]
    assert rejected([0.01, 0.9, 0.001, 0.02]) == [2, 0, 3]
