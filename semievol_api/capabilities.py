"""What a provider may be able to do: one small Protocol per ability, and the `Provider` table of optional ones.

An empty field of the table is the whole statement that a provider cannot. Requests and replies are values;
providers translate them to their wire and raise the errors of `errors.py`. They never retry, never wait for
quota, never keep state about a run: the engine does. Knows nothing of vendors or stages.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from semievol_api.errors import ConfigError, MissingAbilityError, nearest
from semievol_api.records import Completion, FloatMatrix, Prompt, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteModel:
    """What the vendor itself says of a model; `shutdown_date` (ISO) is None where it announces none."""

    name: str
    shutdown_date: str | None = None


class VendorStorage(Protocol):
    """What lies at the vendor: uploaded files and models, to be looked at and cleaned up."""

    async def model(self, name: str) -> RemoteModel:
        """One model; `RefusedError` where there is none."""
        ...

    async def files_with(self, training_file: bytes) -> Sequence[str]:
        """The ids of the uploaded files with this content that this project uploaded."""
        ...

    async def delete_file(self, file_id: str) -> None:
        """Delete an uploaded file."""
        ...

    async def delete_model(self, name: str) -> None:
        """Delete a tuned model."""
        ...


ModelName: TypeAlias = str


# ------------------------------------------------------------------------------------------------ chat
@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One question to a chat model.

    `logprobs` asks for the log-probabilities of the chosen tokens, `top_logprobs` (1..20) for alternatives
    too. `seed` is best effort on most servers. `max_tokens` counts completion tokens, end of turn included.
    """

    model: ModelName
    prompt: Prompt
    max_tokens: int
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    schema: str = ""
    """A JSON schema that the answer is held to while it is written; a provider that cannot do that refuses it."""
    first_sample: int = 0
    """Where a request was split: the number of its first sample. No server sees it; a cassette tells parts apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What the response's headers said about the quota that is left; None where they said nothing."""

    limit_requests: int | None = None
    limit_tokens: int | None = None
    remaining_requests: int | None = None
    remaining_tokens: int | None = None
    reset_requests_s: float | None = None
    reset_tokens_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The `n` completions of one chat request, in the server's order."""

    completions: tuple[Completion, ...]
    usage: Usage
    pace: Pace = Pace()


class Chat(Protocol):
    """Answers chat requests."""

    async def complete(self, request: ChatRequest) -> Reply:
        """Answer once; raise `RateLimitError`, `TransientError` or `RefusedError`."""
        ...


class ScoredChat(Protocol):
    """Answers chat requests with the log-probability of every chosen token.

    Whether a given *model* honours it is found by the probe; a completion without log-probabilities is
    legal and has `token_logprobs=None`.
    """

    async def complete(self, request: ChatRequest) -> Reply:
        """Answer once, `request.logprobs` and `request.top_logprobs` honoured where the server can."""
        ...


# ---------------------------------------------------------------------------------------- option reader
@dataclass(frozen=True, slots=True, kw_only=True)
class OptionRequest:
    """Asks for the exact log-probability of each label as the continuation of a prompt with a prefill."""

    model: ModelName
    prompt: Prompt
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionReply:
    """`logprobs[i]` is the natural log-probability of `labels[i]`, or None where the server did not show it.

    `others` are those of the tokens that mean no label, where the server shows a few alternatives and not every label
    is among them: a label that it did not show has no more than the least of all, nor than what they leave.
    """

    logprobs: tuple[float | None, ...]
    usage: Usage
    pace: Pace = Pace()
    others: tuple[float, ...] = ()


class OptionReader(Protocol):
    """Reads the distribution over given labels in one prefill."""

    async def read(self, request: OptionRequest) -> OptionReply:
        """Read once."""
        ...


# -------------------------------------------------------------------------------------------- embeddings
@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest:
    """One batch of texts to embed."""

    model: ModelName
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EmbedReply:
    """`vectors` is float32, shape (len(texts), dimensions), not necessarily of unit length."""

    vectors: FloatMatrix
    usage: Usage
    pace: Pace = Pace()


class Embedder(Protocol):
    """Turns texts into vectors."""

    async def embed(self, request: EmbedRequest) -> EmbedReply:
        """Embed one batch."""
        ...


