"""Fixtures with model folders: the demo model and a tiny random Llama."""

from __future__ import annotations

from pathlib import Path

import pytest
from local_samples import make_tiny_model

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The shipped demo model."""
    return ROOT / "semievol_api" / "demo" / "model"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers whose tokenizer knows single bytes only."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    make_tiny_model(folder)
    return folder
