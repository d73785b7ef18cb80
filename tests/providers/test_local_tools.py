"""Calls of tools: read from any text piece by piece, and held to the schema in the form of the model's template."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from local_samples import CHAT_TEMPLATE, LLAMA_TOOLS_TEMPLATE, QWEN_TOOLS_TEMPLATE, make_tiny_model
from transformers import AutoTokenizer

from semievol_providers.local.chat_tokens import ChatTokens
from semievol_providers.local.engine import Engine
from semievol_providers.local.requests import EngineSettings, GenerateRequest
from semievol_providers.local.tool_calls import (
    HERMES,
    LLAMA,
    CallForm,
    CallReader,
    Function,
    Pieces,
    ToolOffer,
    ToolsError,
    call_form,
    calls_in,
)

pytest_plugins = ("local_fixtures",)
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rom\u00e9 \"}"]}, "days": {"$ref": "#/$defs/days"}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
}  # fmt: skip
NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
SCHEMAS = {"weather": WEATHER, "now": NOTHING}
FUNCTIONS = tuple(Function(name, json.dumps(schema)) for name, schema in SCHEMAS.items())


def _tokens(folder: Path) -> ChatTokens:
    return ChatTokens(AutoTokenizer.from_pretrained(folder))


def test_the_form_is_read_from_what_the_template_makes_of_a_call(tools_model: Path) -> None:
    marked = replace(HERMES, tokens=("<tool_call>", "</tool_call>"))
    assert call_form(_tokens(tools_model)) == {"llama": LLAMA, "qwen": marked}[tools_model.name]


def test_the_form_is_also_read_from_what_a_template_tells_the_model_to_write(tiny_model: Path) -> None:
    tokens = _tokens(tiny_model)
    tokens.tokenizer.chat_template = (  # as Hermes' does, with earlier calls in another order
        "{% for t in tools or [] %}{{ t.function.name + t.function.description + (t | tojson) }} Write calls so:\n"
        '<tool_call>\n{"name": <function-name>, "arguments": <args-dict>}\n</tool_call>{% endfor %}'
        "{% for m in messages %}{{ '<|start|>' + m.role + m.content }}{% for c in m.tool_calls or [] %}"
        """{{ '<tool_call>\n{ "arguments": ' + (c.function.arguments | tojson) + ', "name": "' + c.function.name }}"""
        "{% endfor %}{% endfor %}"
    )
    assert call_form(tokens) == HERMES


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (
            LLAMA_TOOLS_TEMPLATE.replace('{"name": "\' + call', '<|call|>[{"name": "\' + call'),
            "a form that this server does not know",
        ),
        (CHAT_TEMPLATE, "shows no tools"),
        (QWEN_TOOLS_TEMPLATE.replace("tool_call>", "invoke>"), "a form that this server does not know"),
        ("{{ raise_exception('no') if tools }}{{ messages[0].content }}", "takes no tools"),
    ],
)
def test_a_template_without_tools_or_with_another_form_has_none(
    tiny_model: Path, tmp_path: Path, template: str, why: str
) -> None:
    tokens = _tokens(tiny_model)
    tokens.tokenizer.chat_template = template
    with pytest.raises(ToolsError, match=why):
        call_form(tokens)


def test_a_marker_that_is_a_special_token_is_no_form_since_answers_are_text(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "m", QWEN_TOOLS_TEMPLATE)
    tokens = _tokens(tmp_path / "m")
    assert call_form(tokens).before == HERMES.before
    tokens.tokenizer.add_special_tokens({"additional_special_tokens": ["<tool_call>"]})
    with pytest.raises(ToolsError, match="does not know"):
        call_form(tokens)


@pytest.mark.parametrize("family", ["llama", "qwen", "spelled"])
@pytest.mark.parametrize(
    ("choice", "named", "parallel"),
    [("required", None, True), ("required", None, False), ("required", "weather", True), ("auto", None, True)],
)
def test_every_answer_of_a_random_model_is_a_call_that_the_schema_allows(
    tools_engines: dict[str, Engine], family: str, choice: Any, named: str | None, parallel: bool
) -> None:
    engine = tools_engines[family]
    form = call_form(engine.tokens)
    prompt = engine.tokens.encode_chat([{"role": "user", "content": "How is the weather?"}])
    grammar = form.grammar(ToolOffer(FUNCTIONS, choice, named, parallel))
    asked = GenerateRequest(prompt_ids=prompt, max_tokens=400, seed=1, n=12, temperature=1.5, grammar=grammar)
    seen = set[str]()
    for sample in engine.generate(asked).result(timeout=120).samples:
        reader = CallReader(form)
        calls = calls_in(reader.feed(sample.text, last=True))
        if choice == "required" and sample.finish == "stop":
            assert reader.called
            assert len(calls) == 1 or (form.several and parallel and named is None)
        for name, arguments in calls if sample.finish == "stop" else calls[:-1]:
            Draft202012Validator(SCHEMAS[name]).validate(json.loads(arguments))
            seen.add(name)
    if choice == "required":
        assert seen == ({named} if named else {"weather", "now"})


def test_beside_auto_a_text_may_hold_anything_but_the_beginning_of_a_call(tools_engines: dict[str, Engine]) -> None:
    from llguidance import LLMatcher
    from llguidance.hf import from_tokenizer

    for engine in tools_engines.values():
        form = call_form(engine.tokens)
        tokenizer: Any = engine.tokens.tokenizer
        known = from_tokenizer(tokenizer, n_vocab=len(tokenizer))
        call, other = form.written("now", {}), form.written("other", {})
        allowed = ["", "Hello.", '{"label": "A"}', '{"name": 3}', "{", call]
        refused = [other, call + "x", form.written("weather", {"city": "Paris", "days": 1}), call[:-1]]
        several = [f"{call}\n{call}", f"Sure.\n{call}"]
        for text in (*allowed, *refused, *several):
            matcher = LLMatcher(known, form.grammar(ToolOffer(FUNCTIONS)))
            ids = tokenizer.encode(text, add_special_tokens=False)
            taken = matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()
            expected = text in allowed or (text in several and (form.several or text.startswith("Sure")))
            assert taken == expected, (form, text)
        if form.tokens:  # spelled letter by letter, it would be read as a call that nothing holds to a schema
            letters = [tokenizer.encode(char, add_special_tokens=False)[0] for char in other]
            assert LLMatcher(known, form.grammar(ToolOffer(FUNCTIONS))).validate_tokens(letters) < len(letters)


NESTED = {"a": 'quote " and \\ and }', "b": [{"c": {}}], "d": "<tool_call>\n{\"name\": \""}  # fmt: skip


@pytest.mark.parametrize(
    ("form", "text", "said", "calls", "called"),
    [
        (form, *case)
        for form in (HERMES, LLAMA)
        for case in (
            ("Only text.", "Only text.", [], False),
            (" \n", " \n", [], False),
            ("", "", [], False),
            ('{"label": "A"}', '{"label": "A"}', [], False),
            (form.written("f", NESTED), "", [("f", json.dumps(NESTED))], True),
            (form.written("f", {})[:-20], "", [], False)
            if form is LLAMA
            else (form.written("f", {})[:20], form.written("f", {})[:20], [], False),
            (form.head + f'f", "{form.key}": {{"x": 1', "", [("f", '{"x": 1')], False),
        )
    ]
    + [
        (HERMES, f"Sure. \n{HERMES.written('f', {})}\n{HERMES.written('g', {'x': 1})}", "Sure.",
         [("f", "{}"), ("g", '{"x": 1}')], True),
        (HERMES, "Use <tool_call> if", "Use <tool_call> if", [], False),
        (LLAMA, f"Sure. {LLAMA.written('f', {})}", f"Sure. {LLAMA.written('f', {})}", [], False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_are_read_the_same_however_the_text_is_cut(
    form: CallForm, text: str, said: str, calls: list[tuple[str, str]], called: bool, size: int
) -> None:
    reader, found = CallReader(form), Pieces()
    for start in range(0, len(text), size):
        pieces = reader.feed(text[start : start + size])
        found.text += pieces.text
        found.calls += pieces.calls
    pieces = reader.feed("", last=True)
    assert (found.text + pieces.text, calls_in(Pieces("", found.calls + pieces.calls))) == (said, calls)
    assert reader.called == called


@pytest.fixture(scope="module")
def tools_engines(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny model by family; "spelled" is Qwen's form where its markers are no tokens of the vocabulary."""
    engines: dict[str, Engine] = {}
    templates = {"llama": LLAMA_TOOLS_TEMPLATE, "qwen": QWEN_TOOLS_TEMPLATE, "spelled": QWEN_TOOLS_TEMPLATE}
    for name, template in templates.items():
        folder = tmp_path_factory.mktemp("engines") / name
        make_tiny_model(folder, template, context=4096, markers=name == "qwen")
        engines[name] = Engine(str(folder), EngineSettings())
        engines[name].start()
    yield engines
    for engine in engines.values():
        engine.close()
