"""Draw the prompts of pretraining and the letters that answer them.

Three kinds, each with letters that mean something new in every episode:
    options     no shots: the letter of the option word that fits the question's topic
    shots       the letter that the solved examples on the question's topic carry
    justify     the letter that most proposals name; a tie goes to the one that options or shots support
Knows nothing of tokens, models or the demo's labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.demo_model import wording
from benchmarks.demo_model.topics import TopicSpace

N_OPTIONS = (5, 4, 3)
N_OPTIONS_SHARES = (0.8, 0.1, 0.1)
N_SHOTS = (1, 2, 3, 4)
N_SHOTS_SHARES = (0.2, 0.25, 0.4, 0.15)
OWN_INSTRUCTION_SHARE = 0.9
ANSWERING_OPTION_SHARE = 0.5
EASY_UNTIL = 0.35
# How many proposals name the answer and how many the other letters; the last two are ties.
VOTES = ((4,), (3, 1), (3,), (2, 1, 1), (2, 1), (2, 2), (1, 1, 1, 1))
VOTE_SHARES = (0.15, 0.3, 0.05, 0.25, 0.05, 0.12, 0.08)


@dataclass(frozen=True)
class Episode:
    """A prompt and the index of its letter; `question` and `shots` index sentences, `words` option words."""

    kind: str
    item: wording.Item
    letter: int
    question: int
    shots: tuple[int, ...]
    words: tuple[int, ...]

    @property
    def n_characters(self) -> int:
        """The length of what the prompt shows, fixed phrases aside."""
        return len(self.item.question) + sum(len(shot.question) for shot in self.item.shots)


@dataclass(frozen=True)
class ShownShots:
    """Solved examples in order: sentence and letter."""

    sentences: tuple[int, ...]
    letters: tuple[int, ...]


NO_SHOTS = ShownShots((), ())


@dataclass(frozen=True)
class EpisodeMaker:
    """Draws episodes from a corpus. `usable` are the sentences short enough, `short` the shortest of them."""

    sentences: Sequence[str]
    option_words: Sequence[str]
    topics: TopicSpace
    usable: Sequence[int]
    rng: np.random.Generator

    def options(self) -> Episode:
        """The options must be read: nothing else tells the letter."""
        n_options, question = self._n_options(), self._question()
        letter = int(self.rng.integers(n_options))
        words = self._words(question, n_options, letter)
        return self._episode("options", question, words, letter)

    def shots(self, progress: float) -> Episode:
        """The solved examples must be read; `progress` in [0, 1] makes the episodes harder."""
        n_options, question = self._n_options(), self._question()
        letters = [int(i) for i in self.rng.permutation(n_options)]
        shown, kind = self._draw_shots(question, letters, progress)
        answering = kind == "unrelated" or self.rng.random() < ANSWERING_OPTION_SHARE
        words = self._words(question, n_options, letters[0] if answering else None)
        return self._episode(kind, question, words, letters[0], shown)

    def justify(self, progress: float) -> Episode:
        """The proposals must be counted, and weighed where they tie."""
        n_options, question = self._n_options(), self._question()
        letters = [int(i) for i in self.rng.permutation(n_options)]
        votes = VOTES[int(self.rng.choice(len(VOTES), p=VOTE_SHARES))][:n_options]
        tie = len(votes) > 1 and votes[0] == votes[1]
        # Where the votes are clear, options and shots may favour another letter, as annotators do.
        supported = letters if tie or self.rng.random() < 0.7 else [int(i) for i in self.rng.permutation(n_options)]
        shown = NO_SHOTS
        if self.rng.random() < 0.5:
            shown, _ = self._draw_shots(question, supported, max(progress, EASY_UNTIL))
        answering = (tie and shown == NO_SHOTS) or self.rng.random() < ANSWERING_OPTION_SHARE
        words = self._words(question, n_options, supported[0] if answering else None)
        proposals = [letter for letter, n in zip(letters, votes, strict=False) for _ in range(n)]
        self.rng.shuffle(proposals)
        kind = "tie" if tie else "vote"
        return self._episode(kind, question, words, letters[0], shown, tuple(proposals))

    def _draw_shots(self, question: int, letters: Sequence[int], progress: float) -> tuple[ShownShots, str]:
        """Shots in random order, the examples on the question's topic carrying `letters[0]`."""
        n_shots = int(self.rng.choice(N_SHOTS, p=N_SHOTS_SHARES))
        related = self._n_related(n_shots)
        on_topic = self.topics.same_topic(question, related, self.rng) if related else []
        if on_topic and self.rng.random() < 0.7 - 1.5 * progress:
            on_topic[0] = question  # the easiest: the question itself is solved already
        off_topic = self.topics.other_topics(question, n_shots - related, self.rng)
        spare = [letters[1 + i % (len(letters) - 1)] for i in range(len(off_topic))]
        pairs = [(s, letters[0]) for s in on_topic] + list(zip(off_topic, spare, strict=True))
        order = self.rng.permutation(n_shots)
        shown = ShownShots(tuple(pairs[i][0] for i in order), tuple(pairs[i][1] for i in order))
        if not related:
            return shown, "unrelated"
        return shown, "one" if related == 1 and n_shots > 1 else "most"

    def _n_related(self, n_shots: int) -> int:
        """How many shots share the question's topic: one, most, all, or (of a lone shot) none."""
        if n_shots == 1:
            return int(self.rng.random() < 0.8)
        draw = self.rng.random()
        if draw < 0.4:
            return 1
        return n_shots if draw > 0.8 else max(1, n_shots - 1)

    def _n_options(self) -> int:
        return int(self.rng.choice(N_OPTIONS, p=N_OPTIONS_SHARES))

    def _question(self) -> int:
        return int(self.usable[int(self.rng.integers(len(self.usable)))])

    def _words(self, question: int, n_options: int, fitting_at: int | None) -> list[int]:
        words = self.topics.unfit_words(question, n_options, self.rng)
        if fitting_at is not None:
            words[fitting_at] = self.topics.fitting_word(question, self.rng)
        return words

    def _episode(
        self,
        kind: str,
        question: int,
        words: Sequence[int],
        letter: int,
        shown: ShownShots = NO_SHOTS,
        proposals: Sequence[int] = (),
    ) -> Episode:
        own = self.rng.random() < OWN_INSTRUCTION_SHARE
        item = wording.Item(
            question=self.sentences[question],
            options=tuple(self.option_words[i] for i in words),
            shots=tuple(
                wording.Shot(self.sentences[s], wording.LETTERS[i])
                for s, i in zip(shown.sentences, shown.letters, strict=True)
            ),
            proposals=tuple(wording.LETTERS[i] for i in proposals),
            instruction=wording.INSTRUCTION if own else str(self.rng.choice(wording.OTHER_INSTRUCTIONS)),
        )
        return Episode(kind, item, letter, question, shown.sentences, tuple(words))
