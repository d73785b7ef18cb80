"""Turn episodes into tensors, with the places where the teacher's vectors are to be found.

Knows the prompts' tokens and nothing of models or losses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from benchmarks.demo_model import wording
from benchmarks.demo_model.episodes import Episode
from benchmarks.demo_model.tokenizer import PromptEncoder
from benchmarks.demo_model.topics import TopicSpace


@dataclass(frozen=True)
class Places:
    """Positions in a batch, int64: `rows[i]`, `columns[i]`, and the teacher's vector there, `vectors[i]`."""

    rows: torch.Tensor
    columns: torch.Tensor
    vectors: torch.Tensor


@dataclass(frozen=True)
class PromptBatch:
    """Token ids and mask, shape (episodes, tokens); `reply_start[i]` is where the assistant's reply begins.

    `shown` are the places where a solved example, the question or an option has just been read; `asked` those
    where the prompt ends and the question's meaning is needed.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    reply_start: torch.Tensor
    shown: Places
    asked: Places


class PromptBatcher:
    """Tokenizes episodes and finds the ends of their shots and options."""

    def __init__(self, encoder: PromptEncoder, topics: TopicSpace) -> None:
        self._encoder, self._topics = encoder, topics
        last_lines = (f"\n\n{wording.REPLY_LINE}", "\n\nProposed answers:")
        self._after_question = encoder.token_id("\n\nOptions:")
        self._after_options = {encoder.token_id(phrase) for phrase in last_lines}

    def batch(self, episodes: Sequence[Episode]) -> PromptBatch:
        """The episodes with their replies, padded on the right."""
        prompts = self._encoder.prompts([episode.item for episode in episodes])
        rows = [p + self._encoder.reply(e.letter) for p, e in zip(prompts, episodes, strict=True)]
        ids, mask = self._encoder.pad_right(rows)
        starts = [len(prompt) for prompt in prompts]
        asked = [(i, start - 1) for i, start in enumerate(starts)]
        vectors = self._topics.sentence_vectors[[episode.question for episode in episodes]]
        shown = self._shown(prompts, episodes)
        return PromptBatch(ids, mask, torch.tensor(starts), shown, _places(asked, list(vectors)))

    def _shown(self, prompts: Sequence[list[int]], episodes: Sequence[Episode]) -> Places:
        where: list[tuple[int, int]] = []
        vectors: list[np.ndarray] = []
        for i, (prompt, episode) in enumerate(zip(prompts, episodes, strict=True)):
            shot_ends, option_ends = self._shot_ends(prompt), self._option_ends(prompt)
            if len(shot_ends) != len(episode.shots) or len(option_ends) != len(episode.words):
                raise ValueError(f"the prompt of {episode.kind!r} does not tokenize into its shots and options")
            question_end = _last(prompt, {self._after_question})
            where += [(i, end) for end in (*shot_ends, question_end, *option_ends)]
            vectors += [self._topics.sentence_vectors[s] for s in (*episode.shots, episode.question)]
            vectors += [self._topics.word_vectors[w] for w in episode.words]
        return _places(where, vectors)

    def _shot_ends(self, prompt: list[int]) -> list[int]:
        """Where the letters of the solved examples stand."""
        answer, letters = self._encoder.answer_id, self._encoder.letter_ids
        pairs = enumerate(pairwise(prompt), 1)
        return [i for i, (before, here) in pairs if before == answer and here in letters]

    def _option_ends(self, prompt: list[int]) -> list[int]:
        """The last token of every option: the one before the next option's mark or the last lines."""
        marks = [i for i, token in enumerate(prompt) if token in self._encoder.option_mark_ids]
        end = _last(prompt, self._after_options)
        return [i - 1 for i in [*marks[1:], end]]


def _last(prompt: Sequence[int], tokens: set[int]) -> int:
    return next(i for i in range(len(prompt) - 1, -1, -1) if prompt[i] in tokens)


def _places(where: Sequence[tuple[int, int]], vectors: Sequence[np.ndarray]) -> Places:
    rows, columns = zip(*where, strict=True)
    return Places(torch.tensor(rows), torch.tensor(columns), torch.from_numpy(np.stack(vectors)))
