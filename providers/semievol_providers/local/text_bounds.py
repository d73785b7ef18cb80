"""The fewest tokens that a text can have, known from its bytes alone: what can't fit a context is never tokenised.

Only for tokenizers that let every byte of a text stand in some token; others have no such bound, since they may drop
spaces or read a word of any length as unknown. Knows nothing of models, requests or HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from semievol_providers.local.chat_tokens import byte_alphabet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_COMPOSED = 4
"""NFC makes at most 3.5 bytes one: U+1FBE U+0308 U+0301, seven bytes, become U+0390, which has two."""


def most_bytes_of_a_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """No token stands for more UTF-8 bytes of a text than this; None where a token may stand for any number."""
    backend: Any = tokenizer.backend_tokenizer
    parts = json.loads(backend.to_str())
    model, before = parts["model"], list(_parts(parts.get("pre_tokenizer"), "pretokenizers"))
    normalizers = list(_parts(parts.get("normalizer"), "normalizers"))
    added = parts.get("added_tokens") or []
    by_bytes = any(part["type"] == "ByteLevel" for part in before)
    if (
        model["type"] != "BPE"
        or not all(_keeps_bytes(part) for part in normalizers)
        or not all(_keeps_pieces(part) for part in before)
        or any(token["lstrip"] or token["rstrip"] for token in added)  # they swallow spaces, however many
        or not _spells_all(model, by_bytes)
    ):
        return None
    pieces = max(len(piece) if by_bytes else len(piece.encode()) for piece in model["vocab"])
    longest = max(pieces, *(len(token["content"].encode()) for token in added), 1)
    return longest * (_COMPOSED if any(part["type"] == "NFC" for part in normalizers) else 1)


def fewest_tokens(text: str, most_bytes: int) -> int:
    """A text has at least so many tokens, of which none stands for more than `most_bytes`."""
    return -(-len(text.encode(errors="replace")) // most_bytes)


def _parts(part: Any, name: str) -> Iterator[Any]:
    if part is not None and part["type"] == "Sequence":
        for one in part[name]:
            yield from _parts(one, name)
    elif part is not None:
        yield part


def _keeps_bytes(normalizer: Any) -> bool:
    if normalizer["type"] == "Replace":
        pattern = normalizer["pattern"].get("String")
        return pattern is not None and len(normalizer["content"].encode()) >= len(pattern.encode())
    return normalizer["type"] in ("NFC", "Prepend")


def _keeps_pieces(pre_tokenizer: Any) -> bool:
    if pre_tokenizer["type"] in ("Split", "Punctuation"):
        return bool(pre_tokenizer["behavior"] != "Removed")
    return pre_tokenizer["type"] in ("ByteLevel", "Digits", "Metaspace")


def _spells_all(model: Any, by_bytes: bool) -> bool:
    """Whether a character without a token of its own still takes at least one token."""
    if by_bytes:
        return all(char in model["vocab"] for char in byte_alphabet())
    return bool(model.get("byte_fallback")) and all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256))
