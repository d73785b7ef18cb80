"""`connect`: the config's table in, the capability table out. Opens no connection and imports no SDK.

`provider_over` takes the wires as arguments: cassettes and tests put their own there. Knows nothing of the wire.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from semievol_api.capabilities import Deployer, Provider, ProviderSettings, TrainSpec, Wire
from semievol_api.training.chat_jsonl import rule_batch, rule_epochs
from semievol_providers.openai.batches import OpenAIBatchChat
from semievol_providers.openai.chat import HotPath, OpenAIChat
from semievol_providers.openai.deployments import AzureDeployer, ServerDeployer
from semievol_providers.openai.embeddings import OpenAIEmbedder
from semievol_providers.openai.finetuner import OpenAIFineTuner, OpenAIStorage
from semievol_providers.openai.option_reader import OpenAIOptionReader
from semievol_providers.openai.sdk import NewTransport, Sdk, installed_major
from semievol_providers.openai.settings import AzureResource, Connection, read_connection

if TYPE_CHECKING:
    from semievol_api.cassettes.http import HttpSend

_PROXY_VARIABLES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
_THIS_MACHINE = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wires:
    """How the two ways out reach the network: `send` the hot path, `sdk_transport` the SDK (None: its own)."""

    send: HttpSend
    close_send: Callable[[], Awaitable[None]]
    sdk_transport: NewTransport | None = None


def connect(settings: ProviderSettings) -> Provider:
    """The provider that a table of the config describes.

    Raises:
        ConfigError: an unknown or wrong key, an unusable address, a missing key variable or key file.
    """
    connection = read_connection(settings)
    return provider_over(connection, wires_of(settings, connection))


def wires_of(settings: ProviderSettings, connection: Connection) -> Wires:
    """How a connection reaches the network, or whatever a cassette or a test put in its place."""
    if settings.wire is not None:
        return _wires_over(settings.wire)
    from semievol_api.cassettes.http import AiohttpSend

    behind_proxy = any(settings.environ.get(variable) for variable in _PROXY_VARIABLES)
    nearby = urlsplit(connection.base_url).hostname in _THIS_MACHINE
    send = AiohttpSend(trust_env=behind_proxy and not nearby)
    return Wires(send=send, close_send=send.aclose)


def _wires_over(wire: Wire) -> Wires:
    """Both ways out through one wire, which whoever opened it closes."""

    from semievol_api.cassettes.http import sdk_transport

    send = cast("HttpSend", wire)

    async def nothing_to_close() -> None:
        return None

    def transport() -> Any:
        return sdk_transport("httpx2" if installed_major() >= 3 else "httpx", send)

    return Wires(send=send, close_send=nothing_to_close, sdk_transport=transport)


def provider_over(connection: Connection, wires: Wires) -> Provider:
    """The provider at a connection over given wires."""
    path = HotPath(connection, wires.send)
    sdk = Sdk(connection, wires.sdk_transport)
    dialect = connection.dialect
    chat = OpenAIChat(path)

    async def aclose() -> None:
        await wires.close_send()
        await sdk.aclose()

    return Provider(
        name=connection.provider,
        identity=connection.identity,
        chat=chat,
        vendor=connection.vendor,
        scored=None if "log-probabilities" in dialect.lacks else chat,
        option_reader=None if dialect.option_read == "off" else OpenAIOptionReader(path),
        embedder=None if "embeddings" in dialect.lacks else OpenAIEmbedder(path),
        finetuner=None if "fine-tuning" in dialect.lacks else OpenAIFineTuner(sdk, dialect),
        auto_epochs=_epochs_of_our_server if connection.vendor == "semievol" else None,
        batch=None if "batches" in dialect.lacks else OpenAIBatchChat(sdk),
        deployer=_deployer(connection, path),
        remote=OpenAIStorage(sdk),
        nearby=connection.nearby,
        aclose=aclose,
    )


def _epochs_of_our_server(spec: TrainSpec, examples: int) -> int:
    """By the rule that holds where its model folder and its operator say nothing else."""
    return rule_epochs(examples, spec.batch_size or rule_batch(examples))


def _deployer(connection: Connection, path: HotPath) -> Deployer | None:
    if isinstance(connection.deployments, AzureResource):
        return AzureDeployer(path, connection.deployments)
    return ServerDeployer(path) if connection.deployments else None
