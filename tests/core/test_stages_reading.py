"""From replies to evidence: permutations are undone, log-probabilities are read where the answer stands."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from semievol_api.annotate.estimators import verbal_probability
from semievol_api.annotate.replies import UNSEEN, Question, answer_logprob, rows_of_chat, rows_of_reads
from semievol_api.annotate.requests import reworded
from semievol_api.capabilities import ChatRequest, OptionReply, Reply
from semievol_api.engine import Answer
from semievol_api.records import Completion, Example, Message, Prompt, Usage
from semievol_api.tasks import Task, TaskDefinition

EXAMPLE = Example(id="q1", question="Which?", options=("red", "green", "blue"))
TASK = Task(TaskDefinition(name="t", kind="multiple_choice", instruction="Which colour?"))
PROMPT = Prompt((Message("user", "Which?"),))
LETTERS = ("A", "B", "C")


def question(order: tuple[int, ...] | None = None, *, verbal: bool = False) -> Question:
    request = ChatRequest(model="m", prompt=PROMPT, max_tokens=8)
    read_words = verbal_probability if verbal else None
    return Question(
        EXAMPLE, "a1", PROMPT, request, measure=True, labels=LETTERS, shown=LETTERS, order=order, read_words=read_words
    )


def completion(*tokens: str, lps: tuple[float, ...], top: tuple[tuple[tuple[str, float], ...], ...]) -> Completion:
    return Completion("".join(tokens), "stop", np.array(lps, dtype=np.float32), tokens, top)


def test_an_option_reading_is_put_back_into_the_canonical_order() -> None:
    reply = OptionReply(logprobs=(math.log(0.7), math.log(0.2), math.log(0.1)), usage=Usage(5, 1))
    (row,) = rows_of_reads([(question((2, 0, 1)), Answer("k", reply))])
    assert row.option_probs == pytest.approx((0.2, 0.1, 0.7))
    assert (row.answer, row.text) == ("C", "Answer: C"), "A was shown for the third option"
    assert row.permutation == (2, 0, 1)
    assert row.failure is None


def test_labels_that_were_not_shown_are_named() -> None:
    reply = OptionReply(logprobs=(math.log(0.9), None, math.log(0.05)), usage=Usage())
    (row,) = rows_of_reads([(question((0, 2, 1)), Answer("k", reply))])
    assert row.failure == f"{UNSEEN}: C"
    assert row.option_probs is not None
    assert row.option_probs[2] <= 0.05


def test_a_read_without_any_label_abstains() -> None:
    (row,) = rows_of_reads([(question(), Answer("k", OptionReply(logprobs=(None, None, None), usage=Usage())))])
    assert (row.answer, row.option_probs, row.finish) == (None, None, "stop")


def test_a_failed_request_is_a_row_with_its_reason() -> None:
    (chat,) = rows_of_chat(TASK, question(), Answer("k", None, "it broke"))
    (read,) = rows_of_reads([(question(), Answer("k", None, "it broke"))])
    assert (chat.finish, chat.failure, read.finish, read.failure) == ("failed", "it broke", "failed", "it broke")


def test_alternatives_give_probabilities_and_the_shown_letter_becomes_canonical() -> None:
    top = ((("Answer", 0.0),), ((":", 0.0),), ((" B", math.log(0.6)), (" A", math.log(0.3)), (" C", math.log(0.1))))
    said = completion("Answer", ":", " B", lps=(0.0, 0.0, math.log(0.6)), top=top)
    (row,) = rows_of_chat(TASK, question((2, 0, 1)), Answer("k", Reply(completions=(said,), usage=Usage(9, 3))))
    assert row.answer == "A", "B was shown for the first option"
    assert row.option_probs == pytest.approx((0.6, 0.1, 0.3))
    assert row.answer_logprob == pytest.approx(math.log(0.6), abs=1e-6)
    assert row.usage == Usage(9, 3)


def test_samples_are_rows_of_their_own_and_the_first_pays() -> None:
    replies = Reply(completions=(Completion("Answer: A", "stop"), Completion("Answer: C", "stop")), usage=Usage(4, 6))
    first, second = rows_of_chat(TASK, question(), Answer("k", replies))
    assert [(r.annotator_id, r.answer, r.usage) for r in (first, second)] == [
        ("a1", "A", Usage(4, 6)),
        ("a1#2", "C", Usage()),
    ]


def said_with(tokens: Sequence[str], lps: Sequence[float]) -> float | None:
    return answer_logprob(Completion("".join(tokens), "stop", np.array(lps, dtype=np.float32), tuple(tokens)))


def test_the_answers_log_probability_is_that_of_its_own_tokens() -> None:
    tokens = ("I", " think", ".", "\n", "Answer", ":", " forty", " two", "\n", "Bye")
    lps = (-1.0, -1.0, -1.0, -1.0, -0.5, -0.5, -0.25, -0.125, 0.0, -3.0)
    said = Completion("".join(tokens), "stop", np.array(lps, dtype=np.float32), tokens)
    assert answer_logprob(said) == pytest.approx(-0.375)
    twice = completion("Answer", ":", " A", "\n", "Answer", ":", " B", lps=(-1, -1, -1, -1, -1, -1, -0.25), top=())
    assert answer_logprob(twice) == pytest.approx(-0.25), "the last answer counts"
    assert answer_logprob(Completion("x", "stop")) is None
    assert answer_logprob(Completion("x", "stop", np.array([np.nan], dtype=np.float32))) is None
    assert answer_logprob(Completion("x", "stop", np.array([-9999.0], dtype=np.float32))) is None
    latex = ("\\(", "Answer", ":", " B", "\\)", ".")
    assert said_with(latex, [-5.0, -1.0, -1.0, -0.25, -3.0, -2.0]) == pytest.approx(-0.25), "not what stands around"
    assert said_with(latex, [-9999.0, np.nan, -1.0, -0.25, -3.0, -np.inf]) == pytest.approx(-0.25), "not the answer"
    assert said_with(latex, [-5.0, -1.0, -1.0, -9999.0, -3.0, -2.0]) is None, "the answer itself is unknown"
    several = ("Answer", ":", " Par", "is", ",", " France", "\n", "I", " think")
    assert said_with(several, [-9.0] * 2 + [-0.5, -0.25, -0.125, -0.5] + [-9.0] * 3) == pytest.approx(-1.375)
    assert answer_logprob(Completion("x", "stop", np.array([-1.0, -9999.0], dtype=np.float32))) is None
    whole = Completion("42", "stop", np.array([-0.5, -0.25], dtype=np.float32))
    assert answer_logprob(whole) == pytest.approx(-0.75)


def test_words_of_confidence_become_a_number() -> None:
    reply = Reply(completions=(Completion("Answer: B\nConfidence: very good chance", "stop"),), usage=Usage())
    (row,) = rows_of_chat(TASK, question(verbal=True), Answer("k", reply))
    assert (row.answer, row.verbal) == ("B", 0.8)


def test_a_paraphrase_changes_the_instruction_and_nothing_else() -> None:
    plain = TASK.prompt(EXAMPLE).messages[-1].content
    other = reworded(TASK, "Pick the colour.").prompt(EXAMPLE).messages[-1].content
    assert other == plain.replace("Which colour?", "Pick the colour.")


def test_fixed_labels_are_shown_in_another_order_and_stay_the_same_labels() -> None:
    task = Task(TaskDefinition(name="l", kind="labels", instruction="Which?", labels=("bad", "good", "ugly")))
    shuffled = reworded(task, None, (2, 0, 1))
    assert "Labels: ugly, bad, good" in shuffled.prompt(EXAMPLE).messages[-1].content
    assert task.labels(EXAMPLE) == ("bad", "good", "ugly")
