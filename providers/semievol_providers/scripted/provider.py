"""Scripted chat, option reading and embeddings: pure functions of the request.

Knows nothing of networks, tokenizers or time (but for an optional pause).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semievol_api.capabilities import (
    ChatRequest,
    EmbedReply,
    EmbedRequest,
    FineTuneRequest,
    JobEvent,
    JobState,
    JobTicket,
    OptionReply,
    OptionRequest,
    Reply,
)
from semievol_api.errors import RefusedError
from semievol_api.records import Completion, Usage


class ScriptedJobs:
    """Jobs by run key."""

    def __init__(self, state: str | None, base_folder: str) -> None:
        self._path = Path(base_folder) / state / "jobs.json" if state else None
        self._lines: dict[str, int] = {}
        if self._path is not None and self._path.is_file():
            self._lines = json.loads(self._path.read_text("utf-8"))

    def skill_of(self, model: str, base_skill: float) -> float:
        """A tuned model's skill; saturates as lines grow."""
        lines = self._lines.get(model.removeprefix("ft:scripted:"), 0)
        return base_skill + (0.97 - base_skill) * lines / (lines + 100)

    async def submit(self, request: FineTuneRequest) -> JobTicket:
        """Start and finish a job."""
        lines = request.training_file.splitlines()
        if len(lines) < 10:
            raise RefusedError(f"The training file has {len(lines)} examples; at least 10 are needed.", status=400)
        self._lines[request.run_key] = len(lines)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self._lines), "utf-8")
        return JobTicket(job_id=f"ftjob-{request.run_key}", run_key=request.run_key)

    async def find(self, request: FineTuneRequest) -> JobTicket | None:
        """The job with this key."""
        if request.run_key not in self._lines:
            return None
        return JobTicket(job_id=f"ftjob-{request.run_key}", run_key=request.run_key)

    async def poll(self, ticket: JobTicket) -> JobState:
        """Finished, if it exists."""
        if ticket.run_key not in self._lines:
            return JobState(status="failed", raw_status="failed", reason="no such job")
        return JobState(status="succeeded", raw_status="succeeded", model=f"ft:scripted:{ticket.run_key}")

    async def events(self, ticket: JobTicket, after: str | None) -> Sequence[JobEvent]:
        """One event."""
        if after is not None:
            return []
        lines = self._lines.get(ticket.run_key, 0)
        return [JobEvent(id="ev-1", message=f"Trained on {lines} examples", metrics={"train_loss": 1 / (1 + lines)})]

    async def cancel(self, ticket: JobTicket) -> None:
        """Forget the job."""
        self._lines.pop(ticket.run_key, None)


