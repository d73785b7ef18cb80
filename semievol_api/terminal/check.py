"""`semievol check`: a config, its data and its providers' tables, judged before anything is sent.

Also tells what the run will leave out of the data, and labels that nothing teaches. Knows nothing of the network.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections import Counter
from collections.abc import Iterator

from semievol_api.catalogue import utc_day
from semievol_api.config import Config
from semievol_api.data import Pool, RawData, clean, read_data
from semievol_api.session import Plan, check, check_data, trains
from semievol_api.spending import refuse_unpriced
from semievol_api.terminal.bars import out, pairs

NAMED_AT_MOST = 5


def show_check(config: Config, name: str, today: datetime.date | None, *, as_json: bool) -> None:
    """Print what a good config comes to.

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
    notices = [*plan.notices, *_stale(plan, today), *raw.remarks, *_left_out(config, raw), *_unbalanced(plan, raw)]
    if as_json:
        document = {"ok": True, **facts, "notices": notices}
        sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")
        return
    pairs(out(), f"{name} is good", facts)
    for notice in notices:
        out().print(f"! {notice}", markup=False)


def _stale(plan: Plan, today: datetime.date | None) -> list[str]:
    """One line where what is known of the roles' models was read long ago."""
    known = [plan.catalogue.facts(provider.vendor, model) for provider, model in plan.role_models]
    line = plan.catalogue.stale([facts for facts in known if facts is not None], today or utc_day())
    return [line] if line else []


def _left_out(config: Config, raw: RawData) -> Iterator[str]:
    """What the run's cleaning will drop; a pool in parts is cleaned by the run alone."""
    if isinstance(raw.unlabeled, Pool):
        return
    held_out = (*raw.test, *raw.development)
    report = clean(raw.labeled, raw.unlabeled, held_out, near=config.data.near_duplicates).report
    words = {
        "in test": "ask what a test row asks",
        "in labeled": "ask what a labelled row asks",
        "duplicate": "repeat an earlier row",
        "conflicting answers": "ask the same and are answered differently",
    }
    for (part, reason), count in Counter((row.part, row.reason) for row in report.dropped).items():
        example = next(row for row in report.dropped if (row.part, row.reason) == (part, reason))
        yield f"{count} of the {part} rows {words[reason]}, and will be left out; such as: {example.question[:60]!r}."


def _unbalanced(plan: Plan, raw: RawData) -> Iterator[str]:
    """Labels without a labelled row."""
    seen = {example.answer for example in raw.labeled}
    if len(seen) == 1 and len(raw.labeled) > 1:
        yield f"All labelled rows have the same answer, {next(iter(seen))!r}: a model can learn nothing else from them."
    missing = [label for label in plan.task.definition.labels if label not in seen]
    if missing and plan.task.kind == "labels":
        named = ", ".join(map(repr, missing[:NAMED_AT_MOST])) + (", ..." if len(missing) > NAMED_AT_MOST else "")
        yield f"No labelled row teaches {len(missing)} of the {len(plan.task.definition.labels)} labels: {named}."
