"""Guess which column of a user's file is what: question, options, answer, and the columns that nothing uses.

    roles = roles_of(table, question=None, answer=None)

Nested cells are opened by dotted names, a column that is filled wins over one with a usual name, and a second text goes
into a template. Knows nothing of kinds of task or of how a task file is worded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

from semievol_api.data.cells import is_missing, options_of, plain_text
from semievol_api.data.read_files import Table
from semievol_api.errors import DataError
from semievol_api.tasks import Columns
from semievol_api.tasks.kind import LETTERS
from semievol_api.tasks.kind_choice import exact_choice

_NAMES: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "uid", "qid", "question_id", "example_id", "row_id", "guid"),
    "question": (
        "question", "query", "text", "sentence", "input", "prompt", "review", "content", "message", "stem", "title",
        "文本", "问题", "内容", "句子",
    ),
    "answer": (
        "answer", "label", "gold", "target", "output", "class", "sentiment", "answerkey", "answer_idx", "correct",
        "gold_answer", "final_decision", "response", "y", "intent", "emotion", "标签", "类别", "标注", "答案",
    ),
    "context": ("context", "passage", "article", "abstract", "document", "background"),
    "options": ("options", "choices", "candidates", "alternatives", "endings"),
    "group": ("group", "article_id", "conversation_id", "dialogue_id", "passage_id", "document_id"),
    "category": ("category", "subject", "topic", "domain", "field"),
}  # fmt: skip
_PAIRS = (
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("sentence_a", "sentence_b"),
    ("text1", "text2"), ("text_1", "text_2"), ("text_a", "text_b"), ("question1", "question2"),
    ("instruction", "input"), ("title", "body"), ("title", "text"), ("title", "content"), ("title", "description"),
    ("title", "review"), ("headline", "body"), ("headline", "text"), ("subject", "body"), ("subject", "message"),
)  # fmt: skip
"""Two texts that are one question together."""
_OPTION_SERIES = tuple(
    tuple(f"{stem}{mark}" for mark in marks)
    for stem in (
        "",
        "option_",
        "option",
        "option ",
        "choice_",
        "choice",
        "choice ",
        "opt_",
        "opt",
        "answer_",
        "answer",
    )
    for marks in (LETTERS.lower(), "123456789", "0123456789")
    if stem or marks == LETTERS.lower()
)
_WORDS_OF = ("{}_text", "{}_name", "{}_names", "{}_str", "{}_word")
_LOOKED_AT = 200
_IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff")
_LONG_TEXT = 15


@dataclass(frozen=True, slots=True)
class Roles:
    """What the columns seem to be; `template` is the question's where several columns make it."""

    columns: Columns
    template: str | None
    first_option_digit: int
    reasons: tuple[str, ...]


def roles_of(table: Table, *, question: str | None = None, answer: str | None = None) -> Roles:
    """The columns by role; the file's owner may name two.

    Raises:
        DataError: no column looks like a question, a named one is not there, or one holds images.
    """
    seen = _Seen(table)
    for named in (question, answer):
        if named is not None and named not in (*table.columns, *seen.columns):
            raise DataError(f"{table.source} has no column {named!r}. Its columns: {', '.join(table.columns)}.")
    _refuse_images(table)
    options = seen.options({question, answer})
    taken: set[str | None] = {options} if isinstance(options, str) else set(options or ())
    answer, why = (answer, ()) if answer else seen.answer(taken | {question}, options)
    taken.add(answer)
    template = None if question else seen.template(taken)
    question = question or (template[0] if template else seen.question(taken))
    taken |= {question, *(template or ())}
    columns = Columns(
        question=question,
        options=options,
        answer=answer,
        context=seen.named("context", taken),
        id=_unique(table, seen.named("id", taken)),
        group=seen.named("group", taken),
        category=seen.named("category", taken),
    )
    digit = 1 if options is None else seen.first_digit(options, answer)
    joined = "\n".join(f"{{{column}}}" for column in template) if template else None
    unused = seen.unused(columns, template or ())
    reasons = (*_reasons(columns, joined), *why, *seen.told_unused(unused, joined or f"{{{question}}}"))
    return Roles(columns, joined, digit, reasons)


def _reasons(columns: Columns, template: str | None) -> list[str]:
    reasons: list[str] = []
    for role, value in columns.model_dump().items():
        if role == "question" and template:
            named = " and ".join(repr(name) for name in template.replace("{", "").replace("}", "").split("\n"))
            reasons.append(f"Columns {named} make the question: see `prompt` in task.toml.")
        elif isinstance(value, str):
            reasons.append(f"Column {value!r} holds the {role}.")
        elif value:
            reasons.append(f"Columns {', '.join(map(repr, value))} hold the {role}.")
    return reasons


