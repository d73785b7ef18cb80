"""One question in every shape that a run will send, before its first training is bought.

A server that takes no `max_tokens`, no temperature of 0 or no system role says so here, while nothing is paid for.
Knows nothing of what the answers are worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from semievol_api.annotate.replies import Question
from semievol_api.annotate.requests import Student, ask
from semievol_api.capabilities import ChatRequest
from semievol_api.config.settings import Config
from semievol_api.errors import StageError
from semievol_api.records import Evidence, Example
from semievol_api.tasks import Task

_ROLE = "subject"
_KNOWN_VENDORS = frozenset(("", "semievol"))
"""Servers of this project's own, which take every shape."""


@dataclass(frozen=True)
class ShapeCheck:
    """What `Trainer.before_buying` calls: asks the base model, whose server is the tuned model's too."""

    student: Student
    task: Task
    labeled: Sequence[Example]
    config: Config

    async def __call__(self) -> None:
        """Ask, or refuse to go on.

        Raises:
            StageError: the server refuses a shape; the message names the setting.
        """
        provider = self.student.provider
        if provider.vendor in _KNOWN_VENDORS or provider.chat is None or not self.labeled:
            return
        for number, request in enumerate(self._requests()):
            row = await self._asked(f"shape-{number}", request)
            if row.finish == "failed" and request.logprobs:  # the run goes on without them
                row = await self._asked(f"shape-{number}-plain", replace(request, logprobs=False))
            if row.finish == "failed":
                raise StageError(
                    f"The server refuses what this run would ask, so nothing was bought. {row.failure or ''}"
                )

    def _requests(self) -> list[ChatRequest]:
        config, (first, *others) = self.config, self.labeled
        model = self.student.models[_ROLE]
        evaluating = ChatRequest(
            model=model,
            prompt=self.task.prompt(first),
            max_tokens=config.evaluate.max_tokens,
            temperature=config.evaluate.temperature,
            logprobs=self.student.provider.scored is not None,
        )
        if config.run.propagation == "in-weight" or not others or not config.annotate.max_shots:
            return [evaluating]
        annotating = replace(
            evaluating,
            prompt=self.task.prompt(first, others[:1]),
            max_tokens=config.annotate.max_tokens,
            temperature=config.annotate.temperature,
            seed=self.student.seed,
        )
        return [evaluating, annotating]

    async def _asked(self, asker: str, request: ChatRequest) -> Evidence:
        question = Question(self.labeled[0], asker, request.prompt, request, _ROLE)
        lenient = replace(self.student, max_failed_share=1.0)
        (row,) = await ask(lenient, self.task, [question], stage="probe")
        return row
