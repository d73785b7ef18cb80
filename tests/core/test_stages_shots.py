"""What the prompts of a run show: demonstrations that fit the context, and proposals by the judge's own letters."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from semievol_api import session
from semievol_api.capabilities import Chat, ChatRequest, Provider, Reply
from semievol_api.config.settings import ProviderTable, load_config
from semievol_api.errors import ContextLengthError
from semievol_api.registry import connect
from semievol_api.store.artifacts import EvidenceTable
from semievol_api.store.run_store import load_artifact
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


@dataclass(frozen=True)
class Overheard:
    """A chat that keeps what it is asked."""

    inner: Chat
    asked: list[str] = field(default_factory=list)

    async def complete(self, request: ChatRequest) -> Reply:
        """Keep the question."""
        self.asked.append(request.prompt.messages[-1].content)
        return await self.inner.complete(request)


def connected(project: Project, around: Callable[[Chat], Chat]) -> Callable[..., Provider]:
    """The scripted provider with something around its chat."""

    def connect_to(name: str, table: ProviderTable, *rest: object, **more: object) -> Provider:
        provider = connect(name, table, {}, str(project.folder))
        assert provider.chat is not None
        chat = around(provider.chat)
        return replace(provider, chat=chat, scored=chat)

    return connect_to


async def test_a_prompt_that_does_not_fit_loses_its_farthest_demonstrations(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(project.config)

    monkeypatch.setattr(session, "connect", connected(project, Narrow))
    result = await session.run_async(config)
    said = load_artifact(Path(config.run.folder), "collaborate", EvidenceTable)
    assert said is not None
    rows = list(said.rows())
    assert len(rows) == 4 * 60 and all(row.finish == "stop" for row in rows)
    shots = {row.annotator_id: int(row.annotator_id.split("-")[1].removesuffix("shot")) for row in rows}
    assert all(row.dropped_shots == max(0, shots[row.annotator_id] - 1) for row in rows)
    assert any(row.dropped_shots for row in rows)
    assert "did not fit the model's context" in " ".join(result.verdict.document["notes"])  # type: ignore[arg-type]


@pytest.mark.parametrize("on", ["all", "uncertain"])
async def test_the_judge_reads_proposals_by_the_letters_of_its_own_options(
    project: Project, monkeypatch: pytest.MonkeyPatch, on: str
) -> None:
    project.change(
        ('mode = "paper"\n', ""),
        ('state = "server"', 'state = "server"\nskill = 0.5\ncan_read_options = false\nalternatives = false'),
    )
    with project.config.open("a", encoding="utf-8") as file:
        file.write(f'[justify]\non = "{on}"\nshow = "response"\n')
        file.writelines(f'[[annotators]]\nid = "a{i}"\nmodel = "base"\npermute = true\n' for i in range(2))
    config, asked = load_config(project.config), list[str]()
    monkeypatch.setattr(session, "connect", connected(project, lambda chat: Overheard(chat, asked)))
    await session.run_async(config)
    said = load_artifact(Path(config.run.folder), "collaborate", EvidenceTable)
    assert said is not None
    rows = list(said.rows())
    assert any(row.permutation not in (None, (0, 1, 2, 3)) for row in rows)
    answers: dict[str, set[str | None]] = {}
    for row in rows:
        answers.setdefault(row.example_id, set()).add(row.answer)
    judged = [text for text in asked if "Proposed answers:" in text]
    assert judged
    for text in judged:
        number = re.search(r"Item number (\d+) ", text)
        assert number is not None
        proposed = re.findall(r"^\d+\. Answer: ([A-D])$", text, re.MULTILINE)
        assert set(proposed) == answers[f"q{number[1]}"]
