"""A provider that sends nothing: it answers out of thin air, and counts what it was asked.

Its answers parse as answers of the task, agree or disagree as a `Guess` says, and carry random log-probabilities, so
that every stage downstream has something to work on. Knows nothing of prices or of the pipeline's order.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

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
from semievol_api.config.settings import Config, Limits
from semievol_api.data import RawData, subsample
from semievol_api.pipeline import semievol
from semievol_api.planning.bill import Demand, Shares, TrainingReport
from semievol_api.planning.catalogue import Catalogue
from semievol_api.planning.tokens import TokenCounter
from semievol_api.records import Completion, Example, Prompt, Usage
from semievol_api.session import NullWatcher, Plan, open_tools
from semievol_api.store.run_store import RunStore
from semievol_api.tasks import Task
from semievol_api.tasks.chat import as_message
from semievol_api.training.fine_tuning import expected_epochs
from semievol_api.training.jobs import model_trained_by

_STEP_CHARACTERS = 512
"""How finely beginnings are compared: about 128 tokens of English."""


class PrefixCache:
    """The beginnings that each model of one provider has seen. Vendors without a rule cache nothing."""

    def __init__(self, from_tokens: int | None, step_tokens: int = 128) -> None:
        self._from_tokens = from_tokens
        self._step_tokens = step_tokens
        self._seen: dict[str, set[bytes]] = {}

    @classmethod
    def of_vendor(cls, catalogue: Catalogue, vendor: str) -> PrefixCache:
        """The vendor's rule, as the catalogue knows it."""
        facts = catalogue.vendors.get(vendor)
        return cls(None) if facts is None else cls(facts.cache_from_tokens, facts.cache_step_tokens)

    def repeated(self, model: str, prompt: Prompt, tokens: int) -> int:
        """The cached tokens of a prompt of `tokens`, which counts as seen from now on."""
        if self._from_tokens is None or tokens < self._from_tokens:
            return 0
        text = "\x00".join(f"{turn.role}\x01{turn.content}" for turn in prompt.messages)
        seen, state, known = self._seen.setdefault(model, set()), hashlib.blake2b(digest_size=12), 0
        ends = [*range(_STEP_CHARACTERS, len(text), _STEP_CHARACTERS), len(text)]
        begin = 0
        for end in ends:
            state.update(text[begin:end].encode("utf-8", "surrogatepass"))
            begin, digest = end, state.digest()
            if digest in seen:
                known = end
            seen.add(digest)
        whole = int(tokens * known / len(text)) // self._step_tokens * self._step_tokens
        return whole if whole >= self._from_tokens else 0


