"""Clean the three parts of a data set: leaks, duplicates, conflicting labels. Everything dropped is listed.

    data = clean(labeled, unlabeled, test, near=True)
    data.report.as_json()

Two items match only when question and options both do (nearly: each by itself, and the answers agree where they
are known); items that share only the question are good data, and are given one group. The test part is never
changed. Hidden answers are never read. Knows nothing of files, prompts or models.
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from semievol_api.data.schemas import chunked_examples
from semievol_api.data.table import BoolArray, ChunkedTable, Scratch, hash_of, repeated
from semievol_api.records import Example

_STRIPPED = re.compile(r"[.,](?!\d)|(?<!\d)!|(?<=[^\W\d_])-(?=[^\W\d_])|[^\w\s.,!\-*/%]|_")
NGRAM = 5
BANDS = 10
ROWS = 8
AT_ONCE = 2048
"""Texts whose signatures are computed together."""
_CHUNK_GRAMS = 2_000_000
_BUCKET_CAP = 64
"""In a bucket of more texts than this, every text is compared with the first ones only: the work stays linear."""


def normalized(text: str) -> str:
    """NFKC, case-folded, without punctuation, spacing collapsed.

    What changes a meaning stays: all symbols, and of the punctuation the signs * / % and a minus, a decimal point
    or comma, a factorial's `!`. A text of nothing but punctuation stays as it is.
    """
    folded = unicodedata.normalize("NFKC", text).casefold().replace("\u2212", "-")
    plain = " ".join(_STRIPPED.sub(_blank, folded).split())
    return plain or " ".join(folded.split())


def jaccard(a: str, b: str) -> float:
    """Jaccard similarity of the two texts' sets of character 5-grams, in [0, 1]; 1 for equal texts."""
    if a == b:
        return 1.0
    grams_a, grams_b = _grams(a), _grams(b)
    shared = len(grams_a & grams_b)
    return shared / (len(grams_a) + len(grams_b) - shared)


def near_pairs(texts: Sequence[str], threshold: float) -> list[tuple[int, int]]:
    """All pairs whose similarity reaches the threshold (0.9 is what the banding is made for), sorted."""
    cache: dict[int, frozenset[str]] = {}

    def grams(i: int) -> frozenset[str]:
        if i not in cache:
            cache[i] = _grams(texts[i])
        return cache[i]

    found: list[tuple[int, int]] = []
    for i, j in sorted(_candidates(texts)):
        a, b = grams(i), grams(j)
        if min(len(a), len(b)) < threshold * max(len(a), len(b)):
            continue
        shared = len(a & b)
        if shared >= threshold * (len(a) + len(b) - shared):
            found.append((i, j))
    return found


