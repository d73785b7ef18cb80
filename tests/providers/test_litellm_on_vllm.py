"""litellm against a real vLLM server: the whole method without trainings, and log-probabilities as vLLM gives them.

Opt-in, since the two want different environments: SEMIEVOL_VLLM_PYTHON names a Python that has vLLM, and this runs in
one that has litellm (`make test-vllm` arranges both).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from semievol_api.capabilities import ChatRequest, Provider, ProviderSettings
from semievol_api.errors import RefusedError
from semievol_api.records import Message, Prompt
from semievol_api.session import run
from tests.e2e.conftest import TASK, write_rows
from tests.providers.vllm_server import NAME, NEEDS_VLLM_PYTHON

pytest_plugins = ("vllm_server",)
pytestmark = [pytest.mark.slow, NEEDS_VLLM_PYTHON]
PROMPT = Prompt(
    (Message("user", "Question: which?\n\nOptions:\nA. one\nB. two\n\nReply with one line: Answer: LETTER"),)
)
CONFIG = """
[run]
folder = "out"
mode = "calibrated"
propagation = "in-context"

[data]
task = "task.toml"
labeled = "labeled.csv"
unlabeled = "unlabeled.csv"
test = "test.csv"
near_duplicates = false

[providers.there]
kind = "litellm"
prefix = "hosted_vllm/"
api_base = "{url}"
api_key_env = ""

[roles]
student = {{ provider = "there", model = "demo-llama" }}

[retrieve]
method = "bm25"

[annotate]
n = 3
max_tokens = 6

[justify]
max_tokens = 6

[split]
calibration = 16
development = 0

[select]
rule = "top-n"
n = 20

[evolve]
kind = "in-context"

[evaluate]
max_tokens = 6
"""


def _provider(url: str) -> Provider:
    pytest.importorskip("litellm", reason="needs the extra litellm")
    from semievol_providers.litellm import connect

    options = {"api_base": url, "api_key_env": "", "prefix": "hosted_vllm/"}
    return connect(ProviderSettings(name="there", options=options, environ={}))


async def test_samples_and_log_probabilities_come_through(vllm_url: str) -> None:
    provider = _provider(vllm_url)
    assert provider.scored is not None
    request = ChatRequest(model=NAME, prompt=PROMPT, max_tokens=6, n=2, seed=3, logprobs=True, top_logprobs=5)
    reply = await provider.scored.complete(request)
    await provider.aclose()
    assert len(reply.completions) == 2 and reply.usage.prompt > 10
    for completion in reply.completions:
        assert completion.token_logprobs is not None and completion.tokens is not None and completion.top is not None
        assert bool(np.all(completion.token_logprobs <= 1e-5))
        assert all(len(place) >= 5 for place in completion.top)


async def test_a_model_that_is_not_served_is_refused_with_what_to_try(vllm_url: str) -> None:
    provider = _provider(vllm_url)
    assert provider.chat is not None
    with pytest.raises(RefusedError, match="model's name"):
        await provider.chat.complete(ChatRequest(model="absent", prompt=PROMPT, max_tokens=2))
    await provider.aclose()


def test_the_method_runs_whole_without_trainings(vllm_url: str, tmp_path: Path) -> None:
    pytest.importorskip("litellm", reason="needs the extra litellm")
    write_rows(tmp_path / "labeled.csv", 40)
    write_rows(tmp_path / "unlabeled.csv", 30, start=40)
    write_rows(tmp_path / "test.csv", 12, start=100)
    (tmp_path / "task.toml").write_text(TASK, "utf-8")
    (tmp_path / "semievol.toml").write_text(CONFIG.format(url=vllm_url), "utf-8")
    result = run(tmp_path / "semievol.toml")
    assert result.verdict.document["n_test"] == 12
    abilities = (tmp_path / "out" / "probe" / "abilities.json").read_text()
    assert '"text"' not in abilities, "vLLM's log-probabilities were found, and used"