# ------------------------------------------------------------------------------------------- fine-tuning
class TrainSpec(BaseModel):
    """What is trained how: the one value that travels from `[train]` to every trainer. None: the trainer's own.

    Hosted vendors take the first four, ours take all. `learning_rate_multiplier` is of the trainer's own rate.
    `target_modules` is "all-linear", or names by commas. Without a validation file, `validation_share` of the examples
    are held out; `patience` epochs without a lower validation loss end the training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_epochs: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    learning_rate_multiplier: float | None = Field(default=None, gt=0)
    seed: int | None = None
    rank: int | None = Field(default=None, ge=1)
    alpha: int | None = Field(default=None, ge=1)
    dropout: float | None = Field(default=None, ge=0, lt=1)
    use_dora: bool | None = None
    use_rslora: bool | None = None
    target_modules: str | None = Field(default=None, min_length=1)
    train_embeddings: bool | None = None
    warmup_share: float | None = Field(default=None, ge=0, le=1)
    weight_decay: float | None = Field(default=None, ge=0)
    max_grad_norm: float | None = Field(default=None, gt=0)
    qlora: bool | None = None
    validation_share: float | None = Field(default=None, ge=0, lt=1)
    patience: int | None = Field(default=None, ge=0)

    @property
    def given(self) -> dict[str, int | float | str]:
        """What is not left to the trainer, by field, in the order of the fields."""
        return self.model_dump(exclude_none=True, include=set(TrainSpec.model_fields))


HOSTED_TRAIN_KEYS = ("n_epochs", "batch_size", "learning_rate_multiplier", "seed")
"""What of a `TrainSpec` the fine-tuning API has a place for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuneRequest:
    """One training to be bought.

    `training_file` is the content of a chat JSONL file. `run_key` names this training for ever: a provider
    stores it with the job, so that `find` meets it again after a crash.
    """

    model: ModelName
    training_file: bytes
    run_key: str
    validation_file: bytes | None = None
    spec: TrainSpec = field(default_factory=TrainSpec)
    suffix: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobTicket:
    """The receipt of a submitted job: enough to find it again from another machine."""

    job_id: str
    run_key: str
    training_file_id: str | None = None


JobStatus: TypeAlias = Literal["queued", "running", "succeeded", "failed", "cancelled", "paused", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """Where a job stands. `raw_status` keeps the vendor's own word; `model` is set once it succeeded."""

    status: JobStatus
    raw_status: str
    model: ModelName | None = None
    reason: str | None = None
    trained_tokens: int | None = None

    @property
    def finished(self) -> bool:
        """True when the job will not change any more."""
        return self.status in ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent:
    """One line of a job's log; `metrics` holds numbers such as train_loss and step."""

    id: str
    message: str
    level: str = "info"
    created_at: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])


class FineTuner(Protocol):
    """Buys trainings."""

    async def submit(self, request: FineTuneRequest) -> JobTicket:
        """Start a job. Never retried by anyone: look with `find` first."""
        ...

    async def find(self, request: FineTuneRequest) -> JobTicket | None:
        """The job that already carries the request's run key, unless it failed or was cancelled."""
        ...

    async def poll(self, ticket: JobTicket) -> JobState:
        """Where the job stands now."""
        ...

    async def events(self, ticket: JobTicket, after: str | None) -> Sequence[JobEvent]:
        """Events newer than the event id `after` (all of them for None), oldest first."""
        ...

    async def cancel(self, ticket: JobTicket) -> None:
        """Ask the vendor to stop the job."""
        ...


# ------------------------------------------------------------------------------------------ deployments
@dataclass(frozen=True, slots=True, kw_only=True)
class DeployRequest:
    """A model to be put on rented accelerators. `run_key` names this deployment for ever, as a training's does."""

    model: ModelName
    run_key: str


