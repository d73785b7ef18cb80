"""Buying one training, once: the file, the ticket, the model. Shared by warm_up, evolve and the ceiling.

A training is known by its bytes, base model, hyper-parameters and seed, never by a stage's version: a
refactoring must not buy it twice. Knows nothing of what the lines teach.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from semievol_api.capabilities import (
    FineTuner,
    FineTuneRequest,
    Hyperparameters,
    JobEvent,
    JobState,
    JobTicket,
    ModelLimits,
    Provider,
    require,
)
from semievol_api.cassettes.clock import Clock
from semievol_api.config.method import TrainSettings
from semievol_api.errors import DataError, JobFailedError, TransientError, UserError
from semievol_api.records import Example, Message, TrainingExample
from semievol_api.store.artifacts import Ticket, TrainingFile, TunedModel
from semievol_api.store.fingerprints import stage
from semievol_api.store.run_store import RunStore
from semievol_api.tasks import Task

MIN_EXAMPLES = 10
"""OpenAI's own minimum for a fine-tuning file."""
MAX_BYTES = 512 * 2**20
"""OpenAI's own limit for one file."""
AUTO_EPOCHS = 3
"""What `auto` usually comes to; the vendor decides."""


CountTokens = Callable[[Sequence[Message]], int]


@dataclass(frozen=True, slots=True)
class FileReport:
    """What stands in a training file. `duplicates` counts lines that repeat an earlier one, word for word.

    `tokens` (of one epoch) and `longest_tokens` are None where nobody counted; `too_long` counts the examples that
    are longer than the model's context.
    """

    examples: int
    duplicates: int
    longest_characters: int
    tokens: int | None = None
    longest_tokens: int | None = None
    too_long: int = 0

    @property
    def sentence(self) -> str:
        """For the progress of a job."""
        twice = f", {self.duplicates} of them repeated word for word" if self.duplicates else ""
        size = f"the longest has {self.longest_characters:,} characters"
        if self.tokens is not None and self.longest_tokens is not None:
            mean = self.tokens / max(1, self.examples)
            size = f"about {self.tokens:,} tokens, {mean:.0f} in an example and {self.longest_tokens:,} in the longest"
        cut = (
            f" {self.too_long} are longer than the model's context, and vendors cut them off." if self.too_long else ""
        )
        return f"Uploading {self.examples} examples{twice}; {size}.{cut}"


def check_training_file(
    content: bytes, count: CountTokens | None = None, context_tokens: int | None = None
) -> FileReport:
    """Refuse what no vendor accepts; `count` gives the tokens of one example.

    Raises:
        DataError: fewer than ten examples, a line that is no chat, or one without an answer; names the line.
    """
    lines = content.splitlines()
    if len(lines) < MIN_EXAMPLES:
        raise DataError(
            f"The training file has {len(lines)} examples, and a fine-tuning job needs at least {MIN_EXAMPLES}. Add "
            f"labelled examples; nothing was uploaded."
        )
    if len(content) > MAX_BYTES:
        raise DataError(
            f"The training file has {len(content) / 2**20:.0f} MiB, and vendors take at most {MAX_BYTES // 2**20}. "
            f"Take fewer unlabelled rows: [data] max_unlabeled."
        )
    chats = [_chat(number, line) for number, line in enumerate(lines, start=1)]
    repeated = sum(copies - 1 for copies in Counter(lines).values())
    longest = max(sum(len(turn.content) for turn in chat) for chat in chats)
    if count is None:
        return FileReport(len(lines), repeated, longest)
    tokens = [count(chat) for chat in chats]
    too_long = sum(size > context_tokens for size in tokens) if context_tokens else 0
    return FileReport(len(lines), repeated, longest, sum(tokens), max(tokens), too_long)


