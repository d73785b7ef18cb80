"""What can be known of a config and its data before anything is sent: facts, and what will be left out or is odd.

    found = check_run(config)

Knows nothing of the terminal.
"""

from __future__ import annotations

import datetime
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from semievol_api.config.settings import Config
from semievol_api.data import RawData, clean, read_data
from semievol_api.data.schemas import chunked_examples
from semievol_api.notebook import html_facts
from semievol_api.planning.catalogue import utc_day
from semievol_api.session import Plan, check, check_data, trains
from semievol_api.training.cost import refuse_unpriced

_NAMED_AT_MOST = 5
_ALIKE = 20
"""Questions from which it is told what all begin with: a row is named by what follows."""


@dataclass(frozen=True, repr=False)
class CheckedConfig:
    """A config that can be run: what `semievol_api.check` returns.

    Attributes
    ----------
    facts : Mapping of str to object
        The task's name, the numbers of labelled, unlabelled and test rows, the student and the trainer.
    notices : tuple of str
        What is worth knowing before a run: ends of models, rows that will be left out, labels that nothing teaches.

    Examples
    --------
    >>> checked = semievol_api.check("semievol.toml")
    >>> checked.facts["labelled"], checked.facts["unlabelled"]
    (120, 60)
    """

    facts: Mapping[str, object]
    notices: tuple[str, ...]

    def __repr__(self) -> str:
        rows = ", ".join(f"{self.facts[part]} {part}" for part in ("labelled", "unlabelled", "test"))
        return f"CheckedConfig({self.facts['task']}: {rows} rows; {len(self.notices)} notices)"

    def _repr_html_(self) -> str:
        """Facts and notices as a notebook shows them."""
        return html_facts("The config is valid", self.facts, self.notices)


def check_run(config: Config, today: datetime.date | None = None) -> CheckedConfig:
    """Check a config, its data and its providers' tables, with no network.

    Raises:
        UserError: something needs mending.
    """
    plan = check(config, today=today)
    raw = read_data(config.data, plan.task)
    check_data(plan, raw)
    refuse_unpriced(config, plan.provider, plan.trainer_ref if trains(config) else None)
    facts = {
        "task": plan.task.name,
        "labelled": len(raw.labeled),
        "unlabelled": len(raw.unlabeled),
        "test": len(raw.test),
        "student": f"{config.roles.student.model} at {config.roles.student.provider}",
        "trainer": f"{plan.trainer_ref.model} at {plan.trainer_ref.provider}",
    }
    notices = (*plan.notices, *_stale(plan, today), *raw.remarks, *_left_out(config, raw), *_unbalanced(plan, raw))
    return CheckedConfig(facts, notices)


def _stale(plan: Plan, today: datetime.date | None) -> list[str]:
    """One line where what is known of the roles' models was read long ago."""
    known = [plan.catalogue.facts(provider.vendor, model) for provider, model in plan.role_models]
    line = plan.catalogue.stale([facts for facts in known if facts is not None], today or utc_day())
    return [line] if line else []


def _left_out(config: Config, raw: RawData) -> Iterator[str]:
    """What the run's cleaning will drop; a large file is cleaned by the run alone."""
    if chunked_examples(raw.unlabeled).content:
        return
    held_out = (*raw.test, *raw.development)
    report = clean(raw.labeled, raw.unlabeled, held_out, near=config.data.near_duplicates).report
    words = {
        "in test": "have the question of a test row",
        "in labeled": "have the question of a labelled row",
        "duplicate": "repeat an earlier row",
        "conflicting answers": "have the same question and different answers",
    }
    some = [row.question for row in (*raw.labeled[:_ALIKE], *raw.unlabeled[:_ALIKE])]
    same = len(list(itertools.takewhile(lambda signs: len(set(signs)) == 1, zip(*some, strict=False))))
    for (part, reason), count in Counter((row.part, row.reason) for row in report.dropped).items():
        example = next(row for row in report.dropped if (row.part, row.reason) == (part, reason))
        named = example.question[same:][:60]
        yield f"{count} of the {part} rows {words[reason]}, and will be left out, such as: {named!r}."


def _unbalanced(plan: Plan, raw: RawData) -> Iterator[str]:
    """Labels without a labelled row."""
    seen = {example.answer for example in raw.labeled}
    if len(seen) == 1 and len(raw.labeled) > 1:
        yield f"All labelled rows have the same answer, {next(iter(seen))!r}: a model cannot learn any other."
    missing = [label for label in plan.task.definition.labels if label not in seen]
    if missing and plan.task.fixed_labels:
        named = ", ".join(map(repr, missing[:_NAMED_AT_MOST])) + (", ..." if len(missing) > _NAMED_AT_MOST else "")
        yield f"{len(missing)} of the {len(plan.task.definition.labels)} labels have no labelled row: {named}."
