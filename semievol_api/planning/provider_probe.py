"""What a provider really does: one cheap call per ability, and whether it works, is ignored or refused.

    findings = await probe(provider, ProbeModels(chat="gpt-4o-mini", embed=None, train=None))

Costs a few dozen tokens; starts no job. Knows nothing of configs or of vendors' names.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from semievol_api.capabilities import (
    ChatRequest,
    EmbedRequest,
    FineTuneRequest,
    OptionRequest,
    Provider,
    ScoredChat,
)
from semievol_api.errors import ProviderError, RefusedError, UserError
from semievol_api.records import Message, Prompt

_Outcome: TypeAlias = Literal["works", "ignored", "refused", "failed", "absent"]
_QUESTION = Prompt(
    (Message("user", "Question: 2 + 2?\n\nOptions:\nA. 3\nB. 4\n\nReply with one line: Answer: LETTER"),)
)
_NEVER_BOUGHT = "semievol-probe-never-bought"


@dataclass(frozen=True, slots=True)
class ProbeModels:
    """Whom to ask for what; None leaves an ability out."""

    chat: str | None
    embed: str | None
    train: str | None


@dataclass(frozen=True, slots=True)
class Finding:
    """What one ability did when asked."""

    ability: str
    outcome: _Outcome
    detail: str = ""


_Check: TypeAlias = Callable[[], Awaitable[Finding]]
_MOST_S = 120.0
"""For each ability; a run's own requests are waited for longer."""


async def probe(provider: Provider, models: ProbeModels, most_s: float = _MOST_S) -> list[Finding]:
    """One finding per ability, in the order of the table; an error, or no answer for `most_s` seconds, is one too."""
    checks: list[tuple[str, _Check | None]] = [
        *_chat_checks(provider, models.chat),
        ("embeddings", _embeddings(provider, models.embed)),
        ("fine-tuning", _jobs(provider, models.train)),
        ("batches", _batches(provider)),
    ]
    return [await _run(ability, check, most_s) for ability, check in checks]


def record(findings: Sequence[Finding], provider: str, model: str | None, folder: Path) -> Path:
    """Keep the findings with the run: `probe.json`, by provider and model."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "probe.json"
    known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    known.setdefault(provider, {})[model or "-"] = [asdict(finding) for finding in findings]
    draft = path.with_name(".probe.json.draft")
    draft.write_text(json.dumps(known, ensure_ascii=False, indent=1, sort_keys=True) + "\n", "utf-8")
    draft.rename(path)
    return path


async def _run(ability: str, check: _Check | None, most_s: float) -> Finding:
    if check is None:
        return Finding(ability, "absent", "the provider's table leaves it empty, or no role names a model for it")
    try:
        async with asyncio.timeout(most_s):
            return await check()
    except TimeoutError:
        return Finding(ability, "failed", f"there was no answer within {most_s:g} s")
    except (RefusedError, UserError) as error:
        return Finding(ability, "refused", str(error))
    except ProviderError as error:
        return Finding(ability, "failed", str(error))


def _chat_checks(provider: Provider, model: str | None) -> list[tuple[str, _Check | None]]:
    chat = provider.chat
    names = (
        "chat",
        "system role",
        "several answers (n)",
        "seed",
        "log-probabilities",
        "alternatives",
        "option reading",
    )
    if model is None or chat is None:
        return [(name, None) for name in names]
    request = ChatRequest(model=model, prompt=_QUESTION, max_tokens=8, temperature=0.0)

    async def answers() -> Finding:
        reply = await chat.complete(request)
        return Finding("chat", "works", f"{reply.completions[0].text!r}, {reply.usage.completion} tokens")

    async def system() -> Finding:
        turns = (Message("system", "You answer questions."), *_QUESTION.messages)
        reply = await chat.complete(replace(request, prompt=Prompt(turns)))
        return Finding("system role", "works", f"{reply.completions[0].text!r}")

    async def several() -> Finding:
        got = len((await chat.complete(replace(request, n=2, temperature=1.0))).completions)
        return Finding("several answers (n)", "works" if got == 2 else "ignored", f"{got} of 2 came")

    async def seeded() -> Finding:
        sampled = replace(request, temperature=1.0, seed=7)
        texts = [(await chat.complete(sampled)).completions[0].text for _ in range(2)]
        return Finding("seed", "works" if texts[0] == texts[1] else "ignored", "two answers were compared")

    checks: list[_Check | None] = [
        answers,
        system,
        several,
        seeded,
        *_evidence_checks(provider, request),
    ]
    return list(zip(names, checks, strict=True))


def _evidence_checks(provider: Provider, request: ChatRequest) -> list[_Check | None]:
    """Log-probabilities, alternatives and option reading."""
    scored, reader = provider.scored, provider.option_reader

    async def logprobs() -> Finding:
        assert scored is not None
        values = (await scored.complete(replace(request, logprobs=True))).completions[0].token_logprobs
        return Finding("log-probabilities", "ignored" if values is None else "works", "of the chosen tokens")

    async def alternatives() -> Finding:
        assert scored is not None
        most, wanted = await _most_alternatives(scored, request)
        return Finding("alternatives", "works" if most else "ignored", f"{most} of {wanted} asked for")

    async def options() -> Finding:
        assert reader is not None
        asked = OptionRequest(model=request.model, prompt=Prompt(_QUESTION.messages, "Answer:"), labels=("A", "B"))
        read = (await reader.read(asked)).logprobs
        seen = sum(value is not None for value in read)
        return Finding("option reading", "works" if seen else "ignored", f"{seen} of 2 labels were listed")

    return [logprobs if scored else None, alternatives if scored else None, options if reader else None]


async def _most_alternatives(scored: ScoredChat, request: ChatRequest) -> tuple[int, int]:
    """How many alternatives of a token come, and of how many asked for: fewer where the server refuses."""
    for wanted in (20, 5):
        try:
            return await _alternatives_of(scored, request, wanted), wanted
        except RefusedError:
            continue
    return await _alternatives_of(scored, request, 1), 1


async def _alternatives_of(scored: ScoredChat, request: ChatRequest, wanted: int) -> int:
    top = (await scored.complete(replace(request, logprobs=True, top_logprobs=wanted))).completions[0].top
    return max((len(place) for place in top), default=0) if top else 0


def _embeddings(provider: Provider, model: str | None) -> _Check | None:
    embedder = provider.embedder
    if embedder is None or model is None:
        return None

    async def check() -> Finding:
        vectors = (await embedder.embed(EmbedRequest(model=model, texts=("one", "two")))).vectors
        return Finding("embeddings", "works", f"{vectors.shape[1]} dimensions")

    return check


def _jobs(provider: Provider, model: str | None) -> _Check | None:
    tuner = provider.finetuner
    if tuner is None or model is None:
        return None

    async def check() -> Finding:
        await tuner.find(FineTuneRequest(model=model, training_file=b"", run_key=_NEVER_BOUGHT))
        return Finding("fine-tuning", "works", "jobs can be listed; none was started")

    return check


def _batches(provider: Provider) -> _Check | None:
    batch = provider.batch
    if batch is None:
        return None

    async def check() -> Finding:
        await batch.find(_NEVER_BOUGHT)
        return Finding("batches", "works", "batches can be listed; none was started")

    return check
