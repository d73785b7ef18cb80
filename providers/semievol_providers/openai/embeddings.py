"""Texts to vectors over an `HttpSend`, in base64 where the server can: a quarter of the bytes, no number parsing.

Knows nothing of batching many texts, caching or normalising.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from semievol_api.capabilities import EmbedReply, EmbedRequest
from semievol_api.records import FloatMatrix
from semievol_providers.openai.chat import HotPath, UsageFields, encode
from semievol_providers.openai.errors import error_in_body, invalid_answer, pace_of
from semievol_providers.openai.settings import Dialect

_WHAT = "embeddings"


class Vector(Struct, gc=False):
    """One text's vector: little-endian float32 in base64, or numbers."""

    embedding: str | list[float]
    index: int = 0


class EmbeddingAnswer(Struct, gc=False):
    """The whole answer."""

    data: list[Vector] = []
    usage: UsageFields | None = None


class OpenAIEmbedder:
    """`Embedder` at one endpoint."""

    def __init__(self, path: HotPath) -> None:
        self._path = path
        self._decoder = msgspec.json.Decoder(EmbeddingAnswer)

    async def embed(self, request: EmbedRequest) -> EmbedReply:
        """Embed one batch; row i belongs to text i.

        Raises:
            RateLimitError: too many requests or tokens.
            TransientError: no answer, a broken one, or a server's own failure.
            RefusedError: the vendor does not accept the request.
        """
        connection = self._path.connection
        answer = await self._path.post(
            "/embeddings", encode(embedding_body(request, connection.dialect)), request.model
        )
        try:
            decoded = self._decoder.decode(answer.body)
            vectors = _matrix(decoded.data)
        except (msgspec.DecodeError, binascii.Error, ValueError) as error:
            raise invalid_answer(_WHAT, answer.body, connection) from error
        if len(vectors) != len(request.texts):
            raise error_in_body(_WHAT, answer, connection)
        usage = decoded.usage or UsageFields()
        return EmbedReply(vectors=vectors, usage=usage.usage(), pace=pace_of(answer.headers))


def embedding_body(request: EmbedRequest, dialect: Dialect) -> dict[str, Any]:
    """The body that the SDK would send."""
    body: dict[str, Any] = {"input": list(request.texts), "model": request.model}
    if dialect.embedding_dimensions is not None:
        body["dimensions"] = dialect.embedding_dimensions
    body["encoding_format"] = dialect.embedding_format
    return body


def _matrix(data: Sequence[Vector]) -> FloatMatrix:
    """float32, shape (texts, dimensions), in the texts' order.

    Raises:
        ValueError: the vectors are of different lengths, or the base64 is broken.
    """
    rows = [_row(vector.embedding) for vector in sorted(data, key=lambda vector: vector.index)]
    return np.stack(rows).astype(np.float32, copy=False) if rows else np.zeros((0, 0), np.float32)


def _row(embedding: str | list[float]) -> FloatMatrix:
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")
    return np.array(embedding, dtype=np.float32)
