"""`connect`: the config's table in, the capability table out. Opens no connection and imports no SDK.

Chat is asked over the OpenAI protocol, through the provider `openai` and its preset `fireworks`; trainings and
deployments go through Fireworks' own SDK. Knows nothing of jobs and deployments themselves.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

from pydantic import BaseModel, ConfigDict, Field

from semievol_api.capabilities import Provider, ProviderSettings
from semievol_api.errors import MissingExtraError
from semievol_providers.fireworks.account import Account, Hardware
from semievol_providers.fireworks.deployments import FireworksDeployer
from semievol_providers.fireworks.jobs import TRAIN_KEYS, FireworksFineTuner, FireworksStorage
from semievol_providers.openai.provider import provider_over, wires_of
from semievol_providers.openai.settings import read_connection


class _FireworksOptions(BaseModel):
    """The provider's own keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    account: str = Field(pattern="^[a-z0-9-]+$")
    """The account's id, as in `accounts/ACCOUNT/models/...`."""
    base_url: str = "https://api.fireworks.ai"
    api_key_env: str = "FIREWORKS_API_KEY"
    api_key_file: str | None = None
    identity: str | None = Field(default=None, min_length=1)
    timeout_s: float | None = Field(default=None, gt=0)
    accelerator: str = "NVIDIA_H100_80GB"
    """What a tuned model is deployed on."""
    accelerators: int = Field(default=1, ge=1)
    deployment_shape: str | None = None
    """A shape of Fireworks' own in place of the two keys above."""


def connect(settings: ProviderSettings) -> Provider:
    """The provider that a table of the config describes.

    Raises:
        ConfigError: an unknown or wrong key, an unusable address, a missing key variable or key file.
        MissingExtraError: Fireworks' SDK is not installed.
    """
    if find_spec("fireworks") is None:
        raise MissingExtraError("fireworks-ai", "fireworks", "The provider 'fireworks'")
    options = settings.read(_FireworksOptions)
    inference: dict[str, object] = {
        "vendor": "fireworks",
        "base_url": f"{options.base_url.rstrip('/')}/inference/v1",
        "timeout_s": options.timeout_s,
        **({"identity": options.identity} if options.identity else {}),
        **({"api_key_file": options.api_key_file} if options.api_key_file else {"api_key_env": options.api_key_env}),
    }
    connection = read_connection(replace(settings, options=inference))
    wires = wires_of(settings, connection)
    chat = provider_over(connection, wires)
    account = Account(options.account, options.base_url.rstrip("/"), connection, wires.send)

    async def aclose() -> None:
        await account.aclose()
        await chat.aclose()

    return replace(
        chat,
        finetuner=FireworksFineTuner(account),
        train_keys=TRAIN_KEYS,
        deployer=FireworksDeployer(
            account, Hardware(options.accelerator, options.accelerators, options.deployment_shape)
        ),
        remote=FireworksStorage(account),
        aclose=aclose,
    )
