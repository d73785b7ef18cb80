"""Mass requests without a run: connect a provider, ask it many prompts, pay for each answer once.

    provider = connect("openai")
    replies = ask(provider, prompts, "gpt-4o-mini-2024-07-18", max_usd=1.0)
    print(replies.texts[0])

Journal, pacing, retries and budget are the request engine's. Knows nothing of tasks, labels or runs.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeAlias, TypedDict, Unpack, cast, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from semievol_api.capabilities import ChatRequest, Provider, Reply
from semievol_api.cassettes.cassette import Cassette
from semievol_api.config.method import Settings
from semievol_api.config.settings import Limits, ProviderTable, parse_settings
from semievol_api.engine.engine import RequestEngine
from semievol_api.engine.requests import Answer, Ask
from semievol_api.errors import DataError, UserError
from semievol_api.notebook import CellProgress, cell_display, html_facts, run_blocking
from semievol_api.planning.catalogue_refresh import known_catalogue
from semievol_api.planning.limits import with_limits
from semievol_api.records import UNSEEN_LOGPROB, Message, Prompt
from semievol_api.registry import connect as connect_table

PromptLike: TypeAlias = str | Prompt | Sequence[Mapping[str, str]]
"""A user's turn, a `Prompt`, or chat messages such as `{"role": "user", "content": "..."}`."""
RUN = "ask"
"""Whose spending the caps of `ask` count in a journal."""


class AskOptions(TypedDict, total=False):
    """What `ask` and `aask` may be told besides; see there."""

    system: str
    answer_tokens: int
    temperature: float
    top_p: float
    n: int
    seed: int
    stop: Sequence[str]
    logprobs: bool
    top_logprobs: int
    concurrency: int
    rpm: int
    tpm: int
    timeout_s: float
    mode: Literal["direct", "batch"]


_PACING = ("concurrency", "rpm", "tpm", "timeout_s", "mode")


class Sampling(Settings):
    """The options of `ask` that shape a request."""

    system: str | None = None
    answer_tokens: int = Field(default=512, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    n: int = Field(default=1, ge=1)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=20)


@dataclass(frozen=True, repr=False)
class Replies(Sequence[Answer[Reply]]):
    """The answers to the prompts of `ask`, in their order.

    Attributes
    ----------
    answers : tuple of Answer
        One for each prompt: `reply` with its completions and token usage or None, `failure` in words or None, and
        `cached` where nothing was sent. Indexing and iterating give the same.
    requests : int
        Replies that the server gave to this call.
    usd, tokens : float, int
        What this call paid: USD by known prices, and prompt and completion tokens.
    priced : bool
        Whether all prices were known.

    Raises
    ------
    IndexError
        There is no answer of this number.

    Examples
    --------
    >>> provider = semievol_api.connect("scripted")
    >>> replies = semievol_api.ask(provider, ["Item 7 has cue: red"], "tiny", journal=None)
    >>> replies
    Replies(1 answer; 1 request, 8 prompt and completion tokens, no price known)
    >>> replies.texts
    ['Answer: red']
    """

    answers: tuple[Answer[Reply], ...]
    requests: int
    usd: float
    tokens: int
    priced: bool = True

    @property
    def texts(self) -> list[str | None]:
        """The first completion of each answer; None where there is none."""
        return [None if a.reply is None or not a.reply.completions else a.reply.completions[0].text for a in self]

    @property
    def mean_nll(self) -> NDArray[np.float64]:
        """Mean negative log-probability per token of each first completion, in nats, float64 (prompts,).

        NaN where there is none, or `logprobs` was not asked for; tokens without one (NaN, -9999) do not count. The
        paper (section 3.3) calls it entropy.
        """
        none = np.empty(0, dtype=np.float32)
        found = [none if a.reply is None else a.reply.completions[0].token_logprobs for a in self]
        ranked = [lps[np.isfinite(lps) & (lps > UNSEEN_LOGPROB)] for lps in (none if f is None else f for f in found)]
        return np.array([-np.mean(lps, dtype=np.float64) if lps.size else np.nan for lps in ranked], dtype=np.float64)

    @property
    def failed(self) -> tuple[int, ...]:
        """The prompts without an answer, by number."""
        return tuple(number for number, answer in enumerate(self) if answer.reply is None)

    def __len__(self) -> int:
        return len(self.answers)

    @overload
    def __getitem__(self, index: int) -> Answer[Reply]: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Answer[Reply], ...]: ...

    def __getitem__(self, index: int | slice) -> Answer[Reply] | tuple[Answer[Reply], ...]:
        return self.answers[index]

    def __iter__(self) -> Iterator[Answer[Reply]]:
        return iter(self.answers)

    def __repr__(self) -> str:
        stored = sum(answer.cached for answer in self)
        more = f", {stored} from the journal" if stored else ""
        more += f", {len(self.failed)} failed" if self.failed else ""
        usd = f"{self.usd:.4f} USD" if self.priced else "no price known"
        return (
            f"Replies({len(self)} answer{'' if len(self) == 1 else 's'}{more}; {self.requests} "
            f"request{'' if self.requests == 1 else 's'}, {self.tokens:,} prompt and completion tokens, {usd})"
        )

    def _repr_html_(self) -> str:
        """Counts and the first answers as a notebook shows them."""
        shown = {f"[{number}]": text for number, text in enumerate(self.texts[:5])}
        return html_facts(repr(self), shown, [str(self[number].failure) for number in self.failed[:3]])


