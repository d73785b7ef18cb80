"""The demo on the real embedded server: killed while it asks and while it trains, it ends like an undisturbed one.

The short form: `python -m benchmarks.resume --check` kills the client, the server and both, in every phase.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.resume import measure

pytest.importorskip("torch")


@pytest.mark.slow
def test_a_demo_whose_client_and_server_are_killed_twice_ends_with_the_same_bytes(tmp_path: Path) -> None:
    figures = measure(tmp_path, quick=True, victims=("both",), phases=("collaborate", "final job"))
    assert figures["ok"], figures
    assert [outcome["kills"] for outcome in figures["outcomes"]] == [2]
