"""The keys of `[providers.NAME]` for kind `openai`, and the `Connection` that they amount to.

    connection = read_connection(settings)

The key comes from a variable or from a file, never from the config itself. Knows nothing of requests or answers.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Literal, TypeAlias
from urllib.parse import quote, urlsplit

import msgspec
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from semievol_api.capabilities import ProviderSettings, is_nearby, plain_header
from semievol_api.errors import ConfigError, nearest

_OptionRead: TypeAlias = Literal["prefill", "position", "off"]
_MaxTokensField: TypeAlias = Literal["max_tokens", "max_completion_tokens"]
_KeyHeader: TypeAlias = Literal["authorization", "api-key"]
_LogprobsShape: TypeAlias = Literal["openai", "flat"]
_Lack: TypeAlias = Literal["fine-tuning", "batches", "log-probabilities", "embeddings"]


class Preset(BaseModel):
    """How one vendor wants to be spoken to; presets.toml explains the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    organization_env: str | None = None
    project_env: str | None = None
    continue_final_message: bool
    option_read: _OptionRead
    max_tokens_field: _MaxTokensField
    suffix_chars: int
    top_logprobs: int = 20
    logprobs_shape: _LogprobsShape = "openai"
    lacks: list[_Lack] = []
    key_header: _KeyHeader = "authorization"
    api_version: str | None = None
    deployment_paths: bool = False
    job_metadata: bool = True
    job_method: bool = True
    job_hyperparameters: dict[str, bool | int | float | str] = {}


def load_presets() -> Mapping[str, Preset]:
    """All presets of the package by vendor name."""
    text = resources.files("semievol_providers.openai").joinpath("presets.toml").read_text(encoding="utf-8")
    return {vendor: Preset.model_validate(table) for vendor, table in tomllib.loads(text).items()}


def _vendor_at(base_url: str | None) -> str:
    """The vendor meant by a config that names none: OpenAI at its own address, else a compatible server."""
    if base_url is None or urlsplit(base_url).hostname == "api.openai.com":
        return "openai"
    return "compatible"


class _AzureOptions(BaseModel):
    """`deployments = { ... }`: the resource in Azure's control plane, and a Microsoft Entra token for it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    subscription: str = Field(min_length=1)
    resource_group: str = Field(min_length=1)
    account: str = Field(min_length=1)
    token_env: str = "AZURE_MANAGEMENT_TOKEN"
    management_url: str = "https://management.azure.com"
    sku: str = "Standard"
    capacity: int = Field(default=1, ge=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureResource:
    """Where Azure's control plane knows a resource, and what a deployment of it is."""

    url: str
    token: str = field(repr=False)
    sku: str = "Standard"
    capacity: int = 1