def signatures(texts: Sequence[str]) -> NDArray[np.uint32]:
    """MinHash signatures: uint32, shape (texts, BANDS * ROWS)."""
    random = np.random.default_rng(20241014)
    factors = random.integers(0, 2**31, BANDS * ROWS, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    offsets = random.integers(0, 2**32, BANDS * ROWS, dtype=np.uint32)
    result = np.empty((len(texts), BANDS * ROWS), dtype=np.uint32)
    for start, stop in _chunks([len(text) for text in texts]):
        hashes, starts = _gram_hashes(texts[start:stop])
        work = np.empty_like(hashes)
        for k, (factor, offset) in enumerate(zip(factors, offsets, strict=True)):
            np.multiply(hashes, factor, out=work)
            np.add(work, offset, out=work)
            result[start:stop, k] = np.minimum.reduceat(work, starts)
    return result


def _blank(found: re.Match[str]) -> str:
    """A space for punctuation; any other symbol stays."""
    char = found.group()
    return " " if unicodedata.category(char).startswith("P") else char


def _grams(text: str) -> frozenset[str]:
    padded = text.ljust(NGRAM)
    return frozenset(padded[i : i + NGRAM] for i in range(len(padded) - NGRAM + 1))


def _candidates(texts: Sequence[str]) -> set[tuple[int, int]]:
    """Pairs that share a whole band of their signatures."""
    if len(texts) < 2:
        return set()
    keys = band_keys(texts)
    found: set[tuple[int, int]] = set()
    for band in range(BANDS):
        for bucket in _buckets(keys[:, band]):
            for place, i in enumerate(bucket[:_BUCKET_CAP]):
                found.update((i, j) for j in bucket[place + 1 :])
    return found


def band_keys(texts: Sequence[str]) -> NDArray[np.uint64]:
    """A 64-bit hash of each band of each text's signature: uint64, shape (texts, BANDS)."""
    bands = signatures(texts).reshape(len(texts), BANDS, ROWS)
    keys = np.zeros((len(texts), BANDS), dtype=np.uint64)
    for row in range(ROWS):
        keys = _mixed(keys ^ bands[:, :, row].astype(np.uint64))
    return keys


def _buckets(key: NDArray[np.uint64]) -> Iterator[list[int]]:
    """Groups of indices, ascending, whose keys are equal; groups of one are left out."""
    order = np.argsort(key, kind="stable")
    edges = np.flatnonzero(np.diff(key[order])) + 1
    for group in np.split(order, edges):
        if len(group) > 1:
            yield group.tolist()


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _gram_hashes(texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.intp]]:
    """A uint32 hash of every character 5-gram of every text, and where each text's hashes begin."""
    padded = [text.ljust(NGRAM) for text in texts]
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    lengths = np.array([len(text) for text in padded], dtype=np.intp)
    windows = len(codes) - NGRAM + 1
    value = np.zeros(windows, dtype=np.uint64)
    for k in range(NGRAM):
        value = value * np.uint64(0x9E3779B97F4A7C15) + codes[k : k + windows].astype(np.uint64)
    hashes = (_mixed(value) >> np.uint64(32)).astype(np.uint32)
    ends = np.cumsum(lengths)
    inside = np.ones(windows, dtype=bool)
    for back in range(1, NGRAM):
        inside[ends[:-1] - back] = False
    starts = np.concatenate(([0], np.cumsum(lengths - NGRAM + 1)[:-1])).astype(np.intp)
    return hashes[inside], starts


