"""Reads a confidence said in words.

Knows nothing of the question, the answer or the model.
"""

from __future__ import annotations

import re

WORD_SCALE = (
    ("almost certain", 0.95),
    ("highly likely", 0.9),
    ("very good chance", 0.8),
    ("probable", 0.75),
    ("probably", 0.75),
    ("likely", 0.7),
    ("better than even", 0.6),
    ("about even", 0.5),
    ("probably not", 0.25),
    ("unlikely", 0.2),
    ("little chance", 0.1),
    ("highly unlikely", 0.05),
    ("almost no chance", 0.02),
)
"""Words offered to the model and the probability that each stands for."""

_PHRASES = "|".join(re.escape(words) for words, _ in sorted(WORD_SCALE, key=lambda pair: -len(pair[0])))
_SAID = re.compile(rf"\b(?:{_PHRASES})\b", re.IGNORECASE)


def verbal_probability(text: str, marker: str = "Confidence:") -> float | None:
    """The probability meant by the last phrase of the scale after the last marker, or in the whole text.

    Tian et al. 2023 (arXiv 2305.14975), linguistic confidences. None where no phrase of the scale occurs.
    """
    at = text.casefold().rfind(marker.casefold())
    said = _SAID.findall(" ".join(text[max(at, 0) :].split()))
    return dict(WORD_SCALE)[said[-1].casefold()] if said else None
