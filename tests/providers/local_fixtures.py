"""Fixtures with model folders: the demo model and a tiny random Llama."""

from __future__ import annotations

from pathlib import Path

import pytest
from local_samples import LLAMA_TOOLS_TEMPLATE, QWEN_TOOLS_TEMPLATE, make_tiny_model

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


@pytest.fixture(scope="session", params=["llama", "qwen"])
def tools_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a template that shows tools, of two families."""
    template = {"llama": LLAMA_TOOLS_TEMPLATE, "qwen": QWEN_TOOLS_TEMPLATE}[request.param]
    folder = tmp_path_factory.mktemp("tools") / str(request.param)
    make_tiny_model(folder, template, context=4096, markers=request.param == "qwen")
    return folder
