"""The keys of `[providers.NAME]` for kind `litellm`, and the `Access` that they amount to.

Keys come from a variable or a file, never from the config. Knows nothing of requests.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from semievol_api.capabilities import ProviderSettings
from semievol_api.cassettes.scrub import is_variable_name
from semievol_api.errors import ConfigError

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
    timeout_s: float = Field(default=120.0, gt=0)
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
    where = f"providers.{settings.name}"
    options = _options(settings.options, where)
    return Access(
        provider=settings.name,
        api_base=options.api_base,
        prefix=options.prefix,
        identity=options.identity or f"litellm:{options.api_base or 'vendor'}",
        api_key=_key(options, settings, where),
        timeout_s=options.timeout_s,
        leave_out=frozenset(options.leave_out),
        embedding_dimensions=options.embedding_dimensions,
        extra_body=options.extra_body,
    )


def _options(options: Mapping[str, object], where: str) -> _LiteLLMOptions:
    try:
        return _LiteLLMOptions.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join([where, *(str(part) for part in first["loc"])])
        if first["type"] != "extra_forbidden":
            raise ConfigError(f"{path!r} is wrong: {first['msg']}.") from None
        if first["loc"][0] in ("api_key", "key"):
            raise ConfigError(
                f"Unknown key {path!r}: keys never stand in a config. Put the key into a variable and name it with "
                f"api_key_env, or into a file and name that with api_key_file."
            ) from None
        names = list(_LiteLLMOptions.model_fields)
        close = difflib.get_close_matches(str(first["loc"][0]), names, n=1, cutoff=0.6)
        hint = f"Did you mean {close[0]!r}?" if close else f"Valid names: {', '.join(sorted(names))}."
        raise ConfigError(f"Unknown key {path!r}. {hint}") from None


def _key(options: _LiteLLMOptions, settings: ProviderSettings, where: str) -> str | None:
    if options.api_key_file is not None:
        path = Path(settings.base_folder) / options.api_key_file
        if settings.planning and not path.exists():
            return None
        try:
            key = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"'{where}.api_key_file': {str(path)!r} cannot be read as text.") from None
        return _plain(key, f"'{where}.api_key_file': {str(path)!r}")
    if options.api_key_env is None:
        return None
    if options.api_key_env == "":
        return "none"
    if not is_variable_name(options.api_key_env):
        raise ConfigError(
            f"'{where}.api_key_env' is not the name of a variable. If it is a key (it is not shown here), take it out "
            f"of the config: put it into a variable, such as ANTHROPIC_API_KEY, and write that name."
        )
    key = settings.environ.get(options.api_key_env, "").strip()
    if not key and settings.planning:
        return None
    if not key:
        raise ConfigError(
            f"The variable {options.api_key_env!r} is not set; the provider {settings.name!r} reads its key there. Set "
            f"it, or name another with '{where}.api_key_env'."
        )
    return _plain(key, f"The variable {options.api_key_env!r}")


def _plain(key: str, source: str) -> str:
    if key and key.isascii() and key.isprintable() and " " not in key:
        return key
    raise ConfigError(f"{source} does not hold a key: it is empty, or has spaces, line breaks or non-ASCII letters.")