class _OpenAIOptions(BaseModel):
    """The provider's own keys. What is left out comes from the vendor's preset."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    vendor: str | None = None
    base_url: str | None = None
    identity: str | None = Field(default=None, min_length=1)
    """Names the endpoint in caches where its address changes, such as a local server on a free port."""
    api_key_env: str | None = None
    api_key_file: str | None = None
    organization_env: str | None = None
    project_env: str | None = None
    timeout_s: float | None = Field(default=None, gt=0)
    """Ends every request; None: `[limits] timeout_s` decides on chats and embeddings, 120 s on files and jobs."""
    api_version: str | None = Field(default=None, pattern="^[A-Za-z0-9._-]+$")
    continue_final_message: bool | None = None
    option_read: _OptionRead | None = None
    max_tokens_field: _MaxTokensField | None = None
    top_logprobs: int | None = Field(default=None, ge=1, le=20)
    fold_system: bool = False
    """Write the system text at the beginning of the user's turn, for models without a system role."""
    embedding_dimensions: int | None = Field(default=None, gt=0)
    embedding_format: str = Field(default="base64", pattern="^(base64|float)$")
    extra_body: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    deployments: bool | _AzureOptions = False
    """Whether tuned models answer only while they are deployed, and the run deploys them; for Azure, where."""
    job_extra_body: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    """Fields that every fine-tuning job gets besides, such as Azure's `trainingType`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How requests are worded for this server; presets.toml explains the fields."""

    continue_final_message: bool = True
    option_read: _OptionRead = "prefill"
    max_tokens_field: _MaxTokensField = "max_tokens"
    suffix_chars: int = 64
    top_logprobs: int = 20
    fold_system: bool = False
    logprobs_shape: _LogprobsShape = "openai"
    lacks: tuple[_Lack, ...] = ()
    embedding_dimensions: int | None = None
    embedding_format: str = "base64"
    deployment_paths: bool = False
    job_metadata: bool = True
    job_method: bool = True
    job_hyperparameters: Mapping[str, bool | int | float | str] = field(
        default_factory=dict[str, bool | int | float | str]
    )
    extra_body: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    job_extra_body: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Where to ask, with which key, in which dialect. `key_source` names the key's origin for messages."""

    provider: str
    base_url: str
    api_key: str = field(repr=False)
    key_source: str
    organization: str | None = field(default=None, repr=False)
    project: str | None = field(default=None, repr=False)
    timeout_s: float | None = None
    given_identity: str | None = None
    vendor: str = "compatible"
    key_header: _KeyHeader = "authorization"
    api_version: str | None = None
    dialect: Dialect = Dialect()
    deployments: bool | AzureResource = False

    @property
    def identity(self) -> str:
        """Names the endpoint in cache keys: the address, and a hash of what is added to every chat body."""
        endpoint = f"{self.given_identity or self.base_url}{'#folded' if self.dialect.fold_system else ''}"
        if not self.dialect.extra_body:
            return endpoint
        extra = msgspec.json.encode(dict(self.dialect.extra_body), order="sorted")
        return f"{endpoint}#{hashlib.sha256(extra).hexdigest()[:12]}"

    @property
    def nearby(self) -> bool:
        """Whether the server is one of one's own."""
        return is_nearby(self.base_url)

    @property
    def answer_timeout_s(self) -> float:
        """For the hot path, where the engine gives up lost requests by itself, earlier and for better reasons."""
        return self.timeout_s or (1800.0 if self.nearby else 600.0)

    @property
    def headers(self) -> dict[str, str]:
        """The request headers of the hot path, secrets among them: never log or store them."""
        headers = {"accept": "application/json", "content-type": "application/json"}
        if self.api_key:
            headers |= {self.key_header: self.api_key if self.key_header == "api-key" else f"Bearer {self.api_key}"}
        if self.organization:
            headers["openai-organization"] = self.organization
        if self.project:
            headers["openai-project"] = self.project
        return headers

    def url(self, path: str, model: str) -> str:
        """Where a model is asked: its deployment's own path where the vendor has those."""
        deployment = f"/deployments/{quote(model, safe='')}" if self.dialect.deployment_paths else ""
        version = f"?api-version={self.api_version}" if self.api_version else ""
        return f"{self.base_url}{deployment}{path}{version}"


def read_connection(settings: ProviderSettings) -> Connection:
    """Settings as a connection; nothing is sent.

    Raises:
        ConfigError: an unknown or wrong key, an unusable address, a missing key variable or key file.
    """
    where, options = settings.where, settings.read(_OpenAIOptions)
    preset = _read_preset(options, where)
    address = _read_address(options.base_url or preset.base_url, where)
    if options.api_key_file is not None and options.api_key_env:
        raise ConfigError(f"'{where}' has both api_key_env and api_key_file. Keep the one that holds the key.")
    variable = preset.api_key_env if options.api_key_env is None else options.api_key_env
    key, source = settings.read_key(variable, options.api_key_file)
    return Connection(
        provider=settings.name,
        base_url=address,
        api_key=key,
        key_source=source,
        organization=_read_header(options.organization_env, preset.organization_env, settings),
        project=_read_header(options.project_env, preset.project_env, settings),
        timeout_s=options.timeout_s,
        given_identity=options.identity,
        vendor=options.vendor or _vendor_at(options.base_url),
        key_header=preset.key_header,
        api_version=options.api_version or preset.api_version,
        dialect=_dialect(options, preset, where),
        deployments=_read_deployments(options, settings),
    )