_DIMENSIONS = 64
_SURE = 0.6
_LABEL_LINE = re.compile(r"^Labels: (.+)$", re.MULTILINE)
_OPEN_CUE = re.compile(r"cue: (\S+)")
_PROPOSED = re.compile(r"^Proposed answer: (?:[A-Z]\. )?(.+)$", re.MULTILINE)
_SLOT = re.compile(r"slot (\w+): (\w+)")
_TAG = re.compile(r"tag (\w+)")
_JOINED = re.compile(r"as in: A(.+?)B\.")
_OPTION_LINE = re.compile(r"^([A-Z])\. (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Manners:
    """What becomes of a wish for log-probabilities: ignored (200 without them), refused (400), or fulfilled."""

    ignores_logprobs: bool = False
    refuses_logprobs: bool = False
    shows_alternatives: bool = True
    takes_schemas: bool = False


class ScriptedChat:
    """Answers `Answer: LETTER`, right with the model's skill, more surely where it is right."""

    def __init__(self, skill: float, jobs: ScriptedJobs, latency_s: float, manners: Manners) -> None:
        self._skill = skill
        self._jobs = jobs
        self._latency_s = latency_s
        self._manners = manners

    async def complete(self, request: ChatRequest) -> Reply:
        """`n` answers; temperature 0 gives the same one `n` times."""
        if self._manners.refuses_logprobs and (request.logprobs or request.top_logprobs):
            raise RefusedError("logprobs is not supported with this model.", status=400, param="logprobs")
        if request.schema and not self._manners.takes_schemas:
            raise RefusedError("response_format is not supported with this model.", status=400, param="response_format")
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
        asked = request.prompt.messages[-1].content
        if "slot " in asked or "tag " in asked:
            return self._fields(request, asked, noise)
        letter, surety = self._choose(request.model, shown, noise)
        tokens = ("Answer", ":", f" {letter}")
        logprobs = np.array([-1e-4, -1e-4, math.log(surety)], dtype=np.float32)
        if "Confidence:" in shown:
            sure = "almost certain" if surety > _SURE else "about even"
            return Completion(f"Answer: {letter}\nConfidence: {sure}", "stop")
        if self._manners.ignores_logprobs or not request.logprobs:
            return Completion(f"Answer: {letter}", "stop")
        if not request.top_logprobs or not self._manners.shows_alternatives:
            return Completion(f"Answer: {letter}", "stop", logprobs, tokens)
        fixed = tuple(((token, float(lp)),) for token, lp in zip(tokens[:2], logprobs[:2], strict=True))
        return Completion(f"Answer: {letter}", "stop", logprobs, tokens, (*fixed, _alternatives(shown, letter, surety)))

    def _fields(self, request: ChatRequest, asked: str, noise: str) -> Completion:
        """Each `slot NAME: VALUE` as a field of a JSON object, or each `tag NAME` as a label, or overlooked."""
        skill = self._jobs.skill_of(request.model, self._skill)
        found: list[tuple[str, float]] = []
        for name, value in _SLOT.findall(asked) or [(tag, "") for tag in _TAG.findall(asked)]:
            luck = _uniform(request.model, asked, name, noise)
            if luck < skill:
                found.append((f'"{name}": "{value}"' if value else name, 0.6 + 0.39 * (1 - luck)))
            elif luck < (1 + skill) / 2 and value:
                found.append((f'"{name}": "not {value}"', 0.55))
        joined = _JOINED.search(asked)
        opened, between, closed = ("{", ", ", "}") if joined is None else ("", joined[1], "")
        pieces = [(opened, 1.0), *((p, s) for one in found for p, s in (one, (between, 0.9)))]
        pieces = [*(pieces[:-1] if found else pieces), (closed if found or joined is None else "none", 0.8)]
        if "Answer:" in asked:
            pieces.insert(0, ("Answer: ", 1.0))
        tokens = tuple(text for text, _ in pieces if text)
        logprobs = np.log(np.array([sure for text, sure in pieces if text], dtype=np.float32))
        if self._manners.ignores_logprobs or not request.logprobs:
            return Completion("".join(tokens), "stop")
        if not request.top_logprobs or not self._manners.shows_alternatives:
            return Completion("".join(tokens), "stop", logprobs)
        top = tuple(((token, float(value)),) for token, value in zip(tokens, logprobs, strict=True))
        return Completion("".join(tokens), "stop", logprobs, tokens, top)

    def _choose(self, model: str, shown: str, noise: str) -> tuple[str, float]:
        """The answer (a letter, a label, or the cue itself) and how sure the model is of it."""
        question = shown.rpartition("Question:")[2]
        options = _options(question)
        luck = _uniform(model, shown, noise)
        sees = luck < self._jobs.skill_of(model, self._skill)
        if proposed := _PROPOSED.search(question):
            right = re.search(rf"cue: {re.escape(proposed[1])}\b", question) is not None
            return ("Y" if right == sees else "N"), 0.6 + 0.39 * (1 - luck) if sees else 0.55
        cued = [name for name, text in options if f"cue: {text}" in question]
        if not options and (found := _OPEN_CUE.search(question)):
            return (found[1], 0.6 + 0.39 * (1 - luck)) if sees else (f"{len(question)}{found[1]}", 0.4)
        if not options:
            return "A", 0.5
        if cued and sees:
            return cued[0], 0.6 + 0.39 * (1 - luck)
        name = options[int(_uniform(shown, model, noise) * len(options))][0]
        return name, 0.3 + 0.3 * _uniform(noise, shown, model)


def _options(question: str) -> list[tuple[str, str]]:
    """Each possible answer and the words that it stands for."""
    labels = _LABEL_LINE.search(question)
    if labels:
        return [(label, label) for label in labels[1].split(", ")]
    return _OPTION_LINE.findall(question)


def _alternatives(shown: str, letter: str, surety: float) -> tuple[tuple[str, float], ...]:
    """The chosen letter, and the others with what is left."""
    others = [other for other, _ in _options(shown.rpartition("Question:")[2]) if other != letter]
    rest = (1 - surety) / max(1, len(others))
    return ((f" {letter}", math.log(surety)), *((f" {other}", math.log(rest)) for other in others))


class ScriptedEmbedder:
    """Hashed bags of words: questions that share words are near."""

    async def embed(self, request: EmbedRequest) -> EmbedReply:
        """float32 vectors of 64 dimensions."""
        vectors = np.zeros((len(request.texts), _DIMENSIONS), dtype=np.float32)
        for row, text in enumerate(request.texts):
            for word in text.lower().split():
                vectors[row, int(_uniform(word) * _DIMENSIONS)] += 1
        return EmbedReply(vectors=vectors, usage=Usage(prompt=sum(len(t) // 4 for t in request.texts)))


def _uniform(*parts: str) -> float:
    digest = hashlib.blake2b("\x00".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
