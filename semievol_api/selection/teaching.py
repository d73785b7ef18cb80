"""What kept labels can teach: how many the student does not say itself, from which categories and how hard ones.

Selection keeps what is easy: labels that the student gives by itself change little in it. Knows nothing of models,
prompts or rules.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import UNSET, UnsetType

from semievol_api.selection.values import BoolArray, FloatArray, LabelArray
from semievol_api.store.verdict import Teaching

_MOST_NAMES = 100


def teaching(
    asked: str, kept: BoolArray, labels: LabelArray, own: LabelArray, own_confidence: FloatArray
) -> Teaching | None:
    """Compare what is kept with what the student says by itself; None where nothing is kept or it says nothing.

    Args:
        asked: the annotator that is the student by itself.
        kept: bool, shape (m,).
        labels: integers, shape (m,), the pseudo-labels, -1 = abstain.
        own: integers, shape (m,), the student's own first choices, -1 = abstain.
        own_confidence: float64, shape (m,), how sure it is of them, NaN = abstain. The hardest quarter of the questions
            are those that it abstains from, and then those that it is least sure of.
    """
    compared = kept & (labels >= 0) & (own >= 0)
    if not compared.any():
        return None
    doubt = np.argsort(np.where(np.isnan(own_confidence), -1.0, own_confidence), kind="stable")
    hardest = doubt[: doubt.size // 4]
    return Teaching(
        asked=asked,
        compared=int(np.count_nonzero(compared)),
        differ=int(np.count_nonzero(compared & (labels != own))),
        hardest_quarter=float(np.count_nonzero(kept[hardest]) / np.count_nonzero(kept)),
    )


def kept_by_name(codes: LabelArray, names: Sequence[str], kept: BoolArray) -> dict[str, tuple[int, int]] | UnsetType:
    """How many items of each name are kept, and how many there are; UNSET for a single name, or for too many.

    `codes` integers (m,), places in `names`, -1 = none; `kept` bool (m,).
    """
    if not 1 < len(names) <= _MOST_NAMES:
        return UNSET
    known = codes >= 0
    of, taken = (np.bincount(codes[known & mask], minlength=len(names)) for mask in (np.ones_like(kept), kept))
    return {name: (int(k), int(n)) for name, k, n in zip(names, taken, of, strict=True) if n}


def teaching_message(found: Teaching) -> str:
    """The comparison in a sentence or two."""
    text = (
        f"{found.differ:,} of {found.compared:,} kept labels differ from what the student says by itself "
        f"({found.asked}); {found.hardest_quarter:.1%} are from the quarter of the questions that it finds hardest."
    )
    if found.differ <= 0.01 * found.compared:
        text += " There is little in them that it does not know: a larger alpha keeps more of what it does not."
    return text
