"""Few-shot prompts that do not fit the context lose their farthest demonstrations, and no row is lost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from semievol_api import session
from semievol_api.artifacts import EvidenceTable
from semievol_api.capabilities import Chat, ChatRequest, Provider, Reply
from semievol_api.config import ProviderTable, load_config
from semievol_api.errors import ContextLengthError
from semievol_api.registry import connect
from semievol_api.run_store import load_artifact
from tests.e2e.conftest import Project, project

__all__ = ["project"]


@dataclass(frozen=True)
class Narrow:
    """A chat whose context holds one demonstration and no more."""

    inner: Chat

    async def complete(self, request: ChatRequest) -> Reply:
        """Refuse a prompt with a second demonstration."""
        if any("Example 2" in message.content for message in request.prompt.messages):
            raise ContextLengthError("too long", status=400)
        return await self.inner.complete(request)


async def test_a_prompt_that_does_not_fit_loses_its_farthest_demonstrations(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(project.config)

    def narrow(name: str, table: ProviderTable, *rest: object, **more: object) -> Provider:
        provider = connect(name, table, {}, str(project.folder))
        assert provider.chat is not None
        chat = Narrow(provider.chat)
        return replace(provider, chat=chat, scored=chat)

    monkeypatch.setattr(session, "connect", narrow)
    result = await session.run_async(config)
    said = load_artifact(Path(config.run.folder), "collaborate", EvidenceTable)
    assert said is not None
    rows = list(said.rows())
    assert len(rows) == 4 * 60 and all(row.finish == "stop" for row in rows)
    shots = {row.annotator_id: int(row.annotator_id.split("-")[1].removesuffix("shot")) for row in rows}
    assert all(row.dropped_shots == max(0, shots[row.annotator_id] - 1) for row in rows)
    assert any(row.dropped_shots for row in rows)
    assert "did not fit the model's context" in " ".join(result.verdict.document["notes"])  # type: ignore[arg-type]