class _Seen:
    """The columns of a table as a person would see them: mappings opened, by their first rows."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._rows = range(len(table.rows))
        self._sample = self._rows[:_LOOKED_AT]
        self.columns = tuple(name for column in table.columns for name in self._opened(column))
        self._by_name = {self._usual(column): column for column in reversed(self.columns)}

    def named(self, role: str, taken: Container[str | None]) -> str | None:
        """The first filled column with one of the role's usual names, else the first such column."""
        found = self._all_named(role, taken)
        return next((column for column in found if self._filled(column)), found[0] if found else None)

    def options(self, taken: Container[str | None]) -> str | tuple[str, ...] | None:
        """The column with lists of options, or one column for each."""
        named = next((c for c in self._all_named("options", taken) if self._filled(c)), None)
        if named is not None:
            return f"{named}.text" if self._mostly(named, _has_texts) else named
        folded = {column.casefold(): column for column in self.columns if column not in taken}
        for series in _OPTION_SERIES:
            found = [folded[name] for name in series if name in folded]
            if len(found) >= 2 and [name.casefold() for name in found] == list(series[: len(found)]):
                return tuple(found)
        answers = self._all_named("answer", ())
        lists = (c for c in self.columns if c not in answers and c not in taken and self._mostly(c, _is_list))
        return next(lists, None)

    def answer(
        self, taken: Container[str | None], options: str | tuple[str, ...] | None
    ) -> tuple[str | None, tuple[str, ...]]:
        """The column with the answers, and what is worth saying of it."""
        found = self._all_named("answer", taken) or self._all_named("category", taken)
        filled = [column for column in found if self._filled(column)]
        if not filled:
            return (found[0] if found else None), ()
        if options is not None:
            return max(filled, key=lambda c: max(self._readable(options, c, digit) for digit in (0, 1))), ()
        words = next((w for w in self._words_of(filled[0]) if self._one_to_one(filled[0], w)), None)
        if words is None:
            return filled[0], ()
        return words, (f"Column {filled[0]!r} holds the same as codes.",)

    def template(self, taken: Container[str | None]) -> tuple[str, str] | None:
        """Two columns that are one question together."""
        for pair in _PAIRS:
            first, second = (self._by_name.get(name) for name in pair)
            if first is None or second is None or first in taken or second in taken:
                continue
            if self._is_text(first) and self._is_text(second):
                return first, second
        return None

    def question(self, taken: Container[str | None]) -> str:
        """The filled column with a usual name, else the one with the longest texts."""
        named = [column for column in self._all_named("question", taken) if self._is_text(column)]
        if named:
            return named[0]
        lengths = {
            column: sum(len(plain_text(self._table.cell(row, column))) for row in self._rows)
            for column in self.columns
            if column not in taken and self._is_text(column)
        }
        if not lengths:
            raise DataError(
                f"{self._table.source} has no column that looks like a question. Its columns: "
                f"{', '.join(self.columns)}. Rename one to 'question', or write a task file by hand (docs/tasks.md)."
            )
        return max(lengths, key=lambda column: lengths[column])

    def first_digit(self, options: str | tuple[str, ...], answer: str | None) -> int:
        """Whether positions count from 0 or from 1: by which more answers can be read, or one of them is 0."""
        if answer is None:
            return 1
        zero, one = (self._readable(options, answer, digit) for digit in (0, 1))
        return 0 if zero > one else 1

    def unused(self, columns: Columns, template: Sequence[str]) -> list[str]:
        """The columns that have no role."""
        used = {name for value in columns.model_dump().values() for name in _names_in(value)} | set(template)
        parents = {name.rpartition(".")[0] for name in used}
        return [c for c in self.columns if c not in used and c not in parents and self._filled(c)]

    def told_unused(self, unused: Sequence[str], template: str) -> list[str]:
        """One sentence about them, and a template where one of them is a text."""
        if not unused:
            return []
        told = [f"Not used: {', '.join(map(repr, unused))}."]
        text = next((column for column in unused if self._is_text(column) and self._reads_long(column)), None)
        if text is not None:
            proposal = json.dumps(f"{template}\n{{{text}}}", ensure_ascii=False)
            told.append(f"If {text!r} belongs to the question, write into task.toml: prompt = {proposal}")
        return told

    def _opened(self, column: str, depth: int = 2) -> list[str]:
        """The column, or the names of its parts where its cells are mappings that are no options."""
        cells = [value for row in self._sample if (value := self._table.cell(row, column)) is not None]
        mappings = [value for value in cells if isinstance(value, Mapping)]
        if not cells or len(mappings) < len(cells) or not depth or _is_options(mappings):
            return [column]
        keys = dict.fromkeys(str(key) for value in mappings for key in value)
        return [name for key in keys for name in self._opened(f"{column}.{key}", depth - 1)]

    @staticmethod
    def _usual(column: str) -> str:
        return column.rpartition(".")[2].strip().casefold().replace(" ", "_")

    def _all_named(self, role: str, taken: Container[str | None]) -> list[str]:
        names = (self._by_name.get(name) for name in _NAMES[role])
        return [column for column in names if column is not None and column not in taken]

    def _filled(self, column: str) -> bool:
        return any(_holds(self._table.cell(row, column)) for row in self._rows)

    def _mostly(self, column: str, test: Callable[[object], bool]) -> bool:
        sample = [self._table.cell(row, column) for row in self._sample]
        return sum(map(test, sample)) > 0.8 * len(sample)

    def _is_text(self, column: str) -> bool:
        cells = [value for row in self._rows if _holds(value := self._table.cell(row, column))]
        return bool(cells) and sum(isinstance(value, str) for value in cells) > 0.5 * len(cells)

    def _reads_long(self, column: str) -> bool:
        cells = [plain_text(self._table.cell(row, column)) for row in self._sample]
        long = sum(len(cell) >= _LONG_TEXT for cell in cells)
        return long > 0.5 * len(cells) and len(set(cells)) > 0.5 * len(cells)

    def _words_of(self, codes: str) -> list[str]:
        """Columns that may name what another writes as codes."""
        cells = {plain_text(self._table.cell(row, codes)) for row in self._sample}
        if not all(cell.lstrip("-").replace(".", "", 1).isdecimal() for cell in cells if cell):
            return []
        found = (self._by_name.get(form.format(self._usual(codes))) for form in _WORDS_OF)
        return [column for column in found if column is not None and self._filled(column)]

    def _one_to_one(self, codes: str, words: str) -> bool:
        pairs = {tuple(plain_text(self._table.cell(row, c)) for c in (codes, words)) for row in self._rows}
        return len({a for a, _ in pairs}) == len(pairs) == len({b for _, b in pairs})

    def _readable(self, options: str | tuple[str, ...], answer: str, first_digit: int) -> float:
        """The share of the answers that name an option of their row."""
        names = (options,) if isinstance(options, str) else options
        read, cells = 0, 0
        for row in self._sample:
            cell = plain_text(self._table.cell(row, answer))
            if not cell:
                continue
            cells += 1
            try:
                given = options_of(self._table, row, names)
            except DataError:
                continue
            place = given.place_of_key(cell)
            read += place is not None or exact_choice(cell, given.texts, first_digit) is not None
        return read / cells if cells else 0.0


