"""How many tokens a prompt has: counted where the vocabulary is at hand, else estimated, and it says which.

    counter = token_counter("gpt-4o-mini")                       # tiktoken where cached, else an estimate
    counter = token_counter("my-llama", Path("models/llama"))    # the folder's own tokenizer and chat template

Knows nothing of prices. Never touches the network: tiktoken's vocabularies are used only where its cache
already holds them.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semievol_api.errors import ConfigError, MissingExtraError
from semievol_api.records import Message, Prompt

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CHARACTERS_PER_TOKEN = 4.0
"""English text in OpenAI's vocabularies; other scripts need more tokens."""
_TURN_TOKENS = 3
"""Tokens that frame a chat turn, and as many that open the answer (OpenAI cookbook, token counting)."""
WORDS_OF_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How GPT-4o's vocabulary (o200k_base) cuts a text into words before merging."""

_RenderChat = Callable[[Sequence[Message], bool], str]


@dataclass(frozen=True)
class TokenCounter:
    """`name` says how it counts; `render` words a chat as the model sees it, where that is known.

    `framing` counts the special tokens that the tokenizer puts around a bare text, where its last is one of them.
    """

    name: str
    count_text: Callable[[str], int]
    render: _RenderChat | None = None
    framing: int = 0

    def remembering(self) -> TokenCounter:
        """The same counter, which counts each text once."""
        return replace(self, count_text=cache(self.count_text))

    def count(self, prompt: Prompt) -> int:
        """Tokens of a whole prompt, turns' frames and the first words of the answer included."""
        prefill = self.count_text(prompt.prefill) if prompt.prefill else 0
        return prefill + self._chat(prompt.messages, reply_follows=True)

    def count_embedding(self, text: str) -> int:
        """Tokens of a text that `semievol serve` embeds: bare where the tokenizer closes it, else as a user's turn."""
        if self.framing:
            return self.count_text(text) + self.framing
        return self.count(Prompt((Message("user", text),)))

    def count_training(self, messages: Sequence[Message]) -> int:
        """Tokens of one line of a fine-tuning file."""
        return self._chat(messages, reply_follows=False)

    def _chat(self, messages: Sequence[Message], *, reply_follows: bool) -> int:
        if self.render is not None:
            return self.count_text(self.render(messages, reply_follows))
        return _TURN_TOKENS + sum(_TURN_TOKENS + 1 + self.count_text(m.content + m.more) for m in messages)


def token_counter(model: str, tokenizer: Path | None = None) -> TokenCounter:
    """The named tokenizer, else tiktoken's own vocabulary of the model where it is cached, else an estimate.

    `tokenizer` is a model's folder (tokenizer.json), such a file, or a vocabulary in tiktoken's form (*.tiktoken).

    Raises:
        ConfigError: the named tokenizer is missing or cannot be read.
        MissingExtraError: it needs the package `tokenizers`.
    """
    if tokenizer is not None:
        return _tiktoken_file(tokenizer) if tokenizer.suffix == ".tiktoken" else _own_tokenizer(tokenizer)
    if _tiktoken_cache().is_dir():
        import tiktoken

        try:
            encoding = tiktoken.encoding_for_model(model.split(":")[1] if model.startswith("ft:") else model)
        except (KeyError, OSError):
            return _estimate()
        return TokenCounter(f"tiktoken {encoding.name}", lambda text: len(encoding.encode(text, disallowed_special=())))
    return _estimate()


def _estimate() -> TokenCounter:
    return TokenCounter(
        f"estimate ({_CHARACTERS_PER_TOKEN:g} characters a token)",
        lambda text: round(len(text) / _CHARACTERS_PER_TOKEN),
    )


def _tiktoken_cache() -> Path:
    named = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    return Path(named) if named else Path(tempfile.gettempdir()) / "data-gym-cache"


def _tiktoken_file(path: Path) -> TokenCounter:
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    try:
        ranks = load_tiktoken_bpe(str(path))
    except (OSError, ValueError) as error:
        raise ConfigError(f"The vocabulary {str(path)!r} cannot be read: {error}.") from None
    encoding = tiktoken.Encoding(path.stem, pat_str=WORDS_OF_O200K, mergeable_ranks=ranks, special_tokens={})
    return TokenCounter(f"tiktoken {path.stem}", lambda text: len(encoding.encode(text, disallowed_special=())))


def _own_tokenizer(path: Path) -> TokenCounter:
    """A model's own tokenizer.json and chat template."""
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise MissingExtraError("tokenizers", "local", "Counting with a model's own tokenizer") from None
    folder = path if path.is_dir() else path.parent
    file = folder / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"'roles.tokenizer': there is no tokenizer at {str(file)!r}. Name a model's folder.")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001  # the package raises bare exceptions
        raise ConfigError(f"'roles.tokenizer': {str(file)!r} cannot be read: {error}.") from None
    return TokenCounter(
        f"the tokenizer of {folder.name}",
        lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids),
        _chat_template(folder),
        _framing(tokenizer),
    )


def _framing(tokenizer: Tokenizer) -> int:
    framed = tokenizer.encode("a").ids
    last = tokenizer.get_added_tokens_decoder().get(framed[-1]) if framed else None
    closed = last is not None and last.special
    return len(framed) - len(tokenizer.encode("a", add_special_tokens=False).ids) if closed else 0


def _chat_template(folder: Path) -> _RenderChat | None:
    settings = _read_json(folder / "tokenizer_config.json")
    file = folder / "chat_template.jinja"
    source = file.read_text("utf-8") if file.is_file() else settings.get("chat_template")
    if not isinstance(source, str):
        return None
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    names: Any = environment.globals
    names["strftime_now"] = str  # some templates show the day; any word of its length will do
    template = environment.from_string(source)
    special = {name: _token_text(settings.get(name)) for name in ("bos_token", "eos_token")}

    def render(messages: Sequence[Message], reply_follows: bool) -> str:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        return template.render(messages=turns, add_generation_prompt=reply_follows, **special)

    return render


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def _token_text(token: Any) -> str:
    """A special token, which some files wrap into a table."""
    return str(token.get("content", "") if isinstance(token, dict) else token or "")
