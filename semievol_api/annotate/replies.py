"""Reads one completion's label distribution: where the answer stands and which label a token means.

Words of several tokens are followed along the tokens that were chosen. Knows nothing of requests, servers or how
prompts are worded, but for the marker before the answer.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from semievol_api.annotate.estimators import mean_nll, ranked
from semievol_api.capabilities import ChatRequest, OptionReply, OptionRequest, Reply
from semievol_api.engine import Answer
from semievol_api.errors import DataError
from semievol_api.records import UNSEEN_LOGPROB, Completion, Evidence, Example, Finish, Prompt, Usage
from semievol_api.selection.label_probabilities import option_prob, undo_permutation
from semievol_api.selection.values import BoolArray, FloatArray, IntArray
from semievol_api.tasks import Task

_TRIM = "\\ \t\r\n\u00a0\u0120\u010a\u2581*_`~\"'()[]{}<>.,:;!?|\u3002\u3001"
"""Around a label: blanks, the blank and newline marks of raw BPE and SentencePiece tokens, markup, punctuation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionReading:
    """The label probabilities of one completion, in the canonical order; `missing` labels were filled in.

    `unresolved` is the probability of tokens that begin several labels and were not followed further.
    """

    probs: tuple[float, ...]
    missing: tuple[int, ...]
    unresolved: float = 0.0


@dataclass(frozen=True, slots=True)
class LabelIndex:
    """Labels by their normalised text; `fold` says whether case is ignored."""

    texts: tuple[str, ...]
    fold: bool

    @classmethod
    def of(cls, labels: Sequence[str]) -> LabelIndex:
        """Ignore case where the labels allow it.

        Raises:
            DataError: two labels are the same but for blanks, markup or punctuation, or one is empty.
        """
        for fold in (True, False):
            texts = tuple(normalise_token(label, fold) for label in labels)
            if len(set(texts)) == len(texts) and "" not in texts:
                return cls(texts, fold)
        raise DataError(
            f"The labels {list(labels)!r} cannot be told apart in an answer. Give every label a text of its own."
        )

    def normal(self, token: str) -> str:
        """The token as labels are compared."""
        return normalise_token(token, self.fold)

    def exact(self, text: str) -> int | None:
        """The label with this normalised text."""
        return self.texts.index(text) if text in self.texts else None

    def longer(self, text: str) -> list[int]:
        """The labels that go on after this normalised text."""
        return [i for i, label in enumerate(self.texts) if label != text and label.startswith(text)]

    def begins(self, text: str) -> bool:
        """Whether a label is or begins with this normalised text."""
        return text != "" and any(label.startswith(text) for label in self.texts)


@dataclass(frozen=True, slots=True)
class _Leaf:
    logprob: float
    label: int


def normalise_token(token: str, fold: bool = True) -> str:
    """A token's text as labels are compared: NFKC, without blanks, markup and punctuation around, lower case.

    ` B`, `B.`, `(B)`, `**B**` and `b` all mean B.
    """
    text = unicodedata.normalize("NFKC", token).strip(_TRIM)
    return text.casefold() if fold else text


def read_options(
    tokens: Sequence[str],
    top: Sequence[Sequence[tuple[str, float]]],
    labels: Sequence[str],
    *,
    permutation: Sequence[int] | None = None,
    prefill: str = "",
    marker: str = "Answer",
) -> OptionReading | None:
    """The label distribution at the answer position of one completion; None (abstain) where no label was seen.

    Args:
        tokens: the completion's token texts.
        top: for each token its alternatives (text, natural log-probability), the chosen one among them.
        labels: what the prompt showed, in the shown order.
        permutation: `permutation[i]` is the canonical index of the label shown at position i.
        prefill: the words that the prompt put into the model's mouth.
        marker: the word that announces the answer, before its colon.

    Raises:
        DataError: two labels cannot be told apart.
    """
    index = LabelIndex.of(labels)
    position = answer_position(tokens, index, prefill=prefill, marker=marker)
    if position is None or position >= len(top):
        return None
    leaves, unresolved = _leaves(tokens[position:], top[position:], index, "")
    return _reading(leaves, unresolved, len(labels), permutation)