_QUESTION = re.compile(r"(?:^|\n)Question: (.*?)\n\n(?:Options:|Labels:|Reply|Proposed|Weigh)", re.DOTALL)
_OPTION = re.compile(r"^([A-Z])\. (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Guess:
    """What cannot be known before a run.

    `easy` is the share of questions that every model gets right, `dissent` how often an answer leaves the common
    one. `length` is a completion's tokens: `bare` (one), `line` (twice the line that was asked for) or `limit`
    (max_tokens).
    """

    name: str
    easy: float
    dissent: float
    length: str


LOW = Guess("low", 0.4, 0.0, "bare")
EXPECTED = Guess("expected", 0.8, 0.1, "line")
HIGH = Guess("high", 0.98, 0.25, "limit")


class AnswerKey:
    """Made-up answers for a sample of the data; where the gold is known, the right one is the gold."""

    def __init__(self, task: Task, examples: Iterable[Example], guess: Guess) -> None:
        self.guess = guess
        self._task = task
        self._examples = {e.question: e for e in examples}

    def choose(self, turn: str, asker: str) -> tuple[str, float]:
        """The answer as the reader of this turn would give it, and how sure it is, in (0, 1)."""
        found = _QUESTION.search(turn)
        question = found[1] if found else turn
        one, other = self._pair(turn, self._examples.get(question))
        easy = _uniform(question) < self.guess.easy
        common, rest = (one, other) if easy else (other, one)
        dissents = _uniform(question, turn, asker) < self.guess.dissent
        surety = (0.9 if easy else 0.45) + 0.09 * _uniform(question, asker)
        return (rest, surety - 0.3) if dissents else (common, surety)

    def _pair(self, turn: str, example: Example | None) -> tuple[str, str]:
        """A right and a wrong answer, as the turn shows them."""
        if self._task.lettered:
            return self._letters(turn, example)
        answers = self._task.definition.labels or self._task.placeholders
        right = (example.answer if example else None) or answers[0]
        return right, next((answer for answer in answers if answer != right), right)

    def _letters(self, turn: str, example: Example | None) -> tuple[str, str]:
        shown = _OPTION.findall(turn)
        if len(shown) < 2 or example is None:
            return "A", "B"
        place = ord(example.answer) - ord("A") if example.answer else int(_uniform(example.question) * len(shown))
        text = example.options[place] if place < len(example.options) else ""
        right = next((letter for letter, option in shown if option == text), shown[0][0])
        return right, next(letter for letter, _ in shown if letter != right)


def _uniform(*parts: str) -> float:
    """A number in [0, 1) that depends on nothing but the parts."""
    digest = hashlib.blake2b("\x00".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


_DIMENSIONS = 64
_FILLER = "word "


@dataclass(frozen=True)
class _DrySettings:
    """What the dry abilities of one provider share."""

    provider: str
    counter: TokenCounter
    demand: Demand
    key: AnswerKey
    cache: PrefixCache
    own_server: bool = False
    """Ours frames a text that it embeds; others take it as it is."""


class _DryChat:
    """`Chat`, `ScoredChat` and `OptionReader`."""

    def __init__(self, settings: _DrySettings) -> None:
        self._dry = settings

    async def complete(self, request: ChatRequest) -> Reply:
        """`n` answers of the guessed length."""
        dry = self._dry
        turn = request.prompt.messages[-1].content
        answer, surety = dry.key.choose(turn, f"{request.model}/{request.seed}/{len(request.prompt.messages)}")
        text = f"Answer: {answer}"
        prompt = dry.counter.count(request.prompt)
        cached = dry.cache.repeated(request.model, request.prompt, prompt)
        usage = Usage(prompt, self._length(request, text) * request.n, cached)
        dry.demand.asked((dry.provider, request.model, "chat"), usage, dry.demand.shares.of(turn, dry.demand.stage))
        if dry.key.guess.length == "limit":
            text = f"{_FILLER * request.max_tokens}\n{text}"
        completions = tuple(_completion(request, text, surety) for _ in range(request.n))
        return Reply(completions=completions, usage=usage)

    async def read(self, request: OptionRequest) -> OptionReply:
        """A random distribution."""
        dry = self._dry
        turn = request.prompt.messages[-1].content
        usage = Usage(prompt=dry.counter.count(request.prompt), completion=1)
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
                wanted = 2 * self._dry.counter.count_text(line)
            case _:
                wanted = request.max_tokens
        return min(request.max_tokens, wanted)


class _DryEmbedder:
    """`Embedder`: random directions, so that neighbours are as long as the labelled examples are on average."""

    def __init__(self, settings: _DrySettings) -> None:
        self._dry = settings

    async def embed(self, request: EmbedRequest) -> EmbedReply:
        """float32 vectors of 64 dimensions."""
        seeds = [
            int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") for text in request.texts
        ]
        rows = [np.random.default_rng(seed).standard_normal(_DIMENSIONS) for seed in seeds]
        vectors = np.array(rows, dtype=np.float32)
        dry = self._dry
        count = dry.counter.count_embedding if dry.own_server else dry.counter.count_text
        usage = Usage(prompt=sum(count(text) for text in request.texts))
        dry.demand.asked((dry.provider, request.model, "embed"), usage, dry.demand.shares.mean)
        return EmbedReply(vectors=vectors, usage=usage)


class _DryFineTuner:
    """`FineTuner`: every job has ended well already."""

    def __init__(self, settings: _DrySettings, provider: Provider) -> None:
        self._dry = settings
        self._provider = provider

    async def submit(self, request: FineTuneRequest) -> JobTicket:
        """Count the file, and be done."""
        dry, examples, tokens, longest = self._dry, 0.0, 0.0, 0
        for line in request.training_file.splitlines():
            messages = [as_message(turn) for turn in json.loads(line)["messages"]]
            weight = dry.demand.shares.of_training(messages[-2].content if len(messages) > 1 else "")
            count = dry.counter.count_training(messages)
            examples, tokens, longest = examples + weight, tokens + weight * count, max(longest, count)
        epochs = expected_epochs(request.spec, max(1, round(examples)), self._provider)
        amounts = dry.demand.at(dry.provider, request.model, "train")
        amounts.requests += 1
        amounts.training += tokens * epochs
        name = model_trained_by(dry.demand.stage.removeprefix("jobs/").removesuffix("-ticket"))
        by: Literal["config", "trainer", "usual"] = "trainer" if self._provider.auto_epochs else "usual"
        by = "config" if request.spec.n_epochs else by
        dry.demand.trainings.append(TrainingReport(name, round(examples), round(tokens), longest, epochs, by))
        return JobTicket(job_id=f"dry-{request.run_key}", run_key=request.run_key)

    async def find(self, request: FineTuneRequest) -> JobTicket | None:
        """Nothing was ever bought here."""
        return None

    async def poll(self, ticket: JobTicket) -> JobState:
        """Done."""
        return JobState(status="succeeded", raw_status="succeeded", model=_tuned_name(ticket.run_key))

    async def events(self, ticket: JobTicket, after: str | None) -> Sequence[JobEvent]:
        """None."""
        return ()

    async def cancel(self, ticket: JobTicket) -> None:
        """Nothing to cancel."""


def _dry_provider(provider: Provider, settings: _DrySettings) -> Provider:
    """A provider with the same abilities and identity that sends nothing."""
    chat = _DryChat(settings)
    return Provider(
        name=provider.name,
        identity=provider.identity,
        vendor=provider.vendor,
        limits=provider.limits,
        chat=chat if provider.chat else None,
        scored=chat if provider.scored else None,
        option_reader=chat if provider.option_reader else None,
        embedder=_DryEmbedder(settings) if provider.embedder else None,
        finetuner=_DryFineTuner(settings, provider) if provider.finetuner else None,
    )


def _tuned_name(run_key: str) -> str:
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


_SAMPLE_SEED = 0
_OWN_SERVER = "semievol"


async def dry_run(plan: Plan, raw: RawData, counter: TokenCounter, guess: Guess, rows: int) -> Demand:
    """The demand of the whole run, from at most `rows` rows of each part of the data."""
    sample = _sample(raw, rows)
    demand = Demand(_shares(plan.task, raw, sample))
    known = (*sample.unlabeled, *sample.test, *sample.development, *sample.labeled)
    key = AnswerKey(plan.task, known, guess)

    def on_stage(name: str, state: str) -> None:
        if state == "started":
            demand.stage = name

    with tempfile.TemporaryDirectory(prefix="semievol-plan-") as folder:
        config = _dry_config(plan.config, Path(folder))
        providers = {
            name: _dry_provider(
                provider,
                _DrySettings(
                    provider=name,
                    counter=counter,
                    demand=demand,
                    key=key,
                    cache=PrefixCache.of_vendor(plan.catalogue, provider.vendor),
                    own_server=provider.vendor == _OWN_SERVER,
                ),
            )
            for name, provider in plan.providers.items()
        }
        dry = replace(plan, config=config, providers=providers)
        with RunStore.open(Path(folder), "plan") as store:
            store.on_stage = on_stage
            async with open_tools(dry, sample, NullWatcher()) as tools:
                await semievol(tools, store, plan.task, sample, config)
    return demand


def _dry_config(config: Config, folder: Path) -> Config:
    """The same config in another folder, without caps, and without the costly parts of the verdict."""
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"folder": folder, "journal": None, "engine": "local"}),
            "limits": Limits(),
            "train": config.train.model_copy(update={"poll_s": 0.001}),
            "evaluate": config.evaluate.model_copy(update={"resamples": 100}),
        }
    )


def _sample(raw: RawData, rows: int) -> RawData:
    return replace(
        raw,
        labeled=subsample(raw.labeled, rows, _SAMPLE_SEED),
        unlabeled=subsample(raw.unlabeled, rows, _SAMPLE_SEED),
        test=subsample(raw.test, rows, _SAMPLE_SEED),
        development=subsample(raw.development, rows, _SAMPLE_SEED),
    )


def _shares(task: Task, raw: RawData, sample: RawData) -> Shares:
    part_of_turn = {
        task.prompt(example).messages[-1].content: part
        for part, examples in (
            ("test", sample.test),
            ("unlabeled", sample.unlabeled),
            ("development", sample.development),
            ("labeled", sample.labeled),
        )
        for example in examples
    }
    return Shares(
        labeled=_ratio(raw.labeled, sample.labeled),
        unlabeled=_ratio(raw.unlabeled, sample.unlabeled),
        test=_ratio(raw.test, sample.test),
        development=_ratio(raw.development, sample.development),
        part_of_turn=part_of_turn,
    )


def _ratio(whole: Sequence[Example], part: Sequence[Example]) -> float:
    return len(whole) / len(part) if part else 1.0
