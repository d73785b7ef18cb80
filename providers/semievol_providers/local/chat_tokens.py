"""Turn chat messages into token ids and token ids back into text, with any tokenizer and chat template.

Knows nothing of models, sampling or HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from semievol_api.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_TAIL_CHARS = 256  # enough to see with which token a text ends


class PromptError(UserError):
    """The chat template refuses these messages."""


class ChatTokens:
    """The text side of one model: `encode_chat`, `encode_text`, `decode`, `token_bytes`.

    `check` sees every text before it is turned into token ids, and raises where that is not worth beginning.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, check: Callable[[str], None] | None = None) -> None:
        self.tokenizer = tokenizer
        self._check = check
        self._byte_of = _byte_alphabet() if _is_byte_level(tokenizer) else None
        self._special = frozenset(tokenizer.all_special_ids)
        self._texts: dict[int, tuple[str, bytes]] = {}

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        reply_follows: bool = True,
        continue_last: bool = False,
        tools: Sequence[Mapping[str, object]] = (),
    ) -> str:
        """The chat as text; with `continue_last` the last turn stays open for the model to go on."""
        from jinja2 import TemplateError

        turns: Any = [dict(message) for message in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                turns,
                tools=[dict(tool) for tool in tools] or None,
                tokenize=False,
                add_generation_prompt=reply_follows and not continue_last,
                continue_final_message=continue_last,
            )
        except (TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise PromptError(f"The model's chat template refuses these messages: {error}") from error
        assert isinstance(text, str)
        return text

    def encode_chat(
        self, messages: Sequence[Mapping[str, str]], *, reply_follows: bool = True, continue_last: bool = False
    ) -> tuple[int, ...]:
        """The chat as token ids, ready for the model's answer."""
        return self.encode_rendered(self.render(messages, reply_follows=reply_follows, continue_last=continue_last))

    def encode_rendered(self, text: str) -> tuple[int, ...]:
        """Token ids of text that already contains its special tokens."""
        if self._check is not None:
            self._check(text)
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Token ids of raw text, with the tokens that the tokenizer adds by itself."""
        if self._check is not None:
            self._check(text)
        return tuple(self.tokenizer.encode(text))

    def encode_for_embedding(self, text: str) -> tuple[int, ...]:
        """Token ids whose last one sees the whole text: a special token that closes it.

        A tokenizer that closes a bare text by itself was made for this. Otherwise the text stands as a user's turn,
        where the model knows turns. On the demo task, whose tokenizer closes texts, a vote of 20 neighbours is right
        for 82 % of the bare questions and for 72 % of those in a user's turn; docs/labels.md has the table.
        """
        if self.tokenizer.chat_template is None or self._closed(self.encode_text(text[-_TAIL_CHARS:])):
            return self.encode_text(text)
        return self.encode_chat([{"role": "user", "content": text}])

    def _closed(self, token_ids: Sequence[int]) -> bool:
        """Whether the last token is a special one."""
        known = self.tokenizer.added_tokens_decoder
        return bool(token_ids) and token_ids[-1] in known and known[token_ids[-1]].special

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of generated tokens, special tokens left out; incomplete characters show as U+FFFD."""
        return b"".join(self.token_bytes(i) for i in token_ids).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text; none for a special token."""
        return self._entry(token_id)[1]

    def token_text(self, token_id: int) -> str:
        """A token as text for a reader: special tokens by name, broken characters as U+FFFD."""
        return self._entry(token_id)[0]

    def _entry(self, token_id: int) -> tuple[str, bytes]:
        known = self._texts.get(token_id)
        if known is None:
            known = self._texts[token_id] = self._spell(token_id)
        return known

    def _spell(self, token_id: int) -> tuple[str, bytes]:
        piece = self.tokenizer.convert_ids_to_tokens(token_id)
        if not isinstance(piece, str):
            return "", b""
        if token_id in self._special:
            return piece, b""
        raw = self._piece_bytes(piece)
        return raw.decode("utf-8", errors="replace"), raw

    def _piece_bytes(self, piece: str) -> bytes:
        if self._byte_of is not None:
            if all(char in self._byte_of for char in piece):
                return bytes(self._byte_of[char] for char in piece)
            return piece.encode()
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("\u2581", " ").encode()


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    backend: Any = tokenizer.backend_tokenizer
    return '"ByteLevel"' in json.dumps(json.loads(backend.to_str()).get("decoder"))


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """Character to byte of the byte-level alphabet that GPT-2 introduced."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {chr(byte): byte for byte in printable}
    spare = 256
    for byte in range(256):
        if byte not in printable:
            alphabet[chr(spare)] = byte
            spare += 1
    return alphabet


def label_token_ids(
    label: str, encode: Callable[[str], Sequence[int]], decode: Callable[[Sequence[int]], str]
) -> tuple[int, ...]:
    """The tokens that alone spell a label, with and without a space before it; none where it takes several.

    The spelling is checked by decoding, since a tokenizer may put a space of its own before a text.
    """
    wanted = label.strip()
    found: dict[int, None] = {}
    for spelling in (wanted, f" {wanted}"):
        ids = encode(spelling)
        if len(ids) == 1 and decode(ids).strip() == wanted:
            found[ids[0]] = None
    return tuple(found)


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
        return all(char in model["vocab"] for char in _byte_alphabet())
    return bool(model.get("byte_fallback")) and all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256))
