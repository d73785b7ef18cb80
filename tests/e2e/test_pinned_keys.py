"""Keys that money hangs on are what they were at commit a87899e, whatever the code is called by now.

A red test here says that old runs would buy or ask again. Keep the old value: `semievol_api/store/fingerprints.py`
says how.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.pinned_keys import KINDS, STORED

PINNED: dict[str, dict[str, Any]] = json.loads(STORED.read_text("utf-8"))


def kept(old: object, new: object) -> bool:
    """A table or a document may have more names than it had."""
    return old == new or (isinstance(old, list) and isinstance(new, list) and set(old) <= set(new))


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_has_the_value_that_it_always_had(kind: str) -> None:
    computed = KINDS[kind]()
    moved = {name: (old, computed.get(name)) for name, old in PINNED[kind].items() if not kept(old, computed.get(name))}
    assert not moved, "name: (the value of old runs, today's value)"
    assert set(computed) == set(PINNED[kind]), "a key that is not pinned: add it to tests/data/pinned_keys.json"


def test_the_seed_and_each_setting_of_a_training_are_part_of_its_key() -> None:
    """And nothing else is: it would buy a training twice."""
    keys = KINDS["run keys"]()
    assert keys.pop("not in the key") == keys["defaults"]
    assert len(set(keys.values())) == len(keys)
