"""The keys of `[providers.NAME]` for kind `litellm`, and the `Access` that they amount to.

Keys come from a variable or a file, never from the config. Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from semievol_api.capabilities import ProviderSettings, is_nearby

_LeftOut: TypeAlias = Literal["logprobs", "seed", "n", "top_p", "temperature"]


class _LiteLLMOptions(BaseModel):
    """The provider's own keys.

    `leave_out` names what a vendor does not know: such a setting is then never sent. Without `logprobs` the
    provider has no log-probabilities at all, and the method works on votes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    api_base: str | None = None
    prefix: str = ""
    """Stands before every model's name, such as `openai/`: for models that another provider tuned and named."""
    identity: str | None = Field(default=None, min_length=1)
    api_key_env: str | None = None
    """Default: whichever variable litellm reads for the vendor; `""` for a server that needs none."""
    api_key_file: str | None = None
    timeout_s: float | None = Field(default=None, gt=0)
    """Ends every request; None: `[limits] timeout_s` decides."""
    leave_out: list[_LeftOut] = Field(default_factory=list[_LeftOut])
    embedding_dimensions: int | None = Field(default=None, gt=0)
    extra_body: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Where to ask and how. `api_key` of None leaves the key to litellm's own variables."""

    provider: str
    api_base: str | None
    prefix: str
    identity: str
    api_key: str | None = field(repr=False)
    timeout_s: float
    leave_out: frozenset[_LeftOut]
    embedding_dimensions: int | None
    extra_body: Mapping[str, JsonValue]


def read_access(settings: ProviderSettings) -> Access:
    """Settings as an access; nothing is sent.

    Raises:
        ConfigError: an unknown or wrong key, or a key variable or file that holds nothing.
    """
    options = settings.read(_LiteLLMOptions)
    return Access(
        provider=settings.name,
        api_base=options.api_base,
        prefix=options.prefix,
        identity=options.identity or f"litellm:{options.api_base or 'vendor'}",
        api_key=_key(options, settings),
        timeout_s=options.timeout_s or (1800.0 if is_nearby(options.api_base) else 600.0),
        leave_out=frozenset(options.leave_out),
        embedding_dimensions=options.embedding_dimensions,
        extra_body=options.extra_body,
    )


def _key(options: _LiteLLMOptions, settings: ProviderSettings) -> str | None:
    """The key; None leaves it to litellm, which reads its own variables. A server without keys is given a word."""
    if options.api_key_env == "" and options.api_key_file is None:
        return "none"
    return settings.read_key(options.api_key_env, options.api_key_file)[0] or None