def _chunks(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ranges of texts that hold at most about `_CHUNK_GRAMS` characters together."""
    start, held = 0, 0
    for i, length in enumerate(lengths):
        if held and held + length > _CHUNK_GRAMS:
            yield start, i
            start, held = i, 0
        held += length
    if start < len(lengths):
        yield start, len(lengths)


Part: TypeAlias = Literal["test", "labeled", "unlabeled"]
Reason: TypeAlias = Literal["in test", "in labeled", "duplicate", "conflicting answers"]

NEAR = 0.9
_WINDOW = 200
_WINDOW_NEAR = 0.8
"""The first and the last 200 characters must match by themselves, so that two short questions on one long
passage are not one question."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """One item that left, why, and the item that it matches."""

    part: Part
    example_id: str
    reason: Reason
    near: bool
    match_part: Part
    match_id: str
    question: str


@dataclass(frozen=True, slots=True)
class SharedQuestion:
    """Items, as (part, id), whose questions match and whose options do not; they got one group."""

    group: str
    members: tuple[tuple[Part, str], ...]


@dataclass(frozen=True, slots=True)
class HygieneReport:
    """All that `clean` did and found."""

    dropped: tuple[Dropped, ...]
    shared_questions: tuple[SharedQuestion, ...]
    repeats_in_test: int
    """Test items that repeat an earlier test item; they stay."""

    @property
    def counts(self) -> dict[str, int]:
        """How many left, by part and reason, such as `unlabeled: in test`."""
        counted = Counter(f"{row.part}: {row.reason}{' (near)' if row.near else ''}" for row in self.dropped)
        return dict(sorted(counted.items()))

    def as_json(self) -> dict[str, object]:
        """The report as JSON values, the same for the same data."""
        return {
            "counts": self.counts,
            "dropped": [asdict(row) for row in self.dropped],
            "repeats_in_test": self.repeats_in_test,
            "shared_questions": [
                {"group": row.group, "members": [list(member) for member in row.members]}
                for row in self.shared_questions
            ],
        }

    def write(self, path: Path) -> None:
        """Write the report to a JSON file."""
        path.write_text(json.dumps(self.as_json(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class CleanData:
    """What is left, in the order of the files, and the report."""

    labeled: tuple[Example, ...]
    unlabeled: ChunkedTable[Example]
    test: tuple[Example, ...]
    report: HygieneReport


@dataclass(frozen=True, slots=True)
class _Item:
    part: Part
    example: Example
    question: str
    options: tuple[str, ...]
    answer: str | None
    """The known answer's own words, which don't depend on the order of the options."""

    @property
    def whole(self) -> str:
        return "\n".join((self.question, *self.options))


def clean(
    labeled: Sequence[Example], unlabeled: Sequence[Example], test: Sequence[Example], *, near: bool
) -> CleanData:
    """Drop leaks and duplicates, quarantine conflicts, group shared questions.

    Of the unlabelled items only those are compared that share a question, or with `near` a part of their text's
    signature, with any other: all of them need not be held.

    Args:
        labeled: training items with answers.
        unlabeled: items whose answers, if any, are hidden; of any number, see `ChunkedTable`.
        test: items to measure on; they stay as they are.
        near: also look for near duplicates (character 5-grams, Jaccard >= 0.9).
    """
    pool = chunked_examples(unlabeled)
    compared = _comparable((*test, *labeled), pool, near=near)
    some = dict(zip(np.flatnonzero(compared).tolist(), pool.where(compared), strict=True))
    items = [_item("test", e) for e in test] + [_item("labeled", e) for e in labeled]
    items += [_item("unlabeled", e) for e in some.values()]
    dropped = _exact(items)
    if near:
        gone = {(row.part, row.example_id) for row in dropped}
        dropped += _near([item for item in items if (item.part, item.example.id) not in gone])
    gone = {(row.part, row.example_id) for row in dropped}
    left = [item for item in items if (item.part, item.example.id) not in gone]
    shared = _shared_questions(left, near=near)
    group_of = {member: found.group for found in shared for member in found.members}

    def kept(part: Part) -> tuple[Example, ...]:
        return tuple(_grouped(item, group_of) for item in left if item.part == part)

    stays = np.ones(len(pool), dtype=np.bool_)
    stays[[place for place, e in some.items() if ("unlabeled", e.id) in gone]] = False
    groups = {place: group_of.get(("unlabeled", e.id)) for place, e in some.items() if not e.group}
    grouped = pool.with_values("group", {place: group for place, group in groups.items() if group is not None})
    repeats = Counter(_key(item) for item in items if item.part == "test")
    report = HygieneReport(tuple(dropped), shared, sum(repeats.values()) - len(repeats))
    return CleanData(kept("labeled"), grouped.where(stays), kept("test"), report)


def _comparable(others: Sequence[Example], pool: ChunkedTable[Example], *, near: bool) -> BoolArray:
    """bool (len(pool),): the items whose question occurs elsewhere too, or which `near_pairs` would look at."""
    keys = array("Q", (hash_of(normalized(e.question)) for e in itertools.chain(others, pool)))
    marked = repeated(np.frombuffer(keys, np.uint64))
    if near:
        scratch = Scratch()
        paths = [scratch.path / f"band-{number}" for number in range(2 * BANDS)]
        coming = itertools.chain(others, pool)
        while some := list(itertools.islice(coming, AT_ONCE)):
            texts = [_item("unlabeled", e).whole for e in some], [normalized(e.question) for e in some]
            for path, column in zip(paths, np.hstack([band_keys(one) for one in texts]).T, strict=True):
                with scratch.writing(), path.open("ab") as file:
                    file.write(np.ascontiguousarray(column).tobytes())
        for path in paths if marked.size else ():
            marked |= repeated(np.fromfile(path, np.uint64))
    return marked[len(others) :]


def _item(part: Part, example: Example) -> _Item:
    answer = example.answer
    if answer is not None and example.options:
        answer = normalized(example.options[ord(answer) - ord("A")])
    options = tuple(sorted(map(normalized, example.options)))
    return _Item(part, example, normalized(example.question), options, answer)


def _key(item: _Item) -> tuple[str, ...]:
    return (item.question, *item.options)


def _exact(items: Sequence[_Item]) -> list[Dropped]:
    by_key: dict[tuple[str, ...], list[_Item]] = {}
    for item in items:
        by_key.setdefault(_key(item), []).append(item)
    place = {id(item): i for i, item in enumerate(items)}
    dropped: list[tuple[int, Dropped]] = []
    for group in by_key.values():
        if len(group) > 1:
            dropped += [(place[id(item)], row) for item, row in _within(group)]
    return [row for _, row in sorted(dropped, key=lambda pair: pair[0])]


def _within(group: Sequence[_Item]) -> Iterable[tuple[_Item, Dropped]]:
    """The members of one key that go: test first keeps its own, then labelled, then unlabelled."""
    test, labeled, unlabeled = ([i for i in group if i.part == part] for part in ("test", "labeled", "unlabeled"))
    first_labeled = labeled[0] if labeled else None
    conflict = not test and len({item.answer for item in labeled}) > 1
    for item in labeled:
        if test:
            yield item, _row(item, test[0], near=False)
        elif conflict:
            other = next(o for o in labeled if o.answer != item.answer)
            yield item, _row(item, other, near=False, reason="conflicting answers")
        elif item is not first_labeled:
            yield item, _row(item, labeled[0], near=False)
    anchor = test or ([] if conflict else labeled) or unlabeled[:1]
    for item in unlabeled:
        if item is not anchor[0]:
            yield item, _row(item, anchor[0], near=False)


def _near(items: Sequence[_Item]) -> list[Dropped]:
    """Near matches, each item against those that stay before it (test, then labelled, then unlabelled)."""
    earlier: dict[int, list[int]] = {}
    for i, j in near_pairs([item.whole for item in items], NEAR):
        earlier.setdefault(j, []).append(i)
    gone: set[int] = set()
    dropped: list[Dropped] = []
    for j in sorted(earlier):
        item = items[j]
        matches = [i for i in earlier[j] if i not in gone and _nearly_same(items[i], item)]
        if matches and item.part != "test":
            gone.add(j)
            dropped.append(_row(item, items[matches[0]], near=True))
    return dropped


def _nearly_same(a: _Item, b: _Item) -> bool:
    if a.answer is not None and b.answer is not None and a.answer != b.answer:
        return False
    return jaccard(" \n".join(a.options), " \n".join(b.options)) >= NEAR and _same_question(a.question, b.question)


def _same_question(a: str, b: str) -> bool:
    if jaccard(a, b) < NEAR:
        return False
    if max(len(a), len(b)) <= 2 * _WINDOW:
        return True
    windows: tuple[Callable[[str], str], ...] = (lambda text: text[:_WINDOW], lambda text: text[-_WINDOW:])
    return all(jaccard(window(a), window(b)) >= _WINDOW_NEAR for window in windows)


def _row(item: _Item, match: _Item, *, near: bool, reason: Reason | None = None) -> Dropped:
    why: dict[Part, Reason] = {"test": "in test", "labeled": "in labeled", "unlabeled": "duplicate"}
    default: Reason = "duplicate" if item.part == match.part else why[match.part]
    return Dropped(
        part=item.part,
        example_id=item.example.id,
        reason=reason or default,
        near=near,
        match_part=match.part,
        match_id=match.example.id,
        question=item.example.question[:160],
    )


def _shared_questions(items: Sequence[_Item], *, near: bool) -> tuple[SharedQuestion, ...]:
    """Sets of items whose questions are equal or, with `near`, linked by near-equality."""
    by_question: dict[str, list[_Item]] = {}
    for item in items:
        by_question.setdefault(item.question, []).append(item)
    questions = list(by_question)
    root = list(range(len(questions)))
    for i, j in near_pairs(questions, NEAR) if near else ():
        a, b = _find(root, i), _find(root, j)
        root[max(a, b)] = min(a, b)
    members: dict[int, list[_Item]] = {}
    for i, question in enumerate(questions):
        members.setdefault(_find(root, i), []).extend(by_question[question])
    groups = [group for group in members.values() if len(group) > 1]
    return tuple(
        SharedQuestion(f"question-{group[0].example.id}", tuple((item.part, item.example.id) for item in group))
        for group in groups
    )


def _find(root: list[int], i: int) -> int:
    while root[i] != i:
        root[i] = root[root[i]]
        i = root[i]
    return i


def _grouped(item: _Item, group_of: dict[tuple[Part, str], str]) -> Example:
    """The example with the group of its shared question, unless the data names a group itself."""
    group = group_of.get((item.part, item.example.id))
    return item.example if item.example.group or group is None else replace(item.example, group=group)
