"""Student here, trainer there, embeddings elsewhere: only `[roles]` and `[providers]` lines differ."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Project, Semievol
from tests.e2e.threaded import serving
from tests.providers.openai_loopback import LoopbackServer


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with serving(LoopbackServer()) as up:
        yield up


def _mixed(project: Project, student: str) -> None:
    project.change(
        ("ceiling = true", "ceiling = false"),
        ("near_duplicates = false", "near_duplicates = false\nmax_unlabeled = 12\nmax_test = 4"),
        ("[train]", "[annotate]\nn = 2\n\n[train]"),
        (
            'student = { provider = "mine", model = "tiny" }',
            'student = { provider = "asked", model = "tiny" }\ntrainer = { provider = "trained", model = "tiny" }',
        ),
        ("[roles]", f"{student}\n[roles]"),
    )


def test_student_and_trainer_at_a_server_with_embeddings_of_another(
    project: Project, semievol: Semievol, server: LoopbackServer
) -> None:
    at = f'base_url = "{server.base_url}"\napi_key_env = ""\n'
    _mixed(project, f'[providers.asked]\nkind = "openai"\n{at}\n[providers.trained]\nkind = "openai"\n{at}')
    done = semievol("run", project.config)
    assert done.code == 0, done.err
    assert len(server.jobs) == 2 and not server.asked("/embeddings")


def test_a_student_behind_litellm_asks_models_that_another_provider_trained(
    project: Project, semievol: Semievol, server: LoopbackServer
) -> None:
    pytest.importorskip("litellm", reason="needs the extra litellm")
    asked = f'[providers.asked]\nkind = "litellm"\napi_base = "{server.base_url}"\napi_key_env = ""\nprefix = "openai/"'
    trained = f'[providers.trained]\nkind = "openai"\nbase_url = "{server.base_url}"\napi_key_env = ""'
    _mixed(project, f"{asked}\n\n{trained}\n")
    done = semievol("run", project.config)
    assert done.code == 0, done.err
    assert any(seen.body["model"].startswith("ft:") for seen in server.asked("/chat/completions"))