DeploymentStatus: TypeAlias = Literal["starting", "ready", "asleep", "failed", "deleted", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentState:
    """Where a deployment stands. `raw_status` keeps the vendor's own word; `asked_as` is the name that requests give.

    One that is `starting` or `ready` costs money by the hour; `asleep` (no replicas), `failed` and `deleted` do not.
    """

    status: DeploymentStatus
    raw_status: str
    asked_as: ModelName | None = None
    reason: str | None = None


class Deployer(Protocol):
    """Puts models on rented accelerators, and takes them off again."""

    usd_per_hour: float | None
    """The price of one deployment while it is awake; None where the provider does not know it."""
    tokens_are_free: bool
    """Whether the hours are the whole price, so that requests cost nothing besides."""

    def needs(self, model: ModelName) -> bool:
        """Whether a model answers only while it is deployed."""
        ...

    async def deploy(self, request: DeployRequest) -> str:
        """Make a deployment and return its id. Never retried by anyone: look with `find` first."""
        ...

    async def find(self, request: DeployRequest) -> str | None:
        """The id of the deployment that already carries the request's run key, unless it failed or was deleted."""
        ...

    async def poll(self, deployment_id: str) -> DeploymentState:
        """Where it stands now; one that the vendor does not know is `deleted`."""
        ...

    async def wake(self, deployment_id: str) -> None:
        """Give it replicas again."""
        ...

    async def sleep(self, deployment_id: str) -> None:
        """Scale it to zero; `RefusedError` where the vendor cannot."""
        ...

    async def delete(self, deployment_id: str) -> None:
        """Delete it; one that is gone already is no error."""
        ...


# ------------------------------------------------------------------------------------------------- batch
@dataclass(frozen=True, slots=True, kw_only=True)
class BatchState:
    """Where a batch stands; `done`, `failed` and `total` count its requests."""

    status: Literal["running", "completed", "expired", "failed", "cancelled"]
    raw_status: str
    done: int = 0
    failed: int = 0
    total: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchAnswer:
    """One line of a finished batch: a reply, or the reason why there is none."""

    custom_id: str
    reply: Reply | None
    error: str | None = None
    retryable: bool = False


class BatchChat(Protocol):
    """Answers many chat requests together, later, at a lower price."""

    async def submit(self, requests: Mapping[str, ChatRequest], run_key: str) -> str:
        """Upload requests keyed by custom id; returns the batch id."""
        ...

    async def find(self, run_key: str) -> str | None:
        """The id of the batch that already carries this key, or None."""
        ...

    async def poll(self, batch_id: str) -> BatchState:
        """Where the batch stands now."""
        ...

    async def collect(self, batch_id: str) -> Sequence[BatchAnswer]:
        """All finished lines, errors among them; order is not kept. Works on expired batches too."""
        ...

    async def cancel(self, batch_id: str) -> None:
        """Ask the vendor to stop the batch."""
        ...


# ------------------------------------------------------------------------------------------------- table
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimits:
    """Numbers about one model; None where they are not known. Prices are USD per million tokens."""

    context_tokens: int | None = None
    max_n: int | None = None
    max_top_logprobs: int | None = None
    input_usd: float | None = None
    cached_input_usd: float | None = None
    output_usd: float | None = None
    training_usd: float | None = None
    shutdown_date: str | None = None


async def _nothing_to_close() -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """What one vendor can do. `identity` enters cache keys: the endpoint, without key or anything secret.

    `vendor` is the name under which the catalogue knows the vendor; empty for a server of one's own.
    """

    name: str
    identity: str
    vendor: str = ""
    limits: Mapping[ModelName, ModelLimits] = field(default_factory=dict[ModelName, ModelLimits])
    chat: Chat | None = None
    scored: ScoredChat | None = None
    option_reader: OptionReader | None = None
    embedder: Embedder | None = None
    finetuner: FineTuner | None = None
    train_keys: tuple[str, ...] = HOSTED_TRAIN_KEYS
    """The fields of a `TrainSpec` that its trainings take; a setting of another is refused while planning."""
    auto_epochs: Callable[[TrainSpec, int], int] | None = None
    """The epochs that its trainer takes for so many examples where the specification names none; None: unknown."""
    batch: BatchChat | None = None
    deployer: Deployer | None = None
    remote: VendorStorage | None = None
    refusals: Mapping[str, str] = field(default_factory=dict[str, str])
    """Why an ability is missing, by its name in `require`, where there is more to say."""
    nearby: bool = False  # a machine of one's own: while the connection holds, a late answer is slow, not lost
    awake: Callable[[ModelName], Awaitable[None]] | None = None
    """Comes back when a model may be asked; a run sets it where models are deployed (`training/deployments.py`)."""
    aclose: Callable[[], Awaitable[None]] = _nothing_to_close


def is_nearby(url: str | None) -> bool:
    """Whether an address is this machine's, or one of a private network: a server of one's own."""
    host = (urlsplit(url or "").hostname or "").removesuffix(".")
    with suppress(ValueError):
        return ip_address(host).is_private  # loopback among them
    return host == "localhost" or host.endswith((".local", ".localhost", ".internal", ".lan"))


OptionsT = TypeVar("OptionsT", bound=BaseModel)
_LONGEST_WORD = 32
"""A text without an underscore and at least as long looks like a key, not like the name of a variable."""
Wire: TypeAlias = Callable[[str, str, bytes | None, Mapping[str, str], float], Awaitable[Any]]
"""What takes the network's place, such as a cassette: an `HttpSend` of `cassettes/http.py`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSettings:
    """What `connect` is given: the provider's own table of the config, checked by the provider itself.

    `options` are the keys of `[providers.NAME]` besides `kind`; `environ` is where key variables are read;
    `base_folder` resolves relative paths.
    """

    name: str
    options: Mapping[str, object]
    environ: Mapping[str, str]
    base_folder: str = "."
    planning: bool = False
    """Nothing will be sent: a missing key is no fault."""
    wire: Wire | None = None
    """What everything goes through; a provider that cannot send through it refuses. None: the network."""

    @property
    def where(self) -> str:
        """The path of the provider's table in the config."""
        return f"providers.{self.name}"

    def read(self, kind: type[OptionsT]) -> OptionsT:
        """The provider's table as its own settings.

        Raises:
            ConfigError: an unknown or wrong key; the message names its path and the nearest valid key.
        """
        try:
            return kind.model_validate(dict(self.options))
        except ValidationError as error:
            first = error.errors()[0]
            path = ".".join([self.where, *map(str, first["loc"])])
            if first["type"] != "extra_forbidden":
                raise ConfigError(f"{path!r} is wrong: {first['msg']}.") from None
            if first["loc"][0] in ("api_key", "key"):
                raise ConfigError(
                    f"Unknown key {path!r}: keys never stand in a config. Put the key into a variable and name it with "
                    f"api_key_env, or into a file and name that with api_key_file."
                ) from None
            hint = nearest(str(first["loc"][0]), list(kind.model_fields))
            raise ConfigError(f"Unknown key {path!r}. {hint}") from None

    def read_key(self, variable: str | None, file: str | None) -> tuple[str, str]:
        """An API key from a file, else from a variable, and its source for messages; empty where there is none.

        Raises:
            ConfigError: the file or the variable holds no key, and it is no planning.
        """
        if file is not None:
            path = Path(self.base_folder) / file
            if self.planning and not path.exists():
                return "", f"the file {str(path)!r} (absent: planning needs no key)"
            return plain_header(_key_in(path, self.where), f"file {str(path)!r}"), f"the file {str(path)!r}"
        if not variable:
            return "", "no key"
        if not variable.isidentifier() or (len(variable) >= _LONGEST_WORD and "_" not in variable):
            raise ConfigError(
                f"'{self.where}.api_key_env' is not the name of a variable. If it is a key (it is not shown here), "
                f"take it out of the config: put it into a variable, such as OPENAI_API_KEY, and write that name."
            )
        key = self.environ.get(variable, "").strip()
        if not key and self.planning:
            return "", f"the variable {variable!r} (not set: planning needs no key)"
        if not key:
            raise ConfigError(
                f"The variable {variable!r} is not set; the provider {self.name!r} reads its key there. Set it, name "
                f"another with '{self.where}.api_key_env', or write api_key_env = \"\" for a server that needs no key."
            )
        return plain_header(key, f"variable {variable!r}"), f"the variable {variable!r}"


def plain_header(text: str, source: str) -> str:
    """The text, if it can stand in a header.

    Raises:
        ConfigError: it cannot, and so is no key.
    """
    if text.isascii() and text.isprintable() and " " not in text:
        return text
    raise ConfigError(f"The {source} does not hold a key: there are spaces, line breaks or non-ASCII letters in it.")


def _key_in(path: Path, where: str) -> str:
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"'{where}.api_key_file': {str(path)!r} cannot be read: {reason}.") from None
    if not key:
        raise ConfigError(f"'{where}.api_key_file': {str(path)!r} is empty. It should hold the key and nothing else.")
    return key


@runtime_checkable
class Connect(Protocol):
    """The entry point of a provider: settings in, table out. Opens no connection and sends nothing."""

    def __call__(self, settings: ProviderSettings) -> Provider:
        """Raise `ConfigError` for settings that the provider does not know or cannot use."""
        ...


Ability = TypeVar("Ability")


def require(ability: Ability | None, what: str, provider: Provider) -> Ability:
    """The ability, or a refusal while planning, before a cent is spent.

    Raises:
        MissingAbilityError: the provider's table leaves it empty.
    """
    if ability is None:
        abilities = {
            "chat": provider.chat,
            "log-probabilities": provider.scored,
            "option reading": provider.option_reader,
            "embeddings": provider.embedder,
            "fine-tuning": provider.finetuner,
            "batches": provider.batch,
            "deployments": provider.deployer,
            "clean-up": provider.remote,
        }
        can = [name for name, fill in abilities.items() if fill is not None]
        reason = f" ({provider.refusals[what]})" if what in provider.refusals else ""
        raise MissingAbilityError(
            f"The provider {provider.name!r} has no {what}{reason}; it offers {', '.join(can) or 'nothing'}. "
            f"Give this role to another provider in [roles], or change the setting that needs it."
        )
    return ability
