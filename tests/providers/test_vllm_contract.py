"""The contract suites on a real vLLM engine; skipped where vLLM is not installed (see `make test-vllm`)."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from tests.contract.subjects import Subject
from tests.contract.test_chat_contract import *  # noqa: F403
from tests.contract.test_embedder_contract import *  # noqa: F403
from tests.contract.test_finetuner_contract import *  # noqa: F403
from tests.contract.test_option_reader_contract import *  # noqa: F403

pytest_plugins = ("vllm_fixtures",)
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def subject(vllm_subject: Subject) -> Subject:
    """The one engine of this session."""
    return vllm_subject
