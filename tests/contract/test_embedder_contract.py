"""What every provider with an `embedder` promises."""

from __future__ import annotations

import numpy as np
import pytest

from semievol_api.capabilities import Embedder, EmbedRequest
from tests.contract.subjects import Subject


def _embedder(subject: Subject) -> Embedder:
    if subject.provider.embedder is None:
        pytest.skip("this provider has no embeddings")
    return subject.provider.embedder


async def test_each_text_has_a_row_of_float32(subject: Subject) -> None:
    texts = ("one", "another", "a third text")
    reply = await _embedder(subject).embed(EmbedRequest(model=subject.embedding_model, texts=texts))
    assert reply.vectors.dtype == np.float32
    assert reply.vectors.shape[0] == 3
    assert bool(np.all(np.isfinite(reply.vectors)))
    assert reply.usage.prompt > 0


async def test_rows_keep_the_order_of_the_texts(subject: Subject) -> None:
    embedder = _embedder(subject)
    both = await embedder.embed(EmbedRequest(model=subject.embedding_model, texts=("cat", "a longer text")))
    alone = await embedder.embed(EmbedRequest(model=subject.embedding_model, texts=("a longer text",)))
    np.testing.assert_allclose(both.vectors[1], alone.vectors[0], atol=1e-4)
    assert not np.allclose(both.vectors[0], alone.vectors[0], atol=1e-4)