def _refuse_images(table: Table) -> None:
    sample = table.rows[:_LOOKED_AT]
    for column in table.columns:
        images = sum(_is_image(row.get(column)) for row in sample)
        if images > 0.5 * len(sample):
            raise DataError(
                f"{table.source}: the column {column!r} holds images, and models are asked with text alone. Where the "
                f"text is enough to answer, save the file without that column."
            )


def _is_image(value: object) -> bool:
    if isinstance(value, Mapping):
        return set(value) == {"bytes", "path"}
    if isinstance(value, str):
        return value.startswith("data:image/") or value.strip().casefold().endswith(_IMAGE_ENDINGS)
    if isinstance(value, bytes):
        return value.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF"))
    return type(value).__module__.partition(".")[0] == "PIL"


def _is_options(mappings: Sequence[Mapping[object, object]]) -> bool:
    """Whether mappings are the options of a question: texts beside labels, or a text for each letter."""
    lists = all(isinstance(value.get("text"), list | tuple) for value in mappings)
    lettered = all(all(len(str(key)) == 1 for key in value) for value in mappings)
    return lists or lettered


def _has_texts(value: object) -> bool:
    return isinstance(value, Mapping) and "text" in value


def _is_list(value: object) -> bool:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return False
    return isinstance(value, list) and len(value) > 1


def _unique(table: Table, column: str | None) -> str | None:
    """An id column whose values repeat is none."""
    values = [table.cell(row, column) for row in range(len(table.rows))] if column else []
    return column if column and all(map(_holds, values)) and len(set(map(str, values))) == len(values) else None


def _holds(value: object) -> bool:
    return not is_missing(value) and bool(str(value).strip())


def _names_in(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value, value.removesuffix(".text"))
    return tuple(value) if isinstance(value, tuple) else ()
