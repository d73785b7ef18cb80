"""How much of a run's prompts repeats the beginning of an earlier one, as vendors count it for their cached price.

Knows nothing of prices, of time (vendors forget within minutes) or of how requests overlap: what it counts is the most
that could be cached.
"""

from __future__ import annotations

import hashlib

from semievol_api.catalogue import Catalogue
from semievol_api.records import Prompt

STEP_CHARACTERS = 512
"""How finely beginnings are compared: about 128 tokens of English."""


class PrefixCache:
    """The beginnings that each model of one provider has seen. Vendors without a rule cache nothing."""

    def __init__(self, from_tokens: int | None, step_tokens: int = 128) -> None:
        self._from_tokens = from_tokens
        self._step_tokens = step_tokens
        self._seen: dict[str, set[bytes]] = {}

    @classmethod
    def of_vendor(cls, catalogue: Catalogue, vendor: str) -> PrefixCache:
        """The vendor's rule, as the catalogue knows it."""
        facts = catalogue.vendors.get(vendor)
        return cls(None) if facts is None else cls(facts.cache_from_tokens, facts.cache_step_tokens)

    def repeated(self, model: str, prompt: Prompt, tokens: int) -> int:
        """The cached tokens of a prompt of `tokens`, which counts as seen from now on."""
        if self._from_tokens is None or tokens < self._from_tokens:
            return 0
        text = "\x00".join(f"{turn.role}\x01{turn.content}" for turn in prompt.messages)
        seen, state, known = self._seen.setdefault(model, set()), hashlib.blake2b(digest_size=12), 0
        ends = [*range(STEP_CHARACTERS, len(text), STEP_CHARACTERS), len(text)]
        begin = 0
        for end in ends:
            state.update(text[begin:end].encode("utf-8", "surrogatepass"))
            begin, digest = end, state.digest()
            if digest in seen:
                known = end
            seen.add(digest)
        whole = int(tokens * known / len(text)) // self._step_tokens * self._step_tokens
        return whole if whole >= self._from_tokens else 0
