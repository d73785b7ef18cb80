"""Do labelled and unlabelled questions come from one distribution? A two-sample test on embeddings.

Knows nothing of texts or of who made the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semievol_api.errors import DataError
from semievol_api.selection.alerts import Alert
from semievol_api.selection.values import FloatArray, IntArray

_FEWEST = 10
_SIGNIFICANCE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftSettings:
    """Rows taken from each side at most, permutations, and the seed of both."""

    max_rows: int = 500
    permutations: int = 999
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftTest:
    """The squared maximum mean discrepancy and its permutation p-value; NaN where a side is too small."""

    mmd_squared: float
    p_value: float


def drift_test(
    labelled: NDArray[np.float32] | FloatArray,
    unlabelled: NDArray[np.float32] | FloatArray,
    settings: DriftSettings | None = None,
) -> DriftTest:
    """Test whether two sets of vectors share a distribution; shapes (n, d) and (m, d).

    Kernel two-sample test (Gretton et al. 2012, JMLR 13, equation 5, biased estimate) with a Gaussian kernel on
    unit vectors, its width the median distance, and a permutation p-value (1 + exceeding) / (1 + permutations).

    Raises:
        DataError: the vectors have different lengths.
    """
    settings = settings or DriftSettings()
    if labelled.ndim != 2 or unlabelled.ndim != 2 or labelled.shape[1] != unlabelled.shape[1]:
        raise DataError(
            f"The drift test needs vectors of one length on both sides; got shapes {labelled.shape} and "
            f"{unlabelled.shape}. Embed both files with the same model."
        )
    if min(len(labelled), len(unlabelled)) < _FEWEST:
        return DriftTest(mmd_squared=float("nan"), p_value=float("nan"))
    rng = np.random.default_rng(settings.seed)
    one, other = (_sample(side, settings.max_rows, rng) for side in (labelled, unlabelled))
    kernel = _gaussian_kernel(np.concatenate([one, other]))
    sides = np.zeros((len(kernel), settings.permutations + 1))
    sides[: len(one), 0] = 1.0
    for column in range(1, sides.shape[1]):
        sides[rng.permutation(len(kernel))[: len(one)], column] = 1.0
    found = _discrepancies(kernel, sides, len(one))
    exceeding = int(np.count_nonzero(found[1:] >= found[0] - 1e-12))
    return DriftTest(mmd_squared=float(found[0]), p_value=(1 + exceeding) / (1 + settings.permutations))


def alerts_of_drift(test: DriftTest) -> tuple[Alert, ...]:
    """A finding where the two sides differ at the 1 % level."""
    if not test.p_value <= _SIGNIFICANCE:
        return ()
    return (
        Alert(
            kind="drift",
            message=f"The unlabelled questions differ from the labelled ones (kernel two-sample test, "
            f"p = {test.p_value:.3f}). Calibration promises hold for items like the labelled ones only; label a "
            f"random sample of the pool.",
        ),
    )


def _sample(rows: NDArray[np.float32] | FloatArray, limit: int, rng: np.random.Generator) -> FloatArray:
    """At most `limit` rows at random, of unit length."""
    if len(rows) > limit:
        chosen: IntArray = rng.permutation(len(rows))[:limit]
        rows = rows[chosen]
    vectors = rows.astype(np.float64)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(length > 0, length, 1.0), dtype=np.float64)


def _gaussian_kernel(vectors: FloatArray) -> FloatArray:
    """exp(-d^2 / (2 median(d)^2)) for all pairs, shape (N, N)."""
    norms = np.sum(vectors**2, axis=1)
    squared = np.maximum(norms[:, None] + norms[None, :] - 2.0 * vectors @ vectors.T, 0.0)
    median = float(np.median(squared[np.triu_indices(len(vectors), 1)]))
    return np.asarray(np.exp(-squared / (2.0 * median if median > 0 else 1.0)), dtype=np.float64)


def _discrepancies(kernel: FloatArray, sides: FloatArray, n: int) -> FloatArray:
    """The squared discrepancy of each column of `sides` (N, columns): 1 on one side, of which there are n."""
    m = len(kernel) - n
    weights = sides / n - (1.0 - sides) / m
    return np.asarray(np.sum(weights * (kernel @ weights), axis=0), dtype=np.float64)
