"""Answers held to a JSON schema: they fit it whatever the model would say, and their scores are the free model's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from semievol_providers.local.constrained import ANY_OBJECT, MOST_SCHEMA_BYTES, SchemaError, check_schema
from semievol_providers.local.engine import Engine
from semievol_providers.local.requests import EngineSettings, Generated, GenerateRequest

pytest_plugins = ("local_fixtures",)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "label": {"enum": ["A", "B"]},
        "sure": {"type": "boolean"},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["x", "y"]}, "maxItems": 2},
    },
    "required": ["label", "sure", "count", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[Engine]:
    made = Engine(str(tiny_model), EngineSettings())
    made.start()
    yield made
    made.close()


def ask(engine: Engine, **settings: Any) -> Generated:
    prompt = engine.tokens.encode_chat([{"role": "user", "content": "Which one?"}])
    fixed = {"prompt_ids": prompt, "max_tokens": 120, "seed": 3, "top_logprobs": 5}
    return engine.generate(GenerateRequest(**fixed | settings)).result(timeout=120)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_every_sample_of_a_random_model_fits_the_schema(engine: Engine, temperature: float) -> None:
    answer = ask(engine, schema=json.dumps(SCHEMA), n=8, temperature=temperature)
    for sample in answer.samples:
        assert sample.finish == "stop"
        Draft202012Validator(SCHEMA).validate(json.loads(sample.text))
    if temperature:
        assert len({sample.text for sample in answer.samples}) > 1


def test_scores_are_those_of_the_model_that_is_held_to_nothing(engine: Engine) -> None:
    free, held = ask(engine, max_tokens=1), ask(engine, max_tokens=1, schema=json.dumps(SCHEMA))
    (one,), (other,) = free.samples, held.samples
    assert other.text == "{" and one.text != "{"
    assert one.top is not None and other.top is not None and other.logprobs is not None
    assert other.top[0] == one.top[0]  # the same bits
    everything = ask(engine, max_tokens=1, top_logprobs=20, schema=json.dumps(SCHEMA)).samples[0]
    assert everything.logprobs == other.logprobs and other.logprobs[0] < 0


def test_a_free_sample_beside_held_ones_has_the_bits_that_it_has_alone(engine: Engine) -> None:
    prompt = engine.tokens.encode_chat([{"role": "user", "content": "Which one?"}])
    free = GenerateRequest(prompt_ids=prompt, max_tokens=40, seed=1, top_logprobs=2)
    alone = engine.generate(free).result(timeout=60)
    held = [
        engine.generate(GenerateRequest(prompt_ids=prompt, max_tokens=40, seed=i, schema=ANY_OBJECT)) for i in range(6)
    ]
    beside = engine.generate(free).result(timeout=60)
    for future in held:
        future.result(timeout=60)
    assert beside == alone


def test_an_object_without_a_schema_is_one_line_of_json(engine: Engine) -> None:
    for sample in ask(engine, schema=ANY_OBJECT, n=12, max_tokens=400).samples:
        if sample.finish == "stop":
            assert isinstance(json.loads(sample.text), dict)
        assert not re.match(r"\s", sample.text) and "\n" not in sample.text


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "objectt"}, "objectt"),
        ({"not": {"type": "string"}}, "not"),
        ({"$ref": "http://elsewhere/schema"}, "elsewhere"),
        ({"enum": ["x" * MOST_SCHEMA_BYTES]}, "bytes"),
    ],
)
def test_a_schema_that_cannot_be_held_to_is_refused_with_the_reason(schema: dict[str, Any], why: str) -> None:
    with pytest.raises(SchemaError, match=why):
        check_schema(json.dumps(schema))
