"""`connect`: the config's table in, the capability table out. Imports no litellm and sends nothing.

Knows nothing of the calls.
"""

from __future__ import annotations

from importlib.util import find_spec

from semievol_api.capabilities import Provider, ProviderSettings
from semievol_api.errors import ConfigError, MissingExtraError
from semievol_providers.litellm.calls import LiteLLM, LiteLLMChat, LiteLLMEmbedder
from semievol_providers.litellm.prices import LiteLLMPrices
from semievol_providers.litellm.settings import read_access


def connect(settings: ProviderSettings) -> Provider:
    """The provider that a table of the config describes.

    Raises:
        ConfigError: an unknown or wrong key, or a key variable or file that holds nothing.
        MissingExtraError: litellm is not installed.
    """
    if find_spec("litellm") is None:
        raise MissingExtraError("litellm", "litellm", "The provider 'litellm'")
    if settings.wire is not None:
        raise ConfigError(
            f"The provider {settings.name!r} is of kind 'litellm', which cannot send through the cassette of "
            f"[cassette]. Point its api_base at `semievol cassette record` or `replay`, or use kind 'openai'."
        )
    access = read_access(settings)
    library = LiteLLM()
    chat = LiteLLMChat(access, library)
    return Provider(
        name=access.provider,
        identity=access.identity,
        vendor="litellm",
        limits=LiteLLMPrices(),
        chat=chat,
        scored=None if "logprobs" in access.leave_out else chat,
        embedder=LiteLLMEmbedder(access, library),
        refusals={
            "fine-tuning": "litellm drops a job's method, metadata and own fields, so that a training could neither be "
            "worded nor be found again"
        },
        aclose=library.aclose,
    )