def _read_deployments(options: _OpenAIOptions, settings: ProviderSettings) -> bool | AzureResource:
    """Whether, and where, the run deploys what it tunes."""
    asked, vendor = options.deployments, options.vendor or _vendor_at(options.base_url)
    is_azure = vendor.startswith("azure")
    if asked is False:
        return False
    if is_azure and asked is True:
        raise ConfigError(
            f"'{settings.where}.deployments': Azure's control plane must be named: deployments = {{ subscription = "
            f'"...", resource_group = "...", account = "..." }}.'
        )
    if not is_azure and (asked is not True or vendor not in ("semievol", "compatible")):
        raise ConfigError(
            f"'{settings.where}.deployments': the run can deploy at Azure, with a table, and at `semievol serve "
            f"--deployments`, with deployments = true; not at {vendor!r}."
        )
    if asked is True:
        return True
    token, _ = settings.read_key(asked.token_env, None)
    place = "/".join(quote(part, safe="") for part in (asked.subscription, "resourceGroups", asked.resource_group))
    account = f"providers/Microsoft.CognitiveServices/accounts/{quote(asked.account, safe='')}"
    return AzureResource(
        url=f"{asked.management_url.rstrip('/')}/subscriptions/{place}/{account}",
        token=token,
        sku=asked.sku,
        capacity=asked.capacity,
    )


def _read_preset(options: _OpenAIOptions, where: str) -> Preset:
    presets = load_presets()
    vendor = options.vendor or _vendor_at(options.base_url)
    if vendor not in presets:
        raise ConfigError(f"'{where}.vendor': there is no preset {vendor!r}. {nearest(vendor, list(presets))}")
    return presets[vendor]


def _read_address(base_url: str | None, where: str) -> str:
    if base_url is None:
        raise ConfigError(f"'{where}.base_url' is missing; this vendor has no address of its own.")
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"'{where}.base_url': {base_url!r} is no address. It begins with http:// or https:// and usually "
            f"ends with /v1."
        )
    if parts.username or parts.password or parts.query:
        raise ConfigError(
            f"'{where}.base_url' holds a user name, a password or a query. Give the bare address; keys come from "
            f"api_key_env or api_key_file."
        )
    return base_url.rstrip("/")


def _read_header(asked: str | None, usual: str | None, settings: ProviderSettings) -> str | None:
    """The value of a variable that the config asks for, or of the vendor's usual one where that is set."""
    variable = usual if asked is None else asked
    value = settings.environ.get(variable, "").strip() if variable else ""
    if asked and not value and not settings.planning:
        raise ConfigError(f"The variable {asked!r}, which the provider {settings.name!r} asks for, is not set.")
    return plain_header(value, f"variable {variable!r}") if value else None


def _dialect(options: _OpenAIOptions, preset: Preset, where: str) -> Dialect:
    goes_on = preset.continue_final_message
    if options.continue_final_message is not None:
        goes_on = options.continue_final_message
    option_read = options.option_read or preset.option_read
    if option_read == "prefill" and not goes_on:
        if options.option_read:
            raise ConfigError(
                f"'{where}.option_read' is \"prefill\", which needs a server that goes on from the first words of "
                f'an answer. Set continue_final_message = true if yours does, or option_read = "position".'
            )
        option_read = "position"
    return Dialect(
        continue_final_message=goes_on,
        option_read=option_read,
        max_tokens_field=options.max_tokens_field or preset.max_tokens_field,
        suffix_chars=preset.suffix_chars,
        top_logprobs=options.top_logprobs or preset.top_logprobs,
        fold_system=options.fold_system,
        logprobs_shape=preset.logprobs_shape,
        lacks=tuple(preset.lacks),
        embedding_dimensions=options.embedding_dimensions,
        embedding_format=options.embedding_format,
        deployment_paths=preset.deployment_paths,
        job_metadata=preset.job_metadata,
        job_method=preset.job_method,
        job_hyperparameters=preset.job_hyperparameters,
        extra_body=options.extra_body,
        job_extra_body=options.job_extra_body,
    )
