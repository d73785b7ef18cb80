"""Word the files that a user starts with: a task, a config and, where needed, the parts of the data.

    starter = start(Path("data.csv"))
    starter.files           # name -> text; nothing is written here

Knows nothing of the command line.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from semievol_api.config.settings import parse_settings
from semievol_api.data.delimited import PLAIN
from semievol_api.data.doubts import NOTHING_TOLD, Told, refuse_no_header
from semievol_api.data.examples import answer_cell, read_examples
from semievol_api.data.frames import toml_lines
from semievol_api.data.read_files import Table
from semievol_api.data.sources import read_source
from semievol_api.data.splits import split
from semievol_api.data.understanding import Understanding, joined_labels, label_sets, understood
from semievol_api.errors import DataError
from semievol_api.records import Example
from semievol_api.tasks import Task, TaskDefinition
from semievol_api.tasks.definition import KINDS
from semievol_api.tasks.replies import exact

TASK_FILE = "task.toml"
CONFIG_FILE = "semievol.toml"
_MIN_LABELED_FOR_TEST = 50
_NAMED_AT_MOST = 5
_SHOWN_ROWS = 3


@dataclass(frozen=True, slots=True)
class DataPaths:
    """What stands under `[data]`, as written."""

    labeled: str
    unlabeled: str
    test: str | None


@dataclass(frozen=True, slots=True)
class Starter:
    """The files to write, by name, and what was understood."""

    understanding: Understanding
    files: Mapping[str, str]
    remarks: tuple[str, ...]
    shown: tuple[Shown, ...] = ()


@dataclass(frozen=True, slots=True)
class Shown:
    """A labelled row as it was read: the question, the user turn of its prompt, the cell and the answer in it."""

    question: str
    prompt: str
    cell: str
    gold: str


def start(
    data: Path,
    unlabeled: Path | None = None,
    test: Path | None = None,
    *,
    question: str | None = None,
    answer: str | None = None,
    told: Told = NOTHING_TOLD,
) -> Starter:
    """Everything that `semievol init` writes for a file of the user's own.

    Without an unlabelled file, the rows without an answer are it; where every row has one, the file is split
    labelled : unlabelled : test = 2 : 6 : 2 (the unlabelled part's answers stay hidden from the method). `question`
    and `answer` name columns that could not be guessed, `told` is what the file does not say by itself. Files that need
    it to be read are written anew.

    Raises:
        DataError: the file cannot be read, holds no answers, or its rows don't fit what was understood.
    """
    table = read_source(data, told.format)
    others = {name: read_source(path, told.format) for name, path in (("unlabeled", unlabeled), ("test", test)) if path}
    for other in others.values():
        refuse_no_header(other, told)
    seen, table = understood(table, question=question, answer=answer, told=told)
    found = _with_labels_of(others.get("test"), _shared_by(seen, list(others.values())))
    if not found.answered:
        if found.columns.messages is not None:
            raise DataError(
                f"{table.source} is the labelled file, and none of its conversations ends with the assistant's turn. "
                f"Name the file whose conversations do, and this one with --unlabeled."
            )
        why = "no column looks like the answer" if found.columns.answer is None else "the answers are all empty"
        raise DataError(
            f"{table.source} is the labelled file, and {why}. Its columns: {', '.join(table.columns)}. Name the one "
            f"that holds the answers with --answer COLUMN (and --question COLUMN)."
        )
    task, free = Task(_definition(found)), found.kind == "free_text" and found.columns.messages is not None
    if unlabeled is not None:
        seen_labels = _labels_of(task, read_examples(table, task, "labeled").examples)
        parts, remarks = dict[str, str](), tuple(_untaught(found, seen_labels))
    else:
        parts, remarks = _parts(table, task, found, with_test=test is None)
    if told.format != PLAIN:
        parts |= {f"{name}.jsonl": _jsonl(other, range(len(other.rows))) for name, other in others.items()}
        parts.setdefault("labeled.jsonl", _jsonl(table, range(len(table.rows))))
    given = {"labeled": data, "unlabeled": unlabeled, "test": test}
    paths = {name: f"{name}.jsonl" if parts.get(f"{name}.jsonl") else _absolute(path) for name, path in given.items()}
    places = DataPaths(paths["labeled"] or "", paths["unlabeled"] or "", paths["test"])
    config = render_config(places, free_replies=free)
    files = {TASK_FILE: render_task(found), CONFIG_FILE: config, **{k: v for k, v in parts.items() if v}}
    return Starter(found, files, remarks, _shown(table, task))


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.resolve())


def _shown(table: Table, task: Task) -> tuple[Shown, ...]:
    """The first labelled rows as they were read."""
    columns = task.definition.columns
    answered = [row for row in range(len(table.rows)) if answer_cell(table, row, columns)][:_SHOWN_ROWS]
    few = replace(
        table, rows=tuple(table.rows[row] for row in answered), lines=tuple(table.lines[row] for row in answered)
    )
    examples = read_examples(replace(few, held_keys=frozenset()), task, "labeled").examples
    return tuple(
        Shown(e.question, task.prompt(e).messages[-1].content, answer_cell(few, place, columns), e.answer or "")
        for place, e in enumerate(examples)
    )


def render_task(found: Understanding) -> str:
    """The text of a task file."""
    kind = KINDS[found.kind]
    lines = [
        f"# What `semievol init` understood of {found.source}.",
        "# Change what is wrong; docs/tasks.md tells every key.",
        f"name = {_toml(Path(found.source).stem)}",
        f"kind = {_toml(found.kind)}",
        f"instruction = {_toml(found.more.get('instruction', kind.instruction))}",
    ]
    if found.labels:
        lines.append(f"labels = {_toml(list(found.labels))}")
    if found.first_option_digit == 0:
        lines.append("first_option_digit = 0")
    if isinstance(found.more.get("prompt"), str):
        lines.append(f"prompt = {_toml(found.more['prompt'])}")
    more = {name: section for name, section in found.more.items() if name != "number"}
    sections = {"columns": {name: value for name, value in _columns(found).items() if value}, **more}
    for name, section in sections.items():
        if isinstance(section, Mapping):
            lines += ["", *toml_lines({name: section}, "")]
    if kind.starter_lines:
        lines += ["", *kind.starter_lines]
    number = found.more.get("number")
    if isinstance(number, Mapping):
        lines += [f"{key} = {_toml(value)}" for key, value in number.items()]
    return "\n".join(lines) + "\n"


def render_config(paths: DataPaths, *, free_replies: bool = False) -> str:
    """The text of a config for one OpenAI-compatible provider.

    Free replies are ranked as the paper does: no two are alike, so nothing could be calibrated.
    """
    mode = "paper" if free_replies else "calibrated"
    others = '"calibrated"' if free_replies else '"paper"'
    test = f"test = {_toml(paths.test)}\n" if paths.test else "# No test file: the evaluation is skipped.\n"
    return (
        f'[run]\nfolder = "runs/first"\nmode = "{mode}"     # or {others}, "official-2025": docs/method.md\n'
        "seed = 0\n\n"
        f"[data]\ntask = {_toml(TASK_FILE)}\nlabeled = {_toml(paths.labeled)}\n"
        f"unlabeled = {_toml(paths.unlabeled)}\n"
        f"{test}\n"
        "# OpenAI itself; the key is read from the variable OPENAI_API_KEY. Its fine-tuning ends, and is closed to\n"
        "# organisations that have not used it lately: `semievol plan` tells until when, and where else this runs.\n"
        '[providers.main]\nkind = "openai"\n'
        "# A model of your own, served by `semievol serve MODEL_FOLDER --name my-llama`: add these three lines, write\n"
        '# model = "my-llama" for the student, and leave the embedder out: MiniLM then runs in this process.\n'
        '# vendor = "semievol"\n# base_url = "http://127.0.0.1:8000/v1"\n# api_key_env = ""\n\n'
        '[roles]\nstudent = { provider = "main", model = "gpt-4o-mini-2024-07-18" }\n'
        'embedder = { provider = "main", model = "text-embedding-3-small" }\n\n'
        '[retrieve]\nmethod = "embedding"   # or "bm25", which needs no embedder\nk = 3\n\n'
        "[select]\nalpha = 0.1            # the share of false labels that is tolerated on average\n\n"
        '[train]\nn_epochs = "auto"       # as many as the rows at hand need: the trainer decides\n\n'
        "[limits]\nmax_usd = 5.0      # the run stops there and keeps what it paid for; raise it to go on\n"
    )


def _shared_by(found: Understanding, others: Sequence[Table]) -> Understanding:
    """The same without the optional columns that another of the user's files lacks."""
    columns = found.columns
    lacking = {
        role: None
        for role, column in (("id", columns.id), ("group", columns.group), ("category", columns.category))
        if column is not None and any(column not in table.columns for table in others)
    }
    return replace(found, columns=columns.model_copy(update=lacking))


def _with_labels_of(table: Table | None, found: Understanding) -> Understanding:
    """The same with the labels that only the test file knows: the set is one."""
    if table is None or not found.labels:
        return found
    cells = [cell for row in range(len(table.rows)) if (cell := answer_cell(table, row, found.columns))]
    if found.kind == "label_set":
        more = {label for one in (label_sets(cells) or ("", []))[1] for label in one}
        return replace(found, labels=(*found.labels, *sorted(more - set(found.labels))))
    known = {spelling for label in found.labels for spelling in (label, label.casefold(), f"{label}.0")}
    labels, _ = joined_labels([cell for cell in map(exact, cells) if not {cell, cell.casefold()} & known])
    return replace(found, labels=tuple(sorted((*found.labels, *labels))))


def _labels_of(task: Task, examples: Iterable[Example]) -> set[str]:
    """The labels that stand in some answer."""
    answers = {e.answer for e in examples if e.answer is not None}
    return {label for answer in answers for label in (task.parts(answer) if task.fields else (answer,))}


def _untaught(found: Understanding, seen: Container[str]) -> Iterator[str]:
    missing = [label for label in found.labels if label not in seen]
    if missing:
        named = ", ".join(map(repr, missing[:_NAMED_AT_MOST])) + (", ..." if len(missing) > _NAMED_AT_MOST else "")
        yield (
            f"No labelled row is left for {len(missing)} of {len(found.labels)} labels ({named}), so nothing would "
            f"teach them: label more, or make the parts yourself and name them with --unlabeled and --test."
        )


def _columns(found: Understanding) -> Mapping[str, object]:
    """The columns as the task file has them; where conversations are, what was found alone."""
    return found.columns.model_dump(mode="json", exclude_unset=found.columns.messages is not None)


def _definition(found: Understanding) -> TaskDefinition:
    tree = {
        "name": Path(found.source).stem,
        "kind": found.kind,
        "instruction": KINDS[found.kind].instruction,
        "labels": found.labels,
        "first_option_digit": found.first_option_digit,
        "columns": found.columns,
        **found.more,
    }
    return parse_settings(TaskDefinition, tree, where=f"The task that {found.source} asks for")


def _parts(
    table: Table, task: Task, found: Understanding, *, with_test: bool
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The data's parts as JSONL texts, and sentences that say how they came about."""
    has = [bool(answer_cell(table, row, found.columns)) for row in range(len(table.rows))]
    answered = [row for row, known in enumerate(has) if known]
    rest = [row for row, known in enumerate(has) if not known]
    labeled_table = Table(
        table.source, table.unit, table.columns,
        tuple(table.rows[row] for row in answered), tuple(table.lines[row] for row in answered),
    )  # fmt: skip
    examples = read_examples(labeled_table, task, "labeled").examples if answered else ()
    row_of = dict(zip((e.id for e in examples), answered, strict=True))
    test: Sequence[Example] = ()
    if rest:
        labeled: Sequence[Example] = examples
        unlabeled = rest
        if with_test and len(examples) >= _MIN_LABELED_FOR_TEST:
            labeled, test = split(examples, (8, 2), seed=0)
        remark = f"{len(rest)} rows have no answer: they are the unlabelled part."
    else:
        ratio = (2, 6, 2) if with_test else (2, 6)
        labeled, hidden, *more = split(examples, ratio, seed=0)
        test = more[0] if more else ()
        unlabeled = [row_of[e.id] for e in hidden]
        remark = (
            "Every row has an answer, so the file was split labelled : unlabelled"
            f"{' : test' if with_test else ''} = {' : '.join(map(str, ratio))}; the answers of the unlabelled part "
            "stay hidden from the method and are used only for the report."
        )
    remarks = [remark, f"Rows: {len(labeled)} labelled, {len(unlabeled)} unlabelled, {len(test)} for the test."]
    remarks += _untaught(found, _labels_of(task, labeled))
    return {
        "labeled.jsonl": _jsonl(table, [row_of[e.id] for e in labeled]),
        "unlabeled.jsonl": _jsonl(table, unlabeled),
        "test.jsonl": _jsonl(table, [row_of[e.id] for e in test]),
    }, tuple(remarks)


def _jsonl(table: Table, rows: Sequence[int]) -> str:
    return "".join(json.dumps(table.rows[row], ensure_ascii=False, default=str) + "\n" for row in rows)


def _toml(value: object) -> str:
    """A JSON string or list of strings is also TOML."""
    return json.dumps(value, ensure_ascii=False)
