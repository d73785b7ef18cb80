"""Scripted chat, option reading and embeddings: pure functions of the request.

Knows nothing of networks, tokenizers or time (but for an optional pause).
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re

import numpy as np

from semievol_api.capabilities import (
    ChatRequest,
    EmbedReply,
    EmbedRequest,
    OptionReply,
    OptionRequest,
    Reply,
)
from semievol_api.records import Completion, Usage
from semievol_providers.scripted.jobs import ScriptedJobs

DIMENSIONS = 64
OPTION_LINE = re.compile(r"^([A-Z])\. (.+)$", re.MULTILINE)


class ScriptedChat:
    """Answers `Answer: LETTER`, right with the model's skill, more surely where it is right."""

    def __init__(self, skill: float, jobs: ScriptedJobs, latency_s: float, ignore_logprobs: bool) -> None:
        self._skill = skill
        self._jobs = jobs
        self._latency_s = latency_s
        self._ignore_logprobs = ignore_logprobs

    async def complete(self, request: ChatRequest) -> Reply:
        """`n` answers; temperature 0 gives the same one `n` times."""
        if self._latency_s:
            await asyncio.sleep(self._latency_s)
        shown = "\n".join(m.content for m in request.prompt.messages)
        samples = [self._sample(request, shown, i) for i in range(request.n)]
        return Reply(completions=tuple(samples), usage=Usage(prompt=len(shown) // 4, completion=4 * request.n))

    async def read(self, request: OptionRequest) -> OptionReply:
        """The same skill as a distribution: the likely label gets the most mass."""
        shown = "\n".join(m.content for m in request.prompt.messages)
        favourite, surety = self._choose(request.model, shown, "")
        rest = (1 - surety) / max(1, len(request.labels) - 1)
        masses = [surety if label.strip() == favourite else rest for label in request.labels]
        return OptionReply(
            logprobs=tuple(math.log(max(m, 1e-9)) for m in masses), usage=Usage(prompt=len(shown) // 4, completion=1)
        )

    def _sample(self, request: ChatRequest, shown: str, index: int) -> Completion:
        noise = "" if request.temperature == 0 else f"{request.seed}/{index}/{request.temperature}"
        letter, surety = self._choose(request.model, shown, noise)
        tokens = ("Answer", ":", f" {letter}")
        logprobs = np.array([-1e-4, -1e-4, math.log(surety)], dtype=np.float32)
        if self._ignore_logprobs or not request.logprobs:
            return Completion(f"Answer: {letter}", "stop")
        top = tuple(((token, float(lp)),) for token, lp in zip(tokens, logprobs, strict=True))
        wanted = request.top_logprobs > 0
        return Completion(f"Answer: {letter}", "stop", logprobs, tokens if wanted else None, top if wanted else None)

    def _choose(self, model: str, shown: str, noise: str) -> tuple[str, float]:
        """The letter and how sure the model is of it."""
        question = shown.rpartition("Question:")[2]
        options = OPTION_LINE.findall(question)
        if not options:
            return "A", 0.5
        luck = _uniform(model, shown, noise)
        cued = [letter for letter, text in options if f"cue: {text}" in question]
        if cued and luck < self._jobs.skill_of(model, self._skill):
            return cued[0], 0.6 + 0.39 * (1 - luck)
        letter = options[int(_uniform(shown, model, noise) * len(options))][0]
        return letter, 0.3 + 0.3 * _uniform(noise, shown, model)


class ScriptedEmbedder:
    """Hashed bags of words: questions that share words are near."""

    async def embed(self, request: EmbedRequest) -> EmbedReply:
        """float32 vectors of 64 dimensions."""
        vectors = np.zeros((len(request.texts), DIMENSIONS), dtype=np.float32)
        for row, text in enumerate(request.texts):
            for word in text.lower().split():
                vectors[row, int(_uniform(word) * DIMENSIONS)] += 1
        return EmbedReply(vectors=vectors, usage=Usage(prompt=sum(len(t) // 4 for t in request.texts)))


def _uniform(*parts: str) -> float:
    digest = hashlib.blake2b("\x00".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
