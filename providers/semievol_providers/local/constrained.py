"""Answers held to a JSON schema or a grammar: only tokens that can still become such a text may be chosen.

    check_schema('{"type": "object"}')
    constraint = Grammars(tokenizer, vocab_size, end_ids).start('{"type": "object"}')
    logits = constraint.masked(logits)      # one row; then `constraint.take(token)`

The grammar is llguidance's (docs/decisions/0018-constrained-decoding.md). JSON is written on one line, so that no
answer can consist of white space. Knows nothing of sampling, log-probabilities or HTTP.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semievol_api.errors import MissingExtraError, UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

ANY_OBJECT = '{"type":"object"}'
"""The schema of `json_object`."""
MOST_SCHEMA_BYTES = 2**14
LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_CACHED = 64


class SchemaError(UserError):
    """No grammar can be made of this JSON schema."""


def check_schema(schema: str) -> None:
    """Return if answers can be held to this JSON schema.

    Raises:
        SchemaError: it is none, it is too large, or it uses a keyword that no grammar can express.
    """
    if len(schema.encode()) > MOST_SCHEMA_BYTES:
        raise SchemaError(
            f"The JSON schema has {len(schema.encode()):,} bytes; this server takes up to {MOST_SCHEMA_BYTES:,}."
        )
    matcher = _library().LLMatcher
    try:
        problem = matcher.validate_grammar(_grammar(schema))
    except ValueError as error:
        problem = str(error)
    if problem:
        raise SchemaError(f"Answers cannot be held to this JSON schema: {problem.splitlines()[0]}.")


def _library() -> Any:
    try:
        import llguidance
    except ModuleNotFoundError as error:
        raise MissingExtraError("llguidance", "local", "Answers held to a JSON schema") from error
    return llguidance


def _grammar(schema: str) -> Any:
    return _library().LLMatcher.grammar_from_json_schema(schema, defaults=LAYOUT)


class Grammars:
    """The schemas of one model; `start` a constraint for each sample, from any thread."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, end_ids: Iterable[int]) -> None:
        self._tokenizer: Any = tokenizer
        self._vocab_size = vocab_size
        self._end_ids = sorted(end_ids)
        self._lock = threading.Lock()
        self._known: Any = None
        self._matcher = lru_cache(maxsize=_CACHED)(self._compile)

    def start(self, schema: str | None, grammar: str | None = None) -> Constraint:
        """The constraint of one sample, by a JSON schema or by llguidance's Lark grammar.

        Raises:
            SchemaError: no grammar can be made of it.
        """
        with self._lock:
            return Constraint(self._matcher(schema, grammar).deep_copy(), self._vocab_size)

    def _compile(self, schema: str | None, grammar: str | None) -> Any:
        library = _library()
        if self._known is None:
            from llguidance.hf import from_tokenizer

            # about a second for 49,000 tokens, hence at the first schema
            self._known = from_tokenizer(self._tokenizer, n_vocab=self._vocab_size, eos_token=self._end_ids)
        matcher = library.LLMatcher(self._known, grammar if schema is None else _grammar(schema), log_level=0)
        if matcher.is_error():
            raise SchemaError(f"Answers cannot be held to this JSON schema: {matcher.get_error()}")
        return matcher


class Constraint:
    """One sample under way; a step is `masked`, then `take`."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._bits = np.zeros((vocab_size + 31) // 32, np.int32)
        self._vocab_size = vocab_size

    def forbidden(self) -> NDArray[np.bool_]:
        """bool, shape (vocabulary,): the tokens that may not come next.

        Raises:
            SchemaError: the grammar needs more time or memory for this step than it is given.
        """
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if self._matcher.is_error():
            raise SchemaError(f"The JSON schema asks too much: {self._matcher.get_error()}")
        allowed = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._vocab_size]
        return np.logical_not(allowed)

    def masked(self, logits: Tensor) -> Tensor:
        """One row of logits, shape (vocabulary,), with -inf for what is forbidden; the given one stays as it is."""
        import torch

        return logits.masked_fill(torch.from_numpy(self.forbidden()).to(logits.device), float("-inf"))

    def take(self, token: int) -> None:
        """This token was chosen."""
        self._matcher.consume_token(token)
