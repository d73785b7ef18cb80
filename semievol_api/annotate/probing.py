"""What each model's server gives beside an answer's text, by one cheap call, and how annotators are read by it.

A server that ignores a field (HTTP 200 without it) and one that refuses it (400) are the same to the rest of the
run: the next estimator takes over. Knows nothing of what estimators compute.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from semievol_api.annotate.annotators import Annotator, Crew
from semievol_api.annotate.estimators import (
    choose_estimator,
    estimator_of,
    evidence_given,
    is_probed,
    probing_of,
)
from semievol_api.annotate.requests import Corpus, SamplingParams, Student, ask, questions_of
from semievol_api.errors import MissingAbilityError
from semievol_api.records import Evidence, Example
from semievol_api.store.artifacts import Abilities, Ability
from semievol_api.store.fingerprints import stage
from semievol_api.tasks import Task

_FEWER_ALTERNATIVES = (5, 1)
"""Asked for where a server refuses as many as are wanted."""
_BEST_FIRST: tuple[Ability, ...] = ("options", "alternatives", "logprobs")


@stage("probe")
async def probe(student: Student, corpus: Corpus, crew: Crew, max_tokens: int) -> Abilities:
    """The best that each asked role's server gives, found on one question."""
    roles = crew.asked_roles
    examples = corpus.data.unlabeled[:1] or corpus.data.labeled[:1]
    if not roles or not examples:
        return Abilities({})
    found = {role: await _ability(student, corpus, role, examples[0], max_tokens) for role in roles}
    most = {role: one.most for role, one in found.items() if one.most is not None}
    schemas = [
        role for role in roles if corpus.task.schema and await _held(student, corpus, role, examples[0], max_tokens)
    ]
    return Abilities({role: one.ability for role, one in found.items()}, most, tuple(schemas))


@dataclass(frozen=True, slots=True)
class _Found:
    """What a server gives; `most` is how many alternatives it shows, where it refused as many as were wanted."""

    ability: Ability
    most: int | None = None


def resolve_estimators(crew: Crew, abilities: Abilities, task: Task) -> Crew:
    """The crew with one way of reading each, the same for all questions of the run.

    Raises:
        MissingAbilityError: an annotator's own estimator needs what its server does not give.
    """
    annotators = tuple(_resolved(annotator, abilities, task) for annotator in crew.annotators)
    return replace(crew, annotators=annotators, judge=_resolved(crew.judge, abilities, task))


def _resolved(annotator: Annotator, abilities: Abilities, task: Task) -> Annotator:
    wanted = annotator.reading
    if not is_probed(wanted):
        return annotator
    named = estimator_of(wanted)
    ability = abilities.of.get(annotator.role, "text")
    given = evidence_given(ability, task.closed)
    asking = choose_estimator(given, named.name if named else None).asked[ability]
    alternatives = min(asking.alternatives, abilities.most.get(annotator.role, asking.alternatives))
    held = annotator.role in abilities.schemas
    return replace(annotator, reading=asking.reading, alternatives=alternatives, held=held)


async def _ability(student: Student, corpus: Corpus, role: str, example: Example, max_tokens: int) -> _Found:
    provider = student.provider_of(role)
    closed = corpus.task.labels(example) is not None
    for ability in _BEST_FIRST:
        if (ability == "options" and (provider.option_reader is None or not closed)) or (
            ability != "options" and provider.scored is None
        ):
            continue
        wanted = probing_of(ability).alternatives
        for alternatives in (wanted, *(few for few in _FEWER_ALTERNATIVES if few < wanted)):
            row = await _asked(student, corpus, (role, ability, alternatives), example, max_tokens)
            if row is not None and _shows(row, ability, corpus.task):
                return _Found(ability, alternatives if alternatives < wanted else None)
            if row is None or row.finish != "failed":
                break
    return _Found("text")


async def _asked(
    student: Student, corpus: Corpus, how: tuple[str, Ability, int], example: Example, max_tokens: int
) -> Evidence | None:
    """The row of one question, asked of a role so as to show an ability; None where the provider cannot ask it."""
    role, ability, alternatives = how
    reading = probing_of(ability).reading
    annotator = Annotator(f"probe-{role}", role, 0, reading=reading, alternatives=alternatives)
    questions = questions_of(student, corpus, annotator, (example,), SamplingParams(max_tokens, 0.0))
    try:
        rows = await ask(replace(student, max_failed_share=1.0), corpus.task, questions, stage="probe")
    except MissingAbilityError:
        return None
    return rows[0] if rows else None


async def _held(student: Student, corpus: Corpus, role: str, example: Example, max_tokens: int) -> bool:
    """Whether the role's server takes the task's JSON schema and answers by it."""
    annotator = Annotator(f"probe-schema-{role}", role, 0, reading="votes", temperature=0.0, held=True)
    questions = questions_of(student, corpus, annotator, (example,), SamplingParams(max_tokens, 0.0))
    try:
        rows = await ask(replace(student, max_failed_share=1.0), corpus.task, questions, stage="probe")
    except MissingAbilityError:
        return False
    return bool(rows) and rows[0].answer is not None


def _shows(row: Evidence, ability: Ability, task: Task) -> bool:
    if row.finish == "failed":
        return False
    if ability == "options":
        # Letters are single tokens, so a missing one is merely improbable; a missing word may be two tokens.
        return row.option_probs is not None and (task.lettered or row.failure is None)
    if ability == "alternatives" and task.closed:
        return row.option_probs is not None
    return row.answer_logprob is not None
