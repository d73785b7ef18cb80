"""Together's log-probabilities: asked for by a number, answered as lists side by side."""

from __future__ import annotations

import json

import numpy as np
import pytest

from semievol_api.capabilities import ChatRequest, Pace, ProviderSettings
from semievol_api.records import Message, Prompt
from semievol_providers.openai import connect
from semievol_providers.openai.chat import ChatDecoder, chat_body
from semievol_providers.openai.settings import read_connection

PROMPT = Prompt((Message("user", "Which?"),))


def answer(logprobs: object, text: str = "Answer: B") -> bytes:
    """A chat completion as Together's SDK 3.1.1 types it."""
    choice = {"index": 0, "finish_reason": "eos", "message": {"content": text}, "logprobs": logprobs}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 4}}).encode()


FLAT = {"token_ids": [1, 2, 3, 4], "tokens": ["Answer", ":", " B", "</s>"], "token_logprobs": [-0.1, -0.2, -0.3, -0.4]}


@pytest.mark.parametrize("alternatives", [False, True])
def test_the_answers_own_tokens_are_scored_and_the_end_of_turn_is_left_out(alternatives: bool) -> None:
    reply = ChatDecoder().reply(answer(FLAT), Pace(), alternatives=alternatives)
    assert reply is not None
    (completion,) = reply.completions
    assert completion.token_logprobs is not None and np.allclose(completion.token_logprobs, [-0.1, -0.2, -0.3])
    assert completion.top is None, "no alternatives were shown"


def test_alternatives_count_where_there_is_a_table_for_each_token() -> None:
    tables = [{"Answer": -0.1}, {":": -0.2}, {" B": -0.3, " A": -1.5}, None]
    reply = ChatDecoder().reply(answer({**FLAT, "top_logprobs": tables}), Pace(), alternatives=True)
    assert reply is not None and reply.completions[0].top is not None
    assert reply.completions[0].top[2] == ((" B", -0.3), (" A", -1.5))
    positions = ChatDecoder().positions(answer({**FLAT, "top_logprobs": tables}))
    assert positions is not None and [entry.token for entry in positions.entries] == FLAT["tokens"]


def test_one_table_for_a_whole_answer_belongs_to_no_place_unless_there_is_one_token() -> None:
    reply = ChatDecoder().reply(answer({**FLAT, "top_logprobs": {" B": -0.3, " A": -1.5}}), Pace(), alternatives=True)
    assert reply is not None and reply.completions[0].top is None
    single = {"tokens": ["B"], "token_logprobs": [-0.3], "top_logprobs": {"B": -0.3, "A": -1.5}}
    reply = ChatDecoder().reply(answer(single, "B"), Pace(), alternatives=True)
    assert reply is not None and reply.completions[0].top == ((("B", -0.3), ("A", -1.5)),)


@pytest.mark.parametrize("lists", [{"tokens": ["B"]}, {"tokens": ["B"], "token_logprobs": [-0.1, -0.2]}, {}, None])
def test_lists_that_do_not_fit_each_other_say_nothing(lists: object) -> None:
    reply = ChatDecoder().reply(answer(lists, "B"), Pace(), alternatives=True)
    assert reply is not None and reply.completions[0].token_logprobs is None


@pytest.mark.parametrize(("top", "asked"), [(0, 1), (5, 5)])
def test_together_is_asked_by_a_number(top: int, asked: int) -> None:
    settings = ProviderSettings(name="t", options={"vendor": "together", "api_key_env": ""}, environ={})
    request = ChatRequest(model="tiny", prompt=PROMPT, max_tokens=4, logprobs=True, top_logprobs=top)
    body = chat_body(request, read_connection(settings).dialect)
    assert body["logprobs"] == asked and body["logprobs"] is not True and "top_logprobs" not in body
    plain = chat_body(ChatRequest(model="tiny", prompt=PROMPT, max_tokens=4), read_connection(settings).dialect)
    assert "logprobs" not in plain


async def test_together_is_a_provider_with_log_probabilities_that_reads_no_options() -> None:
    provider = connect(ProviderSettings(name="t", options={"vendor": "together", "api_key_env": ""}, environ={}))
    assert provider.scored is not None and provider.option_reader is None and provider.finetuner is None
    await provider.aclose()