def connect(
    kind: str,
    *,
    cassette: Cassette | None = None,
    catalogue: str | Path | None = None,
    **options: object,
) -> Provider:
    """Connect a provider; nothing is sent.

    Parameters
    ----------
    kind : str
        `openai` (any server that speaks its protocol), `litellm`, `local`, `vllm`, `scripted`, or one that another
        package installed.
    cassette : Cassette, optional
        A cassette that takes the network's place, from `cassette(...)`; no key is needed to replay.
    catalogue : path, optional
        A file with prices and limits of your own, in the form of the package's `catalogue.toml`; it comes first.
    **options
        The provider's own settings, as in `[providers.NAME]` of a config: for `openai` `base_url`, `api_key_env` (the
        variable that holds the key, OPENAI_API_KEY by default), `vendor`, `timeout_s` in seconds and others.

    Returns
    -------
    Provider
        A table of abilities: `chat`, `scored`, `embedder`, `finetuner` and others, None where it cannot. Prices and
        limits come from the catalogue.

    Raises
    ------
    ConfigError
        No such provider is installed, an option is unknown or wrong, or its key is missing.
    MissingExtraError
        It needs a package that is not installed; the message has the command.

    Examples
    --------
    >>> provider = semievol_api.connect("scripted", skill=0.8)
    >>> provider.name, provider.embedder is not None
    ('scripted', True)
    """
    table = ProviderTable.model_validate({"kind": kind, **options})
    wire = None if cassette is None else cassette.send
    replays = cassette is not None and cassette.mode == "replay"
    provider = connect_table(kind, table, base_folder=str(Path.cwd()), wire=wire, planning=replays)
    return with_limits(provider, known_catalogue(None if catalogue is None else Path(catalogue)))


def ask(
    provider: Provider,
    prompts: Iterable[PromptLike],
    model: str,
    *,
    max_usd: float | None = None,
    max_tokens: int | None = None,
    journal: str | Path | None = "journal.sqlite",
    **options: Unpack[AskOptions],
) -> Replies:
    """Ask many prompts and return their answers in order; what the journal holds is not asked again.

    Works in a script and inside a running event loop; a notebook shows progress. The provider's connections are closed
    at the end and opened by the next call.

    Parameters
    ----------
    provider : Provider
        From `connect`.
    prompts : iterable
        Each a text (a user's turn), a `Prompt`, or chat messages (mappings with `role` and `content`).
    model : str
        The model's name at the provider.
    max_usd, max_tokens : float or int, optional
        Caps in USD and in prompt and completion tokens on all that `ask` ever paid into this journal, not on this call
        alone; kept under any concurrency. `max_usd` needs a known price.
    journal : path or None, default "journal.sqlite"
        The SQLite file of paid answers; made if it is missing. None: nothing is kept, as a test over a cassette wants.
    **options
        `system`: a system turn before every text. `answer_tokens` (default 512): the longest completion, in tokens.
        `temperature` (default 0), `top_p`, `seed`, `stop`, `n` completions a prompt. `logprobs`, `top_logprobs` (1 to
        20): log-probabilities in nats. `concurrency`, `rpm`, `tpm` (a minute), `timeout_s`, `mode` ("batch": the
        vendor's batches) as in `[limits]` of a config.

    Returns
    -------
    Replies
        One answer a prompt, with what the call cost. A prompt that failed has its reason.

    Raises
    ------
    BudgetError
        A cap is reached; everything paid for is in the journal, and a higher cap goes on from there.
    RefusedError
        The key or the model is refused.
    ConfigError, DataError
        An option or a prompt cannot be used, or a price is needed and not known.
    JournalError
        The journal cannot be read or written.

    Examples
    --------
    >>> provider = semievol_api.connect("scripted")
    >>> prompts = [f"Item {i} has cue: red" for i in range(200)]
    >>> replies = semievol_api.ask(provider, prompts, "tiny", max_tokens=200_000)
    >>> len(replies), replies.requests
    (200, 200)
    >>> semievol_api.ask(provider, prompts, "tiny", max_tokens=200_000).requests
    0
    """

    async def closing() -> Replies:
        try:
            return await aask(
                provider, prompts, model, max_usd=max_usd, max_tokens=max_tokens, journal=journal, **options
            )
        finally:
            await provider.aclose()

    return run_blocking(closing())


