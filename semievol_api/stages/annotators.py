"""Who annotates: the crew of collaborative learning, drawn with a seed.

Knows nothing of providers or prompts' wording; an annotator is a model role, a number of shots.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from semievol_api.config import AnnotateSettings, ModelRole, Propagation


@dataclass(frozen=True, slots=True)
class Annotator:
    """One way of asking: which model, and how many demonstrations; its id seeds its random numbers."""

    id: str
    role: ModelRole
    shots: int


def request_seed(run_seed: int, asker: str, example_id: str) -> int:
    """A 31-bit seed that depends on nothing but its arguments."""
    digest = hashlib.blake2b(f"{run_seed}\x00{asker}\x00{example_id}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def draw_annotators(settings: AnnotateSettings, propagation: Propagation, seed: int) -> tuple[Annotator, ...]:
    """The paper's crew: `n` of {base, warm} x {0..max_shots shots} (paper §3.3), fixed by the seed.

    Without in-weight propagation there is no warm model, without in-context propagation there are no shots.
    Drawing without replacement starts over once every way of asking is used, under other ids and so other
    random numbers.
    """
    roles: tuple[ModelRole, ...] = ("base",) if propagation == "in-context" else ("base", "warm")
    shots = (0,) if propagation == "in-weight" else tuple(range(settings.max_shots + 1))
    ways: list[tuple[ModelRole, int]] = [(role, count) for role in roles for count in shots]
    rng = random.Random(seed)
    drawn: list[tuple[ModelRole, int]] = []
    while len(drawn) < settings.n:
        if settings.draw == "with-replacement":
            drawn.append(rng.choice(ways))
        else:
            drawn.extend(rng.sample(ways, min(len(ways), settings.n - len(drawn))))
    crew: list[Annotator] = []
    for role, count in drawn:
        again = sum((a.role, a.shots) == (role, count) for a in crew)
        name = f"{role}-{count}shot" + (f"-{again + 1}" if again else "")
        crew.append(Annotator(name, role, count))
    return tuple(crew)
