"""JSON answers and sets of labels: read, compared, taken apart and put together; confidence field by field."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semievol_api.annotate.replies import field_probs
from semievol_api.config.settings import parse_settings
from semievol_api.errors import ConfigError
from semievol_api.evaluation.fields import field_scores
from semievol_api.records import Completion, Example
from semievol_api.tasks import Task, TaskDefinition
from semievol_api.tasks.kind_json import field_rules
from semievol_api.tasks.task import ABSENT

ITEM = Example(id="q", question="A table for four on Monday")


def task_of(kind: str, **more: object) -> Task:
    tree = {"name": "t", "kind": kind, "instruction": "I."} | more
    return Task(parse_settings(TaskDefinition, tree, where="task.toml"))


BOOKING = task_of("json", json={"fields": {"date": "text", "people": "number", "tags": "set", "at.city": "exact"}})
TOPICS = task_of("label_set", labels=["delivery", "price", "price high"])


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('Answer: {"people": 4, "date": "Mon"}', '{"date": "Mon", "people": 4}'),
        ('```json\n{"date": "Mon",\n "people": 4}\n```', '{"date": "Mon", "people": 4}'),
        ('{"date": "Mon", "people": null, "tags": []}', '{"date": "Mon"}'),
        ('Perhaps {"date": "Sun"}?\nAnswer: {"date": "Mon"}', '{"date": "Mon"}'),
        ('{"at": {"city": "Bern"}, "zone": 1}', '{"at": {"city": "Bern"}, "zone": 1}'),
        ('{"date": "**a** _b_ `c`"}', '{"date": "**a** _b_ `c`"}'),
        ('{"date": "Mon"} or {"date": "Sun"}', None),
        ('{"date": "Mon"', None),
        ("nothing", None),
        ("{}", "{}"),
    ],
)
def test_the_object_that_a_response_offers_is_read_in_the_order_of_the_fields(text: str, answer: str | None) -> None:
    assert BOOKING.parse(text, ITEM) == answer


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        ({"date": "mon."}, {"date": "Mon"}, True),
        ({"people": "4"}, {"people": 4}, True),
        ({"people": 4.5}, {"people": 4}, False),
        ({"tags": ["b", "a", "a"]}, {"tags": ["A", "b"]}, True),
        ({"at": {"city": "bern"}}, {"at": {"city": "Bern"}}, False),
        ({"date": "Mon"}, {"date": "Mon", "people": 4}, False),
        ({"date": "Mon", "zone": 1}, {"date": "Mon"}, False),
    ],
)
def test_each_field_is_compared_by_its_own_rule_and_all_must_be_right(answer: object, gold: object, same: bool) -> None:
    assert BOOKING.equal(json.dumps(answer), json.dumps(gold)) is same


_VALUES = st.one_of(st.text(max_size=8), st.integers(), st.booleans(), st.lists(st.text(max_size=4), max_size=3))

_NAMES = st.text("ab.\\", max_size=4)


@given(st.dictionaries(_NAMES, st.one_of(_VALUES, st.dictionaries(_NAMES, _VALUES, min_size=1)), max_size=4))
def test_an_object_taken_apart_and_put_together_is_the_same(value: dict[str, object]) -> None:
    gold = BOOKING.read_gold(json.dumps(value), ITEM)
    assert gold is not None and BOOKING.joined(BOOKING.parts(gold)) == gold
    assert BOOKING.parse(BOOKING.target(ITEM, gold), ITEM) == gold
    assert json.loads(gold) == _filled(value)


def _filled(value: dict[str, object]) -> dict[str, object]:
    """Without what says nothing."""
    inner = {name: _filled(v) if isinstance(v, dict) else v for name, v in value.items()}
    return {name: v for name, v in inner.items() if v not in ("", [], {})}


def test_fields_and_their_rules_are_told_from_labelled_rows() -> None:
    rows = [{"a": "x", "b": 1, "c": [1], "d": {"e": True}}, {"a": "y", "b": "two", "c": None}]
    assert field_rules(rows) == {"a": "text", "b": "exact", "c": "set", "d.e": "exact"}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: price | delivery", "delivery | price"),
        ('["price", "delivery"]', "delivery | price"),
        ("Answer: Price High", "price high"),
        ("price high|price", "price | price high"),
        ("none", "none"),
        ("Answer: price | weather", None),
        ("Answer: not price", None),
        ("", None),
    ],
)
def test_a_set_of_labels_is_read_in_the_tasks_order_or_not_at_all(text: str, answer: str | None) -> None:
    assert TOPICS.parse(text, ITEM) == answer


@given(st.sets(st.sampled_from(["delivery", "price", "price high"])), st.sampled_from([" | ", ";", ", ", "json"]))
def test_every_set_is_read_back_as_it_was_written(chosen: set[str], separator: str) -> None:
    task = task_of("label_set", labels=["delivery", "price", "price high"], label_set={"separator": separator})
    gold = task.joined(dict.fromkeys(chosen, "yes"))
    assert task.read_gold(gold, ITEM) == gold == task.parse(task.target(ITEM, gold), ITEM)
    assert set(task.parts(gold)) == chosen


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"kind": "json"}, "names its fields under"),
        ({"kind": "json", "json": {"fields": {"a": "fuzzy"}}}, "json.fields.a"),
        ({"kind": "json", "json": {"feilds": {}}}, "fields"),
        ({"kind": "label_set", "labels": ["a|b", "c"]}, "holds the separator"),
        ({"kind": "label_set", "labels": ["none", "c"]}, "also says that no label fits"),
        ({"kind": "label_set"}, "at least one label"),
        ({"kind": "labels", "labels": ["a", "b"], "instruction": ""}, "instruction is empty"),
        ({"kind": "multiple_choice", "columns": {"messages": "messages"}}, "no lettered options"),
        ({"kind": "free_text", "system": "S.", "columns": {"messages": "m"}}, "remove the key 'system'"),
    ],
)
def test_a_task_file_that_does_not_fit_its_kind_is_refused(tree: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task_of(**({"kind": ""} | tree))


def test_each_field_has_the_probability_of_its_own_tokens_and_an_absent_one_that_of_those_between() -> None:
    tokens = ("Answer:", " {", '"date', '": "', "Mon", '"', ", ", '"people": ', "4", "}")
    probs = np.array([1, 0.9, 1, 1, 0.5, 1, 0.8, 1, 0.7, 0.6], dtype=np.float32)
    found = field_probs(BOOKING, Completion("".join(tokens), "stop", np.log(probs), tokens))
    assert found == pytest.approx((0.5, 0.7, 0.9 * 0.8 * 0.6, 0.9 * 0.8 * 0.6))


def test_a_label_inside_a_longer_one_is_absent() -> None:
    tokens = ("Answer: ", "price high", " | ", "delivery")
    probs = np.array([1, 0.9, 0.8, 0.5], dtype=np.float32)
    found = field_probs(TOPICS, Completion("".join(tokens), "stop", np.log(probs), tokens))
    assert found == pytest.approx((0.5, 0.8, 0.9))


def test_without_tokens_or_log_probabilities_no_field_has_a_probability() -> None:
    assert field_probs(BOOKING, Completion('{"date": "Mon"}', "stop")) is None


def test_micro_f1_counts_fields_and_macro_f1_is_the_mean_over_them() -> None:
    gold = ['{"date": "Mon", "people": 4}', '{"date": "Sun"}', "{}"]
    found = field_scores(BOOKING, ['{"date": "mon", "people": 5}', None, '{"people": 2}'], gold)
    assert found.micro_f1 == pytest.approx(2 * 1 / (2 * 1 + 2 + 2))
    assert found.by_field == pytest.approx({"date": 2 / 3, "people": 0.0})
    assert found.macro_f1 == pytest.approx(1 / 3)
    assert 0 <= found.low <= found.micro_f1 <= found.high <= 1


def test_an_absent_value_is_the_same_as_itself_alone() -> None:
    assert BOOKING.same("date", ABSENT, ABSENT) and not BOOKING.same("date", ABSENT, '"x"')


def test_the_schema_of_a_conversations_reply_allows_any_of_the_fields_and_no_others() -> None:
    task = task_of("json", json={"fields": {"date": "text", "at.city": "exact"}}, columns={"messages": "messages"})
    schema = json.loads(task.schema)
    assert schema["properties"]["date"] == {"type": ["string"]} and schema["additionalProperties"] is False
    assert set(schema["properties"]["at"]["properties"]) == {"city"}
    assert BOOKING.schema == "", "a reply that begins with Answer: is no JSON"