def _chat(number: int, line: bytes) -> list[Message]:
    try:
        record: Any = json.loads(line)
        turns = [Message(turn["role"], turn["content"] + "") for turn in record["messages"]]
        last = turns[-1]
    except (ValueError, KeyError, TypeError, IndexError):
        raise DataError(f"Line {number} of the training file is no chat of messages with texts.") from None
    if last.role != "assistant" or not last.content.strip():
        raise DataError(
            f"Line {number} of the training file has no answer: it should end with the assistant's turn. Look at this "
            f"example's label."
        )
    return turns


LOOKS_AFTER_A_LOST_REPLY = 5
LINES_AT_ONCE = 256
_text = orjson.dumps
"""A text in quotes, with the escapes that `json.dumps` writes."""
AWAY_PATIENCE_S = 3600.0
"""How long a server may be away while a job runs; the ticket is on disk, so a later run goes on waiting."""

OnEvent = Callable[[str, JobEvent], None]


@dataclass(frozen=True)
class Trainer:
    """Who trains what: a provider, the base model, the clock that polls wait by, and who hears of events."""

    provider: Provider
    base: str
    clock: Clock
    seed: int
    on_event: OnEvent = lambda _name, _event: None
    base_identity: str | None = None
    """What the base is, where its name is a job's and so another one elsewhere."""

    count: Callable[[], CountTokens | None] = lambda: None
    """Makes what counts the tokens of a training example, when it is first needed."""

    @property
    def limits(self) -> ModelLimits:
        """What is known of the base."""
        return self.provider.limits.get(self.base) or ModelLimits()

    def price_usd(self, trained_tokens: int | None) -> float | None:
        """USD of a training; None where its tokens or its price are not known."""
        price = self.limits.training_usd
        return None if trained_tokens is None or price is None else trained_tokens * price / 1e6

    @property
    def finetuner(self) -> FineTuner:
        """The ability, or the refusal."""
        return require(self.provider.finetuner, "fine-tuning", self.provider)


def training_line(task: Task, example: Example, answer: str, text: str | None = None) -> TrainingExample:
    """The chat that teaches one answer: the zero-shot prompt and the assistant's turn."""
    reply = Message("assistant", text if text is not None else task.target(example, answer))
    return TrainingExample(messages=(*task.prompt(example, ()).messages, reply))


def chat_jsonl(lines: Iterable[TrainingExample]) -> TrainingFile:
    """Chat JSONL in the fine-tuning API's format, one line an example, always the same bytes.

    Lines are worded when the file is written, once.
    """
    return TrainingFile(_jsonl(lines))


def _jsonl(lines: Iterable[TrainingExample]) -> Iterator[bytes]:
    """The same bytes as `json.dumps` without ASCII escapes, in chunks."""
    chunk: list[bytes] = []
    for line in lines:
        turns = [b'{"role": %b, "content": %b}' % (_text(m.role), _text(m.content)) for m in line.messages]
        chunk.append(b'{"messages": [%b]}\n' % b", ".join(turns))
        if len(chunk) == LINES_AT_ONCE:
            yield b"".join(chunk)
            chunk.clear()
    yield b"".join(chunk)


def check_enough(count: int, what: str) -> None:
    """Refuse a training file below the API's minimum."""
    if count < MIN_EXAMPLES:
        raise UserError(
            f"{what} has {count} examples, and a fine-tuning job needs at least {MIN_EXAMPLES}. Add labelled "
            f'examples, or set [run] propagation = "in-context" to work without a warm-up job.'
        )


