"""How many tokens a prompt has: counted where the vocabulary is at hand, else estimated, and it says which.

Knows nothing of prices. Never touches the network: tiktoken's vocabularies are used only where its cache
already holds them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from semievol_api.records import Prompt

CHARACTERS_PER_TOKEN = 4.0
"""English text in OpenAI's vocabularies; other scripts need more tokens."""
TURN_TOKENS = 3
"""Tokens that frame a chat turn, and as many that open the answer (OpenAI cookbook, token counting)."""


@dataclass(frozen=True)
class TokenCounter:
    """`name` says how it counts."""

    name: str
    count_text: Callable[[str], int]

    def count(self, prompt: Prompt) -> int:
        """Tokens of a whole prompt, turns' frames included."""
        return TURN_TOKENS + sum(TURN_TOKENS + 1 + self.count_text(m.content) for m in prompt.messages)


def token_counter(model: str) -> TokenCounter:
    """tiktoken's own vocabulary of the model where it is cached, else an estimate of 4 characters a token."""
    if _tiktoken_cache().is_dir():
        import tiktoken

        try:
            encoding = tiktoken.encoding_for_model(model)
        except (KeyError, OSError):
            return _estimate()
        return TokenCounter(f"tiktoken {encoding.name}", lambda text: len(encoding.encode(text, disallowed_special=())))
    return _estimate()


def _estimate() -> TokenCounter:
    return TokenCounter("estimate", lambda text: round(len(text) / CHARACTERS_PER_TOKEN))


def _tiktoken_cache() -> Path:
    named = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    return Path(named) if named else Path(tempfile.gettempdir()) / "data-gym-cache"
