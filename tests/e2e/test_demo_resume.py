"""The demo on the real embedded server: killed in every phase, it ends like an undisturbed one."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.resume import measure

pytest.importorskip("torch")


@pytest.mark.slow
def test_a_demo_whose_client_and_server_are_killed_in_every_phase_ends_with_the_same_bytes(tmp_path: Path) -> None:
    figures = measure(tmp_path, quick=True, victims=("both",))
    assert figures["ok"], figures