async def fine_tune(
    trainer: Trainer, store: RunStore, name: str, file: TrainingFile, settings: TrainSettings
) -> TunedModel:
    """The model trained on a file: found, or bought; its ticket is on disk before the wait begins.

    Raises:
        JobFailedError: the job ended without a model; its ticket is dropped, so that the next run may buy anew.
    """
    request = _request(trainer, file, settings)

    @stage("submit")
    async def submit(run_key: str) -> Ticket:
        looked_at = check_training_file(file.content, trainer.count(), trainer.limits.context_tokens)
        trainer.on_event(name, JobEvent(id="", message=looked_at.sentence))
        ticket = await _find_or_submit(trainer, request)
        return Ticket(job_id=ticket.job_id, run_key=run_key, training_file_id=ticket.training_file_id)

    @stage("wait")
    async def wait(run_key: str) -> TunedModel:
        state = await _wait(trainer, name, JobTicket(**vars(ticket)), settings.poll_s)
        if state.model is None:
            raise JobFailedError(
                f"The {name} job {ticket.job_id} ended as {state.raw_status!r} without a model"
                f"{': ' + state.reason if state.reason else ''}. Mend the cause and run again."
            )
        return TunedModel(
            model=state.model,
            base=trainer.base,
            run_key=run_key,
            trained_tokens=state.trained_tokens,
            data_sha256=hashlib.sha256(file.content).hexdigest(),
            training_usd=trainer.price_usd(state.trained_tokens),
        )

    ticket = await store.once(f"jobs/{name}-ticket", Ticket, submit, request.run_key)
    try:
        return await store.once(f"jobs/{name}-model", TunedModel, wait, request.run_key)
    except JobFailedError:
        store.forget(f"jobs/{name}-ticket")
        raise


def _request(trainer: Trainer, file: TrainingFile, settings: TrainSettings) -> FineTuneRequest:
    parameters = Hyperparameters(
        n_epochs=settings.n_epochs,
        batch_size=settings.batch_size,
        learning_rate_multiplier=settings.learning_rate_multiplier,
    )
    return FineTuneRequest(
        model=trainer.base,
        training_file=file.content,
        run_key=_run_key(trainer, file, parameters),
        hyperparameters=parameters,
        seed=trainer.seed,
        suffix=settings.suffix,
    )


def _run_key(trainer: Trainer, file: TrainingFile, parameters: Hyperparameters) -> str:
    """What the vendor knows a training by, for ever: the words below are spelled as they always were.

    A setting that is added later is written where it is set, behind the others.
    """
    base = trainer.base_identity or trainer.base
    settings = (
        f"Hyperparameters(n_epochs={parameters.n_epochs!r}, batch_size={parameters.batch_size!r}, "
        f"learning_rate_multiplier={parameters.learning_rate_multiplier!r})"
    )
    key = hashlib.blake2b(digest_size=16)
    key.update(file.content)
    key.update(f"({base!r}, {settings}, {trainer.seed!r})".encode())
    return key.hexdigest()


async def _find_or_submit(trainer: Trainer, request: FineTuneRequest) -> JobTicket:
    """Look first; where the reply to a submission is lost, look again before anything else."""
    tuner = trainer.finetuner
    found = await tuner.find(request)
    if found is not None:
        return found
    try:
        return await tuner.submit(request)
    except TransientError:
        for look in range(LOOKS_AFTER_A_LOST_REPLY):
            await trainer.clock.sleep(2.0**look)
            try:
                found = await tuner.find(request)
            except TransientError:
                continue
            if found is not None:
                return found
        raise


async def _wait(trainer: Trainer, name: str, ticket: JobTicket, poll_s: float) -> JobState:
    """Poll until the job ends, riding through a server that is away; events are handed on as they come."""
    last_event: str | None = None
    away_since_s: float | None = None
    while True:
        try:
            state = await trainer.finetuner.poll(ticket)
            for event in await trainer.finetuner.events(ticket, last_event):
                trainer.on_event(name, event)
                last_event = event.id
        except TransientError as error:
            now_s = trainer.clock.now_s()
            away_since_s = now_s if away_since_s is None else away_since_s
            if now_s - away_since_s > AWAY_PATIENCE_S:
                raise
            trainer.on_event(name, JobEvent(id="", level="warn", message=f"The server is away: {error}"))
        else:
            away_since_s = None
            if state.finished:
                return state
        await trainer.clock.sleep(poll_s)
        await asyncio.sleep(0)
