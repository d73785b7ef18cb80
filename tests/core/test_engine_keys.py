"""The journal's key: everything that can change an answer is in it, and nothing else."""

from __future__ import annotations

import dataclasses

import pytest
from engine_fakes import FakeServer
from hypothesis import given
from hypothesis import strategies as st

from semievol_api.capabilities import ChatRequest, EmbedRequest, OptionReply, OptionRequest
from semievol_api.engine.journal import Found
from semievol_api.engine.requests import ChatKind, EmbedKind, OptionKind
from semievol_api.records import Message, Prompt, Usage

SERVER = FakeServer()
CHAT = ChatKind(SERVER.complete)
BASE = ChatRequest(model="m", prompt=Prompt((Message("user", "Why?"),)), max_tokens=5)
CHANGES: dict[str, object] = {
    "model": "ft:m:warm",
    "prompt": Prompt((Message("user", "Why"), Message("user", "?"))),
    "max_tokens": 6,
    "temperature": 0.5,
    "top_p": 0.9,
    "seed": 0,
    "stop": ("\n",),
    "logprobs": True,
    "top_logprobs": 3,
    "schema": '{"type": "object"}',
}


def test_every_field_of_a_chat_request_but_its_place_changes_the_key() -> None:
    fields = {field.name for field in dataclasses.fields(ChatRequest)}
    assert fields == {*CHANGES, "n", "first_sample"}, "a new field must enter the key"
    changed = {name: CHAT.key("e", dataclasses.replace(BASE, **{name: value})) for name, value in CHANGES.items()}  # type: ignore[arg-type]
    keys = [CHAT.key("e", BASE), CHAT.key("elsewhere", BASE), *changed.values()]
    assert len(set(keys)) == len(keys)
    assert CHAT.key("e", dataclasses.replace(BASE, n=9, first_sample=3)) == CHAT.key("e", BASE)


def test_prefill_roles_tools_and_calls_are_part_of_the_key() -> None:
    prompts = [
        Prompt((Message("user", "Why?"),), prefill="Answer:"),
        Prompt((Message("user", "Why?"),), prefill=""),
        Prompt((Message("system", "Why?"),)),
        Prompt((Message("user", "Why?", '{"name": "Ada"}'),)),
        Prompt((Message("user", "Why?"),), tools="[1]"),
    ]
    keys = {CHAT.key("e", dataclasses.replace(BASE, prompt=prompt)) for prompt in prompts}
    assert len(keys | {CHAT.key("e", BASE)}) == 6


def test_whole_numbers_and_floats_of_the_same_value_share_a_key() -> None:
    assert CHAT.key("e", dataclasses.replace(BASE, temperature=1)) == CHAT.key("e", BASE)


def test_kinds_do_not_share_keys() -> None:
    prompt = Prompt((Message("user", "Why?"),))
    options = OptionKind(SERVER.read)
    keys = {
        options.key("e", OptionRequest(model="m", prompt=prompt, labels=("A", "B"))),
        options.key("e", OptionRequest(model="m", prompt=prompt, labels=("AB",))),
        EmbedKind(SERVER.embed, 3).key("e", EmbedRequest(model="m", texts=("Why?",))),
        CHAT.key("e", BASE),
    }
    assert len(keys) == 4


@pytest.mark.parametrize("others", [(), (-2.5, -3.0)])
def test_an_option_reading_comes_back_with_all_that_was_shown(others: tuple[float, ...]) -> None:
    options = OptionKind(SERVER.read)
    (content,) = options.contents(OptionReply(logprobs=(-0.5, None), usage=Usage(3, 1), others=others))
    assert (content.extra is None) is (others == ())
    back = options.build([Found(0, 3, 0, 1, content)])
    assert (back.logprobs, back.others, back.usage.prompt) == ((-0.5, None), others, 3)


def test_the_key_of_a_text_does_not_depend_on_the_batch_size() -> None:
    request = EmbedRequest(model="m", texts=("Why?",))
    assert EmbedKind(SERVER.embed, 3).key("e", request) == EmbedKind(SERVER.embed, 64).key("e", request)


def test_the_key_format_does_not_change_by_accident() -> None:
    assert CHAT.key("http://host/v1", BASE).hex() == "3289870acbeb90bd27b82800c767da4e2996fa4b"


@given(st.lists(st.text(), min_size=1, max_size=3), st.lists(st.text(), min_size=1, max_size=3))
def test_different_turns_have_different_keys(one: list[str], other: list[str]) -> None:
    def key(texts: list[str]) -> bytes:
        turns = tuple(Message("user", text) for text in texts)
        return CHAT.key("e", dataclasses.replace(BASE, prompt=Prompt(turns)))

    assert (key(one) == key(other)) == (one == other)


@pytest.mark.parametrize("text", ["plain", "Ärger 漢字 🎉"])
def test_size_bounds_the_tokens_of_a_byte_level_tokenizer(text: str) -> None:
    request = dataclasses.replace(BASE, prompt=Prompt((Message("user", text),)), n=3)
    prompt_bytes, answer_tokens = CHAT.size(request)
    assert prompt_bytes >= len(text.encode())
    assert answer_tokens == 15
