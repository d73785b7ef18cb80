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
from semievol_api.config.method import AnnotatorSettings
from semievol_api.config.settings import Config
from semievol_api.errors import StageError
from semievol_api.records import Evidence, Example
from semievol_api.tasks import Task

_ROLE = "subject"
_KNOWN_VENDORS = frozenset(("", "semievol"))
"""Servers of this project's own, which take every shape."""
_READ_FROM_LOGPROBS = ("option_prob", "answer_logprob", "p_true")
_EXAMPLES = 3
"""How many examples a shape may fail about."""


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
        for number in range(len(self._requests(0))):
            row = await self._asked(number)
            scored = row.finish != "failed" and (row.answer is None or row.mean_nll is not None)
            if row.finish == "failed" and provider.scored is not None:
                refused, row = row, await self._asked(number, plain=True)
            else:
                refused = row
            if row.finish == "failed":
                raise StageError(
                    f"The server refuses what this run would ask, so nothing was bought. {row.failure or ''}"
                )
            if not scored and self._ranking:
                raise StageError(
                    f"This server gives no log-probabilities, and {self._ranking} needs them, so nothing was "
                    f'bought. Set [run] mode = "calibrated", which goes on by votes, and name no estimator that needs '
                    f"them; or choose another student in [roles]. {refused.failure or ''}".rstrip()
                )

    @property
    def _ranking(self) -> str:
        """What cannot do without log-probabilities; empty where votes are enough."""
        select = self.config.select
        if select.rule in ("percentile", "random") and select.score == "mean_nll":
            return f"[select] rule = {select.rule!r}"
        named = [a for a in self._listed if a.estimator in _READ_FROM_LOGPROBS]
        return f"[[annotators]] {named[0].id!r} ({named[0].estimator})" if named else ""

    @property
    def _listed(self) -> list[AnnotatorSettings]:
        """The config's own annotators that ask the student."""
        return [a for a in self.config.annotators if a.model in ("base", "warm")]

    def _requests(self, place: int, *, plain: bool = False) -> list[ChatRequest]:
        """Every shape, about one labelled example; `plain` without log-probabilities."""
        config, first = self.config, self.labeled[place]
        others = [example for example in self.labeled[:2] if example is not first][:1]
        evaluating = ChatRequest(
            model=self.student.models[_ROLE],
            prompt=self.task.prompt(first),
            max_tokens=config.evaluate.max_tokens,
            temperature=config.evaluate.temperature,
            logprobs=self.student.provider.scored is not None and not plain,
        )
        shapes = [evaluating]
        annotating = replace(evaluating, temperature=config.annotate.temperature, seed=self.student.seed)
        if config.run.propagation != "in-weight" and others and config.annotate.max_shots:
            prompt = self.task.prompt(first, others)
            shapes.append(replace(annotating, prompt=prompt, max_tokens=config.annotate.max_tokens))
        several = max((a.n for a in self._listed), default=1)
        if several > 1:
            shapes.append(replace(annotating, n=several))
        return shapes

    async def _asked(self, number: int, *, plain: bool = False) -> Evidence:
        """The answer to a shape; one that fails is asked about other examples, since a text may be at fault."""
        reasons: list[str | None] = []
        while True:
            place = len(reasons)
            request = self._requests(place, plain=plain)[number]
            asker = f"shape-{number}{'-plain' if plain else ''}"
            question = Question(self.labeled[place], asker, request.prompt, request, _ROLE)
            lenient = replace(self.student, max_failed_share=1.0)
            (row,) = await ask(lenient, self.task, [question], stage="probe")
            if row.finish != "failed" or row.failure in reasons or place + 1 == min(_EXAMPLES, len(self.labeled)):
                return row
            reasons.append(row.failure)
