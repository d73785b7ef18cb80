"""Topics without labels: clusters of the teacher's sentence vectors, and the words that lie nearest to them.

Knows nothing of prompts, letters or the demo's fields.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
Indices = NDArray[np.int64]

N_CLUSTERS, MIN_CLUSTER_SIZE = 64, 40
FAR_CLUSTER_SIMILARITY = 0.35
FITTING_WORDS, UNFIT_SIMILARITY = 8, 0.08


@dataclass(frozen=True)
class TopicSpace:
    """Sentences, their clusters and the option words in one vector space.

    `sentence_vectors` has shape (sentences, d) and `word_vectors` (words, d), both unit length; `cluster_of`
    gives every sentence its cluster; `members[c]` are the sentences of cluster c and `far[c]` the clusters on
    other topics. `topic_words[c]` are the words that fit cluster c best.
    """

    sentence_vectors: Matrix
    word_vectors: Matrix
    cluster_of: Indices
    members: tuple[Indices, ...]
    far: tuple[Indices, ...]
    topic_words: tuple[Indices, ...]

    def fitting_word(self, sentence: int, rng: np.random.Generator) -> int:
        """A word on the sentence's topic: half of the time its own, else its cluster's."""
        if rng.random() < 0.5:
            words = self.topic_words[self.cluster_of[sentence]]
        else:
            similarity = self.word_vectors @ self.sentence_vectors[sentence]
            words = np.argpartition(-similarity, FITTING_WORDS)[:FITTING_WORDS]
        return int(rng.choice(words))

    def unfit_words(self, sentence: int, n_words: int, rng: np.random.Generator) -> list[int]:
        """Words on other topics than the sentence's."""
        drawn = rng.choice(len(self.word_vectors), size=8 * n_words + 16, replace=False)
        unfit = drawn[self.word_vectors[drawn] @ self.sentence_vectors[sentence] < UNFIT_SIMILARITY]
        return [int(i) for i in unfit[:n_words]]

    def same_topic(self, sentence: int, n: int, rng: np.random.Generator) -> list[int]:
        """Other sentences of the sentence's cluster."""
        members = self.members[self.cluster_of[sentence]]
        return [int(i) for i in rng.choice(members[members != sentence], size=n, replace=False)]

    def other_topics(self, sentence: int, n: int, rng: np.random.Generator) -> list[int]:
        """Sentences of `n` different clusters far from the sentence's."""
        clusters = rng.choice(self.far[self.cluster_of[sentence]], size=n, replace=False)
        return [int(rng.choice(self.members[c])) for c in clusters]


def build_topics(sentence_vectors: Matrix, word_vectors: Matrix, usable: Sequence[int], seed: int) -> TopicSpace:
    """Cluster the usable sentences; the small clusters' sentences join the nearest large one."""
    from sklearn.cluster import MiniBatchKMeans

    rows = np.asarray(usable, dtype=np.int64)
    clustering: Any = MiniBatchKMeans(N_CLUSTERS, random_state=seed, n_init=3)  # pyright: ignore[reportArgumentType]
    clustering.fit(sentence_vectors[rows])
    sizes = np.bincount(clustering.labels_, minlength=N_CLUSTERS)
    centres: Matrix = clustering.cluster_centers_[sizes >= MIN_CLUSTER_SIZE].astype(np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    cluster_of = (sentence_vectors @ centres.T).argmax(1).astype(np.int64)
    between = centres @ centres.T
    nearest_words = np.argsort(-(centres @ word_vectors.T), axis=1)[:, : 3 * FITTING_WORDS]
    return TopicSpace(
        sentence_vectors=sentence_vectors,
        word_vectors=word_vectors,
        cluster_of=cluster_of,
        members=tuple(rows[cluster_of[rows] == c] for c in range(len(centres))),
        far=tuple(np.flatnonzero(row < FAR_CLUSTER_SIMILARITY) for row in between),
        topic_words=tuple(row.astype(np.int64) for row in nearest_words),
    )
