"""Hand the labels over: OpenAI chat JSONL, Parquet, a Hugging Face dataset, or a model card.

    export_labels(Path("runs/demo"), Path("labels.jsonl"), "openai")

What is handed over are the kept pseudo-labels and, over them, what a person decided in review. Knows nothing of
how labels were made or of pages.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import pyarrow as pa

from semievol_api.errors import RunFolderError, UserError
from semievol_api.records import Example
from semievol_api.report.labels import REVIEW_FILE, Decision, LabelTable, label_tables, read_decisions
from semievol_api.report.page import templates
from semievol_api.report.read_run import read_report_data, stored_settings
from semievol_api.store.artifacts import TunedModel
from semievol_api.store.run_store import load_artifact
from semievol_api.tasks import Task, load_task
from semievol_api.training.files import chat_jsonl, training_line


def model_card(run_folder: Path) -> str:
    """The card as Markdown, with the verdict's own numbers.

    Raises:
        RunFolderError: the folder is no run.
    """
    model = load_artifact(run_folder, "jobs/semievol-model", TunedModel)
    return templates(html=False).get_template("model_card.md.j2").render(data=read_report_data(run_folder), model=model)


Format: TypeAlias = Literal["openai", "parquet", "hf", "model-card"]
"""`openai`: chat JSONL ready for a fine-tuning API; `hf`: a folder for `datasets.load_from_disk`."""

_ROWS_AT_ONCE = 100_000


@dataclass(frozen=True)
class Label:
    """One label that is handed over; `source` is "pseudo" or "person"."""

    example: Example
    answer: str
    confidence: float | None
    source: Literal["pseudo", "person"]


def export_labels(run_folder: Path, out: Path, format: Format) -> int:
    """Write the run's labels and return how many there are (for a model card: 1).

    Raises:
        RunFolderError: the folder is no run, or `out` cannot be written.
        ConfigError: the format is `openai` and the run's task file is gone.
        UserError: the format is unknown.
    """
    if format not in get_args(Format):
        raise UserError(f"There is no export format {format!r}. Choose one of: {', '.join(get_args(Format))}.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if format == "model-card":
            out.write_text(model_card(run_folder), "utf-8")
            return 1
        labels = _Counted(selected_labels(run_folder))
        if format == "openai":
            task = _run_task(run_folder)
            with out.open("wb") as file:
                lines = (training_line(task, label.example, label.answer) for label in labels)
                file.writelines(chat_jsonl(lines).chunks())
        elif format == "parquet":
            _write_parquet(labels, out)
        else:
            _write_dataset(labels, out)
    except OSError as error:
        raise RunFolderError(
            f"The labels cannot be written to {str(out)!r}: {error.strerror or error}. Name another place with --out."
        ) from None
    return labels.count


def selected_labels(run_folder: Path) -> Iterator[Label]:
    """The kept pseudo-labels in the data's order; a person's answer replaces or adds one, a skip changes nothing."""
    decisions = read_decisions(run_folder / REVIEW_FILE)
    for table in label_tables(run_folder):
        for place in range(len(table)):
            label = _label(table, place, decisions)
            if label is not None:
                yield label


class _Counted:
    """Labels on their way, and how many came by."""

    def __init__(self, labels: Iterator[Label]) -> None:
        self._labels = labels
        self.count = 0

    def __iter__(self) -> Iterator[Label]:
        for label in self._labels:
            self.count += 1
            yield label


def _run_task(run_folder: Path) -> Task:
    """The task of a run, from the settings that its folder remembers.

    Raises:
        RunFolderError: the folder remembers no task.
        ConfigError: its file is gone.
    """
    try:
        name = str(stored_settings(run_folder)["data"]["task"])
    except (KeyError, TypeError):
        raise RunFolderError(
            f"The folder {str(run_folder)!r} does not say which task it solved, so prompts cannot be worded. Export "
            f"as parquet instead, or run the config again."
        ) from None
    return load_task(name)


def _label(table: LabelTable, place: int, decisions: Mapping[str, Decision]) -> Label | None:
    example, answer = table.examples[place], table.answers[place]
    confidence = float(table.confidences[place])
    score = None if confidence != confidence else confidence
    decision = decisions.get(example.id)
    if decision is not None and decision.answer is not None:
        return Label(example, decision.answer, score, "person")
    return Label(example, answer, score, "pseudo") if table.kept[place] and answer is not None else None


def _columns(labels: Sequence[Label]) -> dict[str, list[object]]:
    return {
        "id": [label.example.id for label in labels],
        "question": [label.example.question for label in labels],
        "options": [list(label.example.options) for label in labels],
        "answer": [label.answer for label in labels],
        "confidence": [label.confidence for label in labels],
        "source": [label.source for label in labels],
        "category": [label.example.category for label in labels],
    }


def _tables(labels: Iterable[Label]) -> Iterator[pa.Table]:
    """The labels as tables of many rows, at least one."""
    coming = iter(labels)
    some = list(itertools.islice(coming, _ROWS_AT_ONCE))
    while True:
        yield pa.table(_columns(some), schema=_schema())
        some = list(itertools.islice(coming, _ROWS_AT_ONCE))
        if not some:
            return


def _write_parquet(labels: Iterable[Label], out: Path) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(out, _schema(), compression="zstd") as writer:
        for table in _tables(labels):
            writer.write_table(table)


def _write_dataset(labels: Iterable[Label], out: Path) -> None:
    from datasets import Dataset
    from datasets.table import InMemoryTable

    Dataset(InMemoryTable(pa.concat_tables(_tables(labels)))).save_to_disk(str(out))


def _schema() -> pa.Schema:
    return pa.schema(
        [
            ("id", pa.string()),
            ("question", pa.string()),
            ("options", pa.list_(pa.string())),
            ("answer", pa.string()),
            ("confidence", pa.float64()),
            ("source", pa.string()),
            ("category", pa.string()),
        ]
    )