def read_replies(
    logprobs: Sequence[Sequence[float | None]],
    permutations: Sequence[Sequence[int] | None],
    others: Sequence[Sequence[float]] = (),
) -> list[OptionReading | None]:
    """The label distributions of exact reads: of each one log-probability per shown label, None = not shown.

    `others` are the log-probabilities shown of tokens that mean no label.
    """
    found: list[OptionReading | None] = [None] * len(logprobs)
    by_width: dict[tuple[int, int], list[int]] = {}
    for place, row in enumerate(logprobs):
        by_width.setdefault((len(row), len(others[place]) if others else 0), []).append(place)
    for (width, more), places in by_width.items():
        if not width:
            continue
        shown = [(*logprobs[i], *others[i]) if more else logprobs[i] for i in places]
        values = np.array(shown, dtype=np.float64)  # None becomes NaN
        labels: IntArray = np.append(np.arange(width, dtype=np.int64), np.full(more, -1, dtype=np.int64))
        label_of: IntArray = np.broadcast_to(labels, values.shape)
        result = option_prob(values, label_of, np.full(len(places), width, dtype=np.int64), width)
        order = label_of[:, :width]
        if any(permutations):
            order = np.array([permutations[i] or range(width) for i in places], dtype=np.int64)
        probs = undo_permutation(result.probs, order).tolist()
        lacking: BoolArray = ~result.seen
        incomplete: list[bool] = np.asarray(lacking.any(axis=1)).tolist()
        for at, place in enumerate(places):
            if probs[at][0] != probs[at][0]:  # nothing was seen
                continue
            missing = tuple(sorted(order[at, np.flatnonzero(lacking[at])].tolist())) if incomplete[at] else ()
            found[place] = OptionReading(probs=tuple(probs[at]), missing=missing)
    return found


def answer_position(
    tokens: Sequence[str], index: LabelIndex, *, prefill: str = "", marker: str = "Answer"
) -> int | None:
    """The position of the first label token after the last `Answer:`.

    A response without the marker has an answer position only if it is a bare label. None where there is none.
    """
    texts = [unicodedata.normalize("NFKC", token) for token in tokens]
    opening = unicodedata.normalize("NFKC", prefill)
    whole = opening + "".join(texts)
    found = list(re.finditer(re.escape(marker) + r"[\s*_]*:", whole, re.IGNORECASE))
    if not found and index.exact(index.normal(whole)) is None:
        return None
    after = found[-1].end() if found else 0
    offset = len(opening)
    for position, text in enumerate(texts):
        end = offset + len(text)
        if end > after and index.begins(index.normal(text[max(0, after - offset) :])):
            return position
        offset = end
    return None


def _leaves(
    tokens: Sequence[str], top: Sequence[Sequence[tuple[str, float]]], index: LabelIndex, prefix: str
) -> tuple[list[_Leaf], float]:
    """Every alternative with the label that it means (-1: none), and the probability that stayed ambiguous."""
    leaves: list[_Leaf] = []
    unresolved = 0.0
    for token, logprob in top[0]:
        label, ambiguous = _meaning(token, prefix, index)
        if ambiguous and token == tokens[0] and len(top) > 1 and logprob > UNSEEN_LOGPROB:
            below, rest = _leaves(tokens[1:], top[1:], index, prefix + token)
            leaves += [_Leaf(leaf.logprob + logprob, leaf.label) for leaf in below]
            unresolved += rest * float(np.exp(logprob))
            continue
        leaves.append(_Leaf(logprob, label))
        if ambiguous and label < 0 and logprob > UNSEEN_LOGPROB:
            unresolved += float(np.exp(logprob))
    return leaves, unresolved


def _meaning(token: str, prefix: str, index: LabelIndex) -> tuple[int, bool]:
    """The label that a token after a prefix means, -1 for none, and whether it may still become another one."""
    so_far = index.exact(index.normal(prefix)) if prefix else None
    if index.normal(token) == "":
        return (-1 if so_far is None else so_far), False
    text = index.normal(prefix + token)
    exact, longer = index.exact(text), index.longer(text)
    if exact is not None:
        return exact, bool(longer)
    if len(longer) == 1:
        return longer[0], False
    if longer:
        return -1, True
    return (-1 if so_far is None else so_far), False


