"""Reading the distribution over answer labels, by prefill and by position."""

from __future__ import annotations

import math

import pytest

from semievol_api.capabilities import OptionReply, OptionRequest, ProviderSettings
from semievol_api.records import Message, Prompt
from semievol_providers.openai import connect
from semievol_providers.openai.chat import Alternative, TokenWithAlternatives
from semievol_providers.openai.option_reader import label_logprob, label_place, other_logprobs
from tests.providers.openai_loopback import LoopbackServer

MESSAGES = (Message("user", "Which?"),)
REQUEST = OptionRequest(model="tiny", prompt=Prompt(MESSAGES, "Answer:"), labels=("A", "B", "C", "D"))
B = round(math.log(math.exp(-0.5) + math.exp(-3.0)), 9)


def _rounded(reply: OptionReply) -> list[float | None]:
    return [None if value is None else round(value, 9) for value in reply.logprobs]


async def _read(server: LoopbackServer, request: OptionRequest, **options: object) -> OptionReply:
    table = {"base_url": server.base_url, "api_key_env": "", **options}
    provider = connect(ProviderSettings(name="openai", options=table, environ={}))
    assert provider.option_reader is not None
    reply = await provider.option_reader.read(request)
    await provider.aclose()
    return reply


async def test_a_prefill_costs_one_token_and_asks_for_twenty_alternatives() -> None:
    async with LoopbackServer() as server:
        reply = await _read(server, REQUEST)
    (asked,) = server.requests
    assert asked.body["messages"][-1] == {"role": "assistant", "content": "Answer:"}
    assert asked.body["continue_final_message"] is True and asked.body["add_generation_prompt"] is False
    assert (asked.body["max_tokens"], asked.body["top_logprobs"], asked.body["logprobs"]) == (1, 20, True)
    assert _rounded(reply) == [-1.5, B, None, None]
    assert (reply.usage.prompt, reply.usage.completion) == (7, 1)


async def test_a_position_is_read_from_a_short_answer_without_a_prefill() -> None:
    async with LoopbackServer() as server:
        reply = await _read(server, REQUEST, option_read="position")
    (asked,) = server.requests
    assert asked.body["messages"] == [{"role": "user", "content": "Which?"}]
    assert asked.body["temperature"] == 0.0
    assert "continue_final_message" not in asked.body
    assert _rounded(reply) == [-1.5, B, None, None]


async def test_a_prompt_without_a_prefill_is_read_by_position() -> None:
    async with LoopbackServer() as server:
        reply = await _read(server, OptionRequest(model="tiny", prompt=Prompt(MESSAGES), labels=("A", "B")))
    assert "continue_final_message" not in server.requests[0].body
    assert _rounded(reply) == [-1.5, B]


async def test_fewer_alternatives_leave_labels_unread() -> None:
    async with LoopbackServer() as server:
        reply = await _read(server, REQUEST, top_logprobs=1)
    assert reply.logprobs == (None, -0.5, None, None)


def _entries(*tokens: str) -> list[TokenWithAlternatives]:
    return [TokenWithAlternatives(token, -0.1) for token in tokens]


@pytest.mark.parametrize(
    ("tokens", "prefill", "place"),
    [
        (("Answer", ":", " B"), "Answer:", 2),
        (("Answer", ":", " ", "B"), "Answer: ", 3),
        (("The", " answer", ".", " Answer", ":", "\n", "D"), "Answer:", 6),
        (("Answer: ", "C"), "Answer:", 1),
        (("I", " pick", " C"), "Answer:", 2),
        (("**", "Answer", ":", "**", " B"), "Answer:", 4),
        (("Answer", ":", " (", "B", ")"), "Answer:", 3),
        (("Answer", ":", " A", "\n", "Answer", ":", " C"), "Answer:", 6),
        (("Answer", ":", " Yes"), "Answer:", 2),
        ((" B",), None, 0),
        (("No", " idea"), "Answer:", None),
        (("Answer", ":"), "Answer:", None),
        ((), "Answer:", None),
    ],
)
def test_the_label_stands_after_the_prefills_words_or_is_the_first_label(
    tokens: tuple[str, ...], prefill: str | None, place: int | None
) -> None:
    request = OptionRequest(model="m", prompt=Prompt(MESSAGES, prefill), labels=("A", "B", "C", "D"))
    assert label_place(_entries(*tokens), request) == place


def test_the_spellings_of_a_label_are_added_up_and_the_chosen_token_counts_once() -> None:
    entry = TokenWithAlternatives(
        " B", -0.5, [Alternative(" B", -0.5), Alternative("B", -3.0), Alternative("BB", -1.0)]
    )
    assert label_logprob("B", entry) == pytest.approx(B)


def test_unscored_tokens_and_missing_places_are_unread() -> None:
    assert label_logprob("B", TokenWithAlternatives("A", -0.1, [Alternative("B", -9999.0)])) is None
    assert label_logprob("B", TokenWithAlternatives("A", -0.1, [Alternative("B", None)])) is None
    assert label_logprob("B", None) is None


def test_what_else_was_shown_is_told_where_a_label_is_missing() -> None:
    entry = TokenWithAlternatives(
        " B", -0.5, [Alternative(" B", -0.5), Alternative("The", -2.0), Alternative("x", -9999.0)]
    )
    assert other_logprobs(("A", "B"), entry) == (-2.0,)
    assert other_logprobs(("A", "B"), None) == ()


async def test_others_come_with_a_reply_that_lacks_a_label_only() -> None:
    async with LoopbackServer() as server:
        whole = await _read(server, OptionRequest(model="tiny", prompt=REQUEST.prompt, labels=("A", "B")))
        part = await _read(server, OptionRequest(model="tiny", prompt=REQUEST.prompt, labels=("A", "C")))
    assert None not in whole.logprobs and whole.others == ()
    assert part.logprobs[1] is None and len(part.others) >= 1
