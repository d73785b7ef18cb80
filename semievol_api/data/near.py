"""Find texts that are nearly the same: MinHash of character 5-grams, banded, then checked exactly.

    pairs = near_pairs(texts, threshold=0.9)        # (i, j) with i < j and Jaccard >= 0.9

A pair at exactly 0.9 is found with probability 0.996, one at 0.95 with 0.9999 (10 bands of 8 rows). The result
depends on the texts alone. Knows nothing of examples, options or what a match means.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

_STRIPPED = re.compile(r"[.,](?!\d)|(?<!\d)!|(?<=[^\W\d_])-(?=[^\W\d_])|[^\w\s.,!\-*/%]|_")
NGRAM = 5
BANDS = 10
ROWS = 8
_CHUNK_GRAMS = 2_000_000
_BUCKET_CAP = 64
"""In a bucket of more texts than this, every text is compared with the first ones only: the work stays linear."""


def normalized(text: str) -> str:
    """NFKC, case-folded, without punctuation, spacing collapsed.

    What changes a meaning stays: all symbols, and of the punctuation the signs * / % and a minus, a decimal point
    or comma, a factorial's `!`. A text of nothing but punctuation stays as it is.
    """
    folded = unicodedata.normalize("NFKC", text).casefold().replace("\u2212", "-")
    plain = " ".join(_STRIPPED.sub(_blank, folded).split())
    return plain or " ".join(folded.split())


def jaccard(a: str, b: str) -> float:
    """Jaccard similarity of the two texts' sets of character 5-grams, in [0, 1]; 1 for equal texts."""
    if a == b:
        return 1.0
    grams_a, grams_b = _grams(a), _grams(b)
    shared = len(grams_a & grams_b)
    return shared / (len(grams_a) + len(grams_b) - shared)


def near_pairs(texts: Sequence[str], threshold: float) -> list[tuple[int, int]]:
    """All pairs whose similarity reaches the threshold (0.9 is what the banding is made for), sorted."""
    cache: dict[int, frozenset[str]] = {}

    def grams(i: int) -> frozenset[str]:
        if i not in cache:
            cache[i] = _grams(texts[i])
        return cache[i]

    found: list[tuple[int, int]] = []
    for i, j in sorted(_candidates(texts)):
        a, b = grams(i), grams(j)
        if min(len(a), len(b)) < threshold * max(len(a), len(b)):
            continue
        shared = len(a & b)
        if shared >= threshold * (len(a) + len(b) - shared):
            found.append((i, j))
    return found


def signatures(texts: Sequence[str]) -> NDArray[np.uint32]:
    """MinHash signatures: uint32, shape (texts, BANDS * ROWS)."""
    random = np.random.default_rng(20241014)
    factors = random.integers(0, 2**31, BANDS * ROWS, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    offsets = random.integers(0, 2**32, BANDS * ROWS, dtype=np.uint32)
    result = np.empty((len(texts), BANDS * ROWS), dtype=np.uint32)
    for start, stop in _chunks([len(text) for text in texts]):
        hashes, starts = _gram_hashes(texts[start:stop])
        work = np.empty_like(hashes)
        for k, (factor, offset) in enumerate(zip(factors, offsets, strict=True)):
            np.multiply(hashes, factor, out=work)
            np.add(work, offset, out=work)
            result[start:stop, k] = np.minimum.reduceat(work, starts)
    return result


def _blank(found: re.Match[str]) -> str:
    """A space for punctuation; any other symbol stays."""
    char = found.group()
    return " " if unicodedata.category(char).startswith("P") else char


def _grams(text: str) -> frozenset[str]:
    padded = text.ljust(NGRAM)
    return frozenset(padded[i : i + NGRAM] for i in range(len(padded) - NGRAM + 1))


def _candidates(texts: Sequence[str]) -> set[tuple[int, int]]:
    """Pairs that share a whole band of their signatures."""
    if len(texts) < 2:
        return set()
    keys = band_keys(texts)
    found: set[tuple[int, int]] = set()
    for band in range(BANDS):
        for bucket in _buckets(keys[:, band]):
            for place, i in enumerate(bucket[:_BUCKET_CAP]):
                found.update((i, j) for j in bucket[place + 1 :])
    return found


def band_keys(texts: Sequence[str]) -> NDArray[np.uint64]:
    """A 64-bit hash of each band of each text's signature: uint64, shape (texts, BANDS)."""
    bands = signatures(texts).reshape(len(texts), BANDS, ROWS)
    keys = np.zeros((len(texts), BANDS), dtype=np.uint64)
    for row in range(ROWS):
        keys = _mixed(keys ^ bands[:, :, row].astype(np.uint64))
    return keys


def _buckets(key: NDArray[np.uint64]) -> Iterator[list[int]]:
    """Groups of indices, ascending, whose keys are equal; groups of one are left out."""
    order = np.argsort(key, kind="stable")
    edges = np.flatnonzero(np.diff(key[order])) + 1
    for group in np.split(order, edges):
        if len(group) > 1:
            yield group.tolist()


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _gram_hashes(texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.intp]]:
    """A uint32 hash of every character 5-gram of every text, and where each text's hashes begin."""
    padded = [text.ljust(NGRAM) for text in texts]
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    lengths = np.array([len(text) for text in padded], dtype=np.intp)
    windows = len(codes) - NGRAM + 1
    value = np.zeros(windows, dtype=np.uint64)
    for k in range(NGRAM):
        value = value * np.uint64(0x9E3779B97F4A7C15) + codes[k : k + windows].astype(np.uint64)
    hashes = (_mixed(value) >> np.uint64(32)).astype(np.uint32)
    ends = np.cumsum(lengths)
    inside = np.ones(windows, dtype=bool)
    for back in range(1, NGRAM):
        inside[ends[:-1] - back] = False
    starts = np.concatenate(([0], np.cumsum(lengths - NGRAM + 1)[:-1])).astype(np.intp)
    return hashes[inside], starts


def _chunks(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ranges of texts that hold at most about `_CHUNK_GRAMS` characters together."""
    start, held = 0, 0
    for i, length in enumerate(lengths):
        if held and held + length > _CHUNK_GRAMS:
            yield start, i
            start, held = i, 0
        held += length
    if start < len(lengths):
        yield start, len(lengths)