def _reading(
    leaves: Sequence[_Leaf], unresolved: float, options: int, permutation: Sequence[int] | None
) -> OptionReading | None:
    if not leaves:
        return None
    logprobs: FloatArray = np.array([[leaf.logprob for leaf in leaves]], dtype=np.float64)
    label_of: IntArray = np.array([[leaf.label for leaf in leaves]], dtype=np.int64)
    result = option_prob(logprobs, label_of, np.array([options], dtype=np.int64), options)
    if np.isnan(result.probs).any():
        return None
    order = np.array([range(options) if permutation is None else permutation], dtype=np.int64)
    probs = undo_permutation(result.probs, order)[0]
    return OptionReading(
        probs=tuple(probs.tolist()),
        missing=tuple(sorted(order[0, ~result.seen[0]].tolist())),
        unresolved=unresolved,
    )


UNSEEN = "not among the server's alternatives"
"""How the `failure` of an answered row begins, where labels had to be filled in."""
NOTHING_USED = Usage()
_MARKER = re.compile(r"answer[\s*_]*:", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """One row to be asked: the prompt, who asks which role, and which example it is about.

    `labels` are the canonical ones of a closed set, `shown` those that stand in the prompt, in its order;
    `order[i]` is the canonical index of the one at position i. `measure` asks for every measure of confidence.
    `fewer` puts the same question with one demonstration less, the farthest; None where there is none left.
    """

    example: Example
    asker: str
    prompt: Prompt
    request: ChatRequest | OptionRequest
    role: str = ""
    measure: bool = False
    labels: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    order: tuple[int, ...] | None = None
    read_words: Callable[[str], float | None] | None = None
    fewer: Callable[[], Question] | None = None
    dropped_shots: int = 0


def prompt_hash(prompt: Prompt) -> str:
    """A short content hash of what the model was shown."""
    state = hashlib.blake2b(digest_size=8)
    for message in prompt.messages:
        state.update(f"{message.role}\x00{message.content}\x00{message.more}".encode())
    state.update(f"{prompt.prefill or ''}{prompt.tools}".encode())
    return state.hexdigest()


def answer_logprob(completion: Completion) -> float | None:
    """Natural log-probability of the answer: the tokens after the last `Answer:`, up to the end of the line.

    Markup and punctuation around the answer do not count, nor do tokens that the server did not rank (-9999, NaN).
    Without token texts, or without the marker, that of the whole response. None where no token of it is ranked.
    """
    values = completion.token_logprobs
    if values is None:
        return None
    known = ranked(values)
    places = _answer_places(completion.tokens or ())
    if not places and completion.tokens is None and not known.all():
        return None  # the answer may be what was not ranked
    wanted = [place for place in places or range(values.size) if known[place]]
    return float(values[wanted].astype(np.float64).sum()) if wanted else None


def _answer_places(tokens: Sequence[str]) -> list[int]:
    """The places of the answer's tokens; none without a marker or an answer behind it."""
    found = list(_MARKER.finditer("".join(tokens)))
    if not found:
        return []
    start, at, chosen = found[-1].end(), 0, list[int]()
    for place, token in enumerate(tokens):
        begin, at = at, at + len(token)
        if at > start and token[max(0, start - begin) :].strip():
            chosen.append(place)
        if chosen and "\n" in token:
            break
    words = [place for place in chosen if tokens[place].strip(_TRIM)] or chosen
    return [place for place in chosen if words and words[0] <= place <= words[-1]]


def field_probs(task: Task, completion: Completion) -> tuple[float, ...] | None:
    """The probability of each field of an answer, in the task's order; None without tokens or their log-probabilities.

    That of a field that is there is its name's and its value's tokens together; that of one that is not, the tokens
    between and behind the fields, where it could have stood.
    """
    values, tokens = completion.token_logprobs, completion.tokens
    if values is None or tokens is None or len(tokens) != len(values) or not ranked(values).all():
        return None
    text = "".join(tokens)
    spans = task.spans(text)
    ends = np.cumsum([len(token) for token in tokens])
    starts = ends - [len(token) for token in tokens]
    logprobs = values.astype(np.float64)
    outside: BoolArray = ends > max((found.end() for found in _MARKER.finditer(text)), default=0)
    for start, end in spans.values():
        outside &= ~((starts >= start) & (ends <= end))
    absent = math.exp(math.fsum(logprobs[outside]))
    there = {name: (starts < end) & (ends > start) for name, (start, end) in spans.items()}
    return tuple(math.exp(math.fsum(logprobs[there[name]])) if name in there else absent for name in task.fields)


def rows_of_chat(task: Task, question: Question, answer: Answer[Reply]) -> list[Evidence]:
    """A row per sample; later samples get the asker's id with their number."""
    if answer.reply is None or not answer.reply.completions:
        return [_failed(question, answer.failure or "the server sent no completion")]
    usage = answer.reply.usage
    return [
        _row(task, question, completion, number, usage if number == 0 else Usage())
        for number, completion in enumerate(answer.reply.completions)
    ]


def sample_of(asker: str, number: int) -> str:
    """The annotator id of a sample: the asker's own for the first."""
    return asker if number == 0 else f"{asker}#{number + 1}"


def asker_of(annotator_id: str) -> str:
    """The asker of a row, whatever the sample."""
    return annotator_id.partition("#")[0]


def rows_of_reads(reads: Sequence[tuple[Question, Answer[OptionReply]]]) -> list[Evidence]:
    """A row a read: the likeliest label and the whole distribution; labels not shown are named in `failure`."""
    answered = [answer.reply for _, answer in reads if answer.reply is not None]
    orders = [question.order for question, answer in reads if answer.reply is not None]
    shown, others = [reply.logprobs for reply in answered], [reply.others for reply in answered]
    distributions = iter(read_replies(shown, orders, others))
    return [
        _failed(question, answer.failure or "the server sent no distribution")
        if answer.reply is None
        else _row_of_read(question, answer.reply, next(distributions))
        for question, answer in reads
    ]


def _row_of_read(question: Question, reply: OptionReply, found: OptionReading | None) -> Evidence:
    if found is None:
        return _silent(question, f"{UNSEEN}: any label", usage=reply.usage)
    likeliest = question.labels[found.probs.index(max(found.probs))]
    unseen = ", ".join([question.labels[i] for i in found.missing]) if found.missing else ""
    return Evidence(
        example_id=question.example.id,
        annotator_id=question.asker,
        prompt_hash=prompt_hash(question.prompt),
        text=likeliest if question.example.chat else f"Answer: {likeliest}",
        answer=likeliest,
        finish="stop",
        permutation=question.order,
        option_probs=found.probs,
        usage=reply.usage,
        failure=f"{UNSEEN}: {unseen}" if unseen else None,
        dropped_shots=question.dropped_shots,
    )


def _row(task: Task, question: Question, completion: Completion, number: int, usage: Usage) -> Evidence:
    usable = completion.finish == "stop"
    order = question.order if task.lettered else None
    row = Evidence(
        example_id=question.example.id,
        annotator_id=sample_of(question.asker, number),
        prompt_hash=prompt_hash(question.prompt),
        text=completion.text,
        answer=task.parse(completion.text, question.example, order) if usable else None,
        finish=completion.finish,
        permutation=question.order,
        mean_nll=mean_nll(completion.token_logprobs),
        usage=usage,
        dropped_shots=question.dropped_shots,
    )
    if not question.measure:
        return row
    fields = field_probs(task, completion) if task.fields and row.answer is not None else None
    return replace(row, **_measured(question, completion), field_probs=fields)


def _measured(question: Question, completion: Completion) -> dict[str, Any]:
    """What estimators read, as far as the reply holds it."""
    found = None
    if question.labels and completion.tokens is not None and completion.top is not None:
        found = read_options(completion.tokens, completion.top, question.shown, permutation=question.order)
    missing = ", ".join(question.labels[i] for i in found.missing) if found else ""
    return {
        "option_probs": found.probs if found else None,
        "answer_logprob": answer_logprob(completion),
        "verbal": question.read_words(completion.text) if question.read_words else None,
        "failure": f"{UNSEEN}: {missing}" if missing else None,
    }


def _failed(question: Question, reason: str) -> Evidence:
    return _silent(question, reason, finish="failed")


def _silent(question: Question, failure: str, *, usage: Usage = NOTHING_USED, finish: Finish = "stop") -> Evidence:
    """A row without an answer."""
    return Evidence(
        example_id=question.example.id,
        annotator_id=question.asker,
        prompt_hash=prompt_hash(question.prompt),
        text="",
        answer=None,
        finish=finish,
        permutation=question.order,
        usage=usage,
        failure=failure,
        dropped_shots=question.dropped_shots,
    )
