"""Split and thin out examples: stratified, seeded, whole groups together.

The place of an example depends on the seed and its id, never on the order of the file. Knows nothing of files,
tasks or the method.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from operator import itemgetter

from semievol_api.records import Example


def split(examples: Sequence[Example], ratio: Sequence[float], seed: int) -> tuple[tuple[Example, ...], ...]:
    """Split by a ratio such as 2 : 6 : 2, the same class shares in every part, each group in one part.

    Args:
        examples: with or without answers; those without form a class of their own.
        ratio: the parts' relative sizes, any positive numbers.
        seed: another seed is another split.

    Returns:
        One tuple of examples per part, in the order of `examples`.
    """
    parts = [Fraction(part).limit_denominator(10_000) for part in ratio]
    shares = [part / sum(parts) for part in parts]
    debt = [Fraction(0)] * len(shares)
    part_of: dict[str, int] = {}
    for units in _strata(examples, seed).values():
        for unit in units:
            debt = [owed + share * len(unit) for owed, share in zip(debt, shares, strict=True)]
            part = debt.index(max(debt))
            debt[part] -= len(unit)
            part_of.update(dict.fromkeys(unit, part))
    return tuple(tuple(e for e in examples if part_of[e.id] == p) for p in range(len(shares)))


def subsample(examples: Sequence[Example], size: int, seed: int) -> tuple[Example, ...]:
    """At most `size` examples with the class shares of the whole, at least one per class where there is room.

    The order of `examples` stays. A larger sample of one seed holds nearly all of a smaller one's examples.
    """
    if size >= len(examples):
        return tuple(examples)
    classes = Counter(example.answer for example in examples)
    quota = _quota(classes, size)
    chosen: set[str] = set()
    ordered = sorted(((order_of(seed, e.id), e.id, e.answer) for e in examples), key=itemgetter(0))
    for _, name, answer in ordered:
        if quota[answer] > 0:
            quota[answer] -= 1
            chosen.add(name)
    return tuple(example for example in examples if example.id in chosen)


def _quota(classes: Counter[str | None], size: int) -> dict[str | None, int]:
    """Largest remainders; a class that would get none takes one from the largest."""
    total = sum(classes.values())
    exact = {name: Fraction(count * size, total) for name, count in classes.items()}
    quota = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (quota[name] - exact[name], str(name)))
    for name in by_remainder[: size - sum(quota.values())]:
        quota[name] += 1
    for name in sorted(classes, key=str):
        richest = max(quota, key=lambda n: (quota[n], str(n)))
        if quota[name] == 0 and quota[richest] > 1:
            quota[richest] -= 1
            quota[name] = 1
    return quota


def _strata(examples: Sequence[Example], seed: int) -> dict[str, list[list[str]]]:
    """Units (groups, or single examples) by their most frequent answer, each list in its seeded order."""
    units: dict[str, list[Example]] = {}
    for example in examples:
        units.setdefault(f"g{example.group}" if example.group else f"e{example.id}", []).append(example)
    strata: dict[str, list[tuple[str, list[str]]]] = {}
    for name, members in units.items():
        counted = Counter(str(e.answer) for e in members)
        stratum = min(counted, key=lambda answer: (-counted[answer], answer))
        strata.setdefault(stratum, []).append((name, [e.id for e in members]))
    return {
        stratum: [ids for _, ids in sorted(named, key=lambda pair: (-len(pair[1]), order_of(seed, pair[0])))]
        for stratum, named in sorted(strata.items())
    }


def order_of(seed: int, name: str) -> bytes:
    """What examples, or groups of them, are sorted by before some are taken; 16 bytes."""
    return hashlib.blake2b(f"{seed}\n{name}".encode(), digest_size=16).digest()
