"""The text that pretraining reads: sentences and option words, with nothing of the dev or test questions.

MMLU questions and choices and PubMedQA abstracts. No label, no Subject and no answer key is read. A text
that shares most of its word bigrams with a dev or test question is left out, and the five field names are no
option words. Knows nothing of tokens, vectors or models.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.demo_model.splits import FIELD_NAMES, Bigrams, Row, bigrams, near_duplicates, read_rows

SOURCES = (("mmlu", "labeled"), ("mmlu", "unlabeled"), ("pubmedqa", "labeled"), ("pubmedqa", "unlabeled"))
CHUNK_WORDS, MAX_TEXT_WORDS, MIN_CHUNK_WORDS = 45, 180, 5
MIN_WORD_COUNT, MIN_WORD_LETTERS = 12, 4


@dataclass(frozen=True)
class HeldOut:
    """The dev and test questions as bigrams, indexed for quick look-up."""

    questions: tuple[Bigrams, ...]
    index: dict[tuple[str, str], tuple[int, ...]]

    def resembles(self, text: str) -> bool:
        """Whether the text is a near-duplicate of a dev or test question."""
        grams = bigrams(text)
        candidates = {i for gram in grams for i in self.index.get(gram, ())}
        return any(near_duplicates(grams, self.questions[i]) for i in candidates)


def held_out(rows: Iterable[Row]) -> HeldOut:
    """The index of the questions that pretraining must not see."""
    questions = tuple(bigrams(row.question) for row in rows)
    index: dict[tuple[str, str], list[int]] = {}
    for i, grams in enumerate(questions):
        for gram in sorted(grams):
            index.setdefault(gram, []).append(i)
    return HeldOut(questions, {gram: tuple(where) for gram, where in index.items()})


def read_sentences(data_folder: Path, held: HeldOut) -> tuple[str, ...]:
    """Distinct texts of 5 to 45 words, in file order."""
    found: dict[str, None] = {}
    for dataset, split in SOURCES:
        for row in read_rows(data_folder, dataset, split):
            found.update(dict.fromkeys(_sentences_of(row, with_options=dataset == "mmlu", held=held)))
    return tuple(text for text in found if not held.resembles(text))


def _sentences_of(row: dict[str, str], *, with_options: bool, held: HeldOut) -> Iterator[str]:
    text = re.sub(r"Please answer a question about the following text:|\(Background\)", "", row["question"])
    if held.resembles(text):
        return
    words = text.split()[:MAX_TEXT_WORDS]
    chunks = [words[start : start + CHUNK_WORDS] for start in range(0, len(words), CHUNK_WORDS)]
    if with_options:
        chunks += [str(option).split()[:CHUNK_WORDS] for option in json.loads(row["options"])]
    yield from (" ".join(chunk) for chunk in chunks if len(chunk) >= MIN_CHUNK_WORDS)


def option_words(sentences: Sequence[str], stop_words: frozenset[str]) -> tuple[str, ...]:
    """Frequent lower-case content words in alphabetical order, without the demo's own field names."""
    counts = Counter(word for text in sentences for word in set(text.split()))
    return tuple(
        sorted(word for word, n in counts.items() if n >= MIN_WORD_COUNT and _is_content_word(word, stop_words))
    )


def _is_content_word(word: str, stop_words: frozenset[str]) -> bool:
    plain = word.isalpha() and word.isascii() and word.islower() and len(word) >= MIN_WORD_LETTERS
    return plain and word not in stop_words and word not in FIELD_NAMES
