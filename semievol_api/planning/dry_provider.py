"""A provider that sends nothing: it answers out of thin air, and counts what it was asked.

Its answers parse as answers of the task, agree or disagree as a `Guess` says, and carry random log-probabilities, so
that every stage downstream has something to work on. Knows nothing of prices or of the pipeline's order.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

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
    Provider,
    Reply,
)
from semievol_api.planning.answer_key import AnswerKey
from semievol_api.planning.demand import Demand, TrainingReport
from semievol_api.planning.prefix_cache import PrefixCache
from semievol_api.records import Completion, Message, Prompt, Usage
from semievol_api.tokens import TokenCounter
from semievol_api.training_file import AUTO_EPOCHS

DIMENSIONS = 64
FILLER = "word "


class DryCounter:
    """Counts tokens, each text once."""

    def __init__(self, counter: TokenCounter) -> None:
        self._counter = counter
        self._prompts: dict[Prompt, int] = {}
        self._texts: dict[str, int] = {}

    def prompt(self, prompt: Prompt) -> int:
        """Tokens of a prompt."""
        if prompt not in self._prompts:
            self._prompts[prompt] = self._counter.count(prompt)
        return self._prompts[prompt]

    def text(self, text: str) -> int:
        """Tokens of a bare text."""
        if text not in self._texts:
            self._texts[text] = self._counter.count_text(text)
        return self._texts[text]

    def embedding(self, text: str) -> int:
        """Tokens of a text that our own server embeds."""
        return self._counter.count_embedding(text)

    def training(self, messages: Sequence[Message]) -> int:
        """Tokens of a line of a training file."""
        return self._counter.count_training(messages)


@dataclass(frozen=True)
class DrySettings:
    """What the dry abilities of one provider share."""

    provider: str
    counter: DryCounter
    demand: Demand
    key: AnswerKey
    cache: PrefixCache
    own_server: bool = False
    """Ours frames a text that it embeds; others take it as it is."""


class DryChat:
    """`Chat`, `ScoredChat` and `OptionReader`."""

    def __init__(self, settings: DrySettings) -> None:
        self._dry = settings

    async def complete(self, request: ChatRequest) -> Reply:
        """`n` answers of the guessed length."""
        dry = self._dry
        turn = request.prompt.messages[-1].content
        answer, surety = dry.key.choose(turn, f"{request.model}/{request.seed}/{len(request.prompt.messages)}")
        text = f"Answer: {answer}"
        prompt = dry.counter.prompt(request.prompt)
        cached = dry.cache.repeated(request.model, request.prompt, prompt)
        usage = Usage(prompt, self._length(request, text) * request.n, cached)
        dry.demand.asked((dry.provider, request.model, "chat"), usage, dry.demand.shares.of(turn, dry.demand.stage))
        if dry.key.guess.length == "limit":
            text = f"{FILLER * request.max_tokens}\n{text}"
        completions = tuple(_completion(request, text, surety) for _ in range(request.n))
        return Reply(completions=completions, usage=usage)

    async def read(self, request: OptionRequest) -> OptionReply:
        """A random distribution."""
        dry = self._dry
        turn = request.prompt.messages[-1].content
        usage = Usage(prompt=dry.counter.prompt(request.prompt), completion=1)
        dry.demand.asked((dry.provider, request.model, "options"), usage, dry.demand.shares.of(turn, dry.demand.stage))
        answer, surety = dry.key.choose(turn, request.model)
        rest = (1 - surety) / max(1, len(request.labels) - 1)
        masses = [surety if label.strip() == answer else rest for label in request.labels]
        return OptionReply(logprobs=tuple(math.log(mass) for mass in masses), usage=usage)

    def _length(self, request: ChatRequest, line: str) -> int:
        """Completion tokens; never more than max_tokens."""
        match self._dry.key.guess.length:
            case "bare":
                wanted = 1
            case "line":
                wanted = 2 * self._dry.counter.text(line)
            case _:
                wanted = request.max_tokens
        return min(request.max_tokens, wanted)


class DryEmbedder:
    """`Embedder`: random directions, so that neighbours are as long as the labelled examples are on average."""

    def __init__(self, settings: DrySettings) -> None:
        self._dry = settings

    async def embed(self, request: EmbedRequest) -> EmbedReply:
        """float32 vectors of 64 dimensions."""
        seeds = [
            int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") for text in request.texts
        ]
        rows = [np.random.default_rng(seed).standard_normal(DIMENSIONS) for seed in seeds]
        vectors = np.array(rows, dtype=np.float32)
        dry = self._dry
        count = dry.counter.embedding if dry.own_server else dry.counter.text
        usage = Usage(prompt=sum(count(text) for text in request.texts))
        dry.demand.asked((dry.provider, request.model, "embed"), usage, dry.demand.shares.mean)
        return EmbedReply(vectors=vectors, usage=usage)


class DryFineTuner:
    """`FineTuner`: every job has ended well already."""

    def __init__(self, settings: DrySettings) -> None:
        self._dry = settings

    async def submit(self, request: FineTuneRequest) -> JobTicket:
        """Count the file, and be done."""
        dry, examples, tokens, longest = self._dry, 0.0, 0.0, 0
        for line in request.training_file.splitlines():
            messages = [Message(turn["role"], turn["content"]) for turn in json.loads(line)["messages"]]
            weight = dry.demand.shares.of_training(messages[-2].content if len(messages) > 1 else "")
            count = dry.counter.training(messages)
            examples, tokens, longest = examples + weight, tokens + weight * count, max(longest, count)
        epochs = request.hyperparameters.n_epochs or AUTO_EPOCHS
        amounts = dry.demand.at(dry.provider, request.model, "train")
        amounts.requests += 1
        amounts.training += tokens * epochs
        name = dry.demand.stage.removeprefix("jobs/").removesuffix("-ticket")
        dry.demand.trainings.append(TrainingReport(name, round(examples), round(tokens), longest, epochs))
        return JobTicket(job_id=f"dry-{request.run_key}", run_key=request.run_key)

    async def find(self, request: FineTuneRequest) -> JobTicket | None:
        """Nothing was ever bought here."""
        return None

    async def poll(self, ticket: JobTicket) -> JobState:
        """Done."""
        return JobState(status="succeeded", raw_status="succeeded", model=tuned_name(ticket.run_key))

    async def events(self, ticket: JobTicket, after: str | None) -> Sequence[JobEvent]:
        """None."""
        return ()

    async def cancel(self, ticket: JobTicket) -> None:
        """Nothing to cancel."""


def dry_provider(provider: Provider, settings: DrySettings) -> Provider:
    """A provider with the same abilities and identity that sends nothing."""
    chat = DryChat(settings)
    return Provider(
        name=provider.name,
        identity=provider.identity,
        vendor=provider.vendor,
        limits=provider.limits,
        chat=chat if provider.chat else None,
        scored=chat if provider.scored else None,
        option_reader=chat if provider.option_reader else None,
        embedder=DryEmbedder(settings) if provider.embedder else None,
        finetuner=DryFineTuner(settings) if provider.finetuner else None,
    )


def tuned_name(run_key: str) -> str:
    """The name that a dry training gives its model."""
    return f"dry-tuned-{run_key}"


def is_dry_tuned(model: str) -> bool:
    """True for a model that a dry training made."""
    return model.startswith("dry-tuned-")


def _completion(request: ChatRequest, text: str, surety: float) -> Completion:
    if not request.logprobs:
        return Completion(text, "stop")
    tokens = ("Answer", ":", text.rpartition(":")[2])
    logprobs = np.log(np.array([0.999, 0.999, surety], dtype=np.float32))
    if not request.top_logprobs:
        return Completion(text, "stop", logprobs)
    top = tuple(((token, float(value)),) for token, value in zip(tokens, logprobs, strict=True))
    return Completion(text, "stop", logprobs, tokens, top)