async def aask(
    provider: Provider,
    prompts: Iterable[PromptLike],
    model: str,
    *,
    max_usd: float | None = None,
    max_tokens: int | None = None,
    journal: str | Path | None = "journal.sqlite",
    **options: Unpack[AskOptions],
) -> Replies:
    """As `ask`, to be awaited; connections stay open until `await provider.aclose()`.

    Parameters
    ----------
    provider, prompts, model, max_usd, max_tokens, journal, **options
        See `ask`.

    Returns
    -------
    Replies
        See `ask`.

    Raises
    ------
    BudgetError, RefusedError, ConfigError, DataError, JournalError
        See `ask`.

    Examples
    --------
    >>> import asyncio
    >>> provider = semievol_api.connect("scripted")
    >>> replies = asyncio.run(semievol_api.aask(provider, ["cue: blue"], "tiny"))
    >>> replies.texts
    ['Answer: blue']
    """
    pacing = {name: value for name, value in options.items() if name in _PACING}
    limits = parse_settings(Limits, {"max_usd": max_usd, "max_tokens": max_tokens, **pacing}, where="ask")
    shape = {name: value for name, value in options.items() if name not in _PACING}
    requests = list(_requests(prompts, model, parse_settings(Sampling, shape, where="ask")))
    show = cell_display()
    bars = None if show is None else CellProgress(show, f"Asking {model}")
    found: dict[int, Answer[Reply]] = {}
    on_progress = None if bars is None else bars.on_row
    with _journal(journal) as path:
        async with RequestEngine.open(path, limits, run=RUN, on_progress=on_progress) as engine:
            asks = (Ask(str(number), request) for number, request in enumerate(requests))
            async with aclosing(engine.chat(provider, asks, stage=RUN)) as answers:
                async for answer in answers:
                    found[int(answer.id)] = answer
            bill = engine.ledger.stages[RUN]
    if bars is not None:
        bars.finish()
    return Replies(
        answers=tuple(found[number] for number in range(len(requests))),
        requests=bill.requests,
        usd=bill.usd,
        tokens=bill.usage.prompt + bill.usage.completion,
        priced=not bill.unpriced,
    )


@contextmanager
def _journal(named: str | Path | None) -> Generator[Path]:
    """The journal's path; without a name one that goes with the block."""
    if named is None:
        with TemporaryDirectory(prefix="semievol-") as folder:
            yield Path(folder) / "journal.sqlite"
        return
    path = Path(named)
    if not path.parent.is_dir():
        raise UserError(f"There is no folder {str(path.parent)!r} for the journal {path.name!r}. Make it first.")
    yield path


def _requests(prompts: Iterable[PromptLike], model: str, sampling: Sampling) -> Iterator[ChatRequest]:
    if isinstance(prompts, str):
        raise DataError("`prompts` is one text; pass a list of them: ask(provider, [text], model).")
    chosen = sampling.model_dump(exclude={"system", "answer_tokens"})
    for number, prompt in enumerate(prompts):
        made = as_prompt(prompt, sampling.system, number)
        yield ChatRequest(model=model, prompt=made, max_tokens=sampling.answer_tokens, **chosen)


def as_prompt(given: PromptLike, system: str | None, number: int) -> Prompt:
    """A prompt from what a caller may pass; `number` names it in a message.

    Raises:
        DataError: it is none.
    """
    if isinstance(given, Prompt):
        return given
    turns = (Message("system", system),) if system else ()
    if isinstance(given, str):
        return Prompt((*turns, Message("user", given)))
    try:
        messages = tuple(Message(cast("Any", turn["role"]), turn["content"]) for turn in given)
    except (TypeError, KeyError):
        messages = ()
    if not messages or any(turn.role not in ("system", "user", "assistant") for turn in messages):
        raise DataError(
            f"Prompt {number} is {str(given)[:60]!r}; a prompt is a text, or chat messages such as "
            f'[{{"role": "user", "content": "..."}}].'
        )
    return Prompt((*turns, *messages))
