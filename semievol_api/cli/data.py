"""`semievol init`, `check` and `preview`: a task from the user's file, its faults, its prompts; nothing is sent.

Check also tells what the run will leave out of the data, and labels that nothing teaches. Heavy imports stand inside
the functions. Knows nothing of the network.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from semievol_api.cli.screen import AsJson, ConfigPath, OnDay, out, pairs
from semievol_api.errors import UserError

if TYPE_CHECKING:
    from semievol_api.config.settings import Config
    from semievol_api.data import Starter
    from semievol_api.planning.tokens import TokenCounter
    from semievol_api.records import Example, Prompt


def init(
    data: Annotated[Path, typer.Argument(help="The labelled data: CSV, JSONL or Parquet.")],
    folder: Annotated[Path, typer.Option(help="Folder for task.toml and semievol.toml.")] = Path(),
    unlabeled: Annotated[Path | None, typer.Option(help="The unlabelled data.")] = None,
    test: Annotated[Path | None, typer.Option(help="The test data.")] = None,
    question: Annotated[str | None, typer.Option(help="Column with the question. Default: guessed.")] = None,
    answer: Annotated[str | None, typer.Option(help="Column with the answer. Default: guessed.")] = None,
) -> None:
    """Write a task file and a config for your data."""
    from semievol_api.data import start

    _write_starter(start(data, unlabeled, test, question=question, answer=answer), folder)


def check(config: ConfigPath, as_json: AsJson = False, on: OnDay = None) -> None:
    """Validate a config, its data and its providers. Sends nothing."""
    from semievol_api.config.settings import load_config

    _show_check(load_config(config), config.name, on.date() if on else None, as_json=as_json)


def preview(
    config: ConfigPath,
    rows: Annotated[int, typer.Option(min=1, help="Number of examples.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Show the prompts of a few examples with their token counts. Sends nothing."""
    from semievol_api.config.settings import load_config

    _show_prompts(load_config(config), rows, as_json=as_json)


def _show_check(config: Config, name: str, today: datetime.date | None, *, as_json: bool) -> None:
    """Print what a good config comes to.

    Raises:
        UserError: something needs mending.
    """
    from semievol_api.planning.checking import check_run

    found = check_run(config, today)
    if as_json:
        document = {"ok": True, **found.facts, "notices": list(found.notices)}
        sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")
        return
    pairs(out(), f"{name} is valid", found.facts)
    for notice in found.notices:
        out().print(f"! {notice}", markup=False)


def _show_prompts(config: Config, rows: int, *, as_json: bool) -> None:
    """Print the zero-shot and few-shot prompts of the first `rows` unlabelled examples."""
    from semievol_api.data import read_data
    from semievol_api.planning.tokens import token_counter
    from semievol_api.tasks import load_task

    task = load_task(config.data.task)
    raw = read_data(config.data, task)
    counter = token_counter(config.roles.student.model, config.roles.tokenizer)
    shown: list[dict[str, Any]] = [
        {"example_id": example.id, "shots": len(shots), **_rendered(task.prompt(example, shots), counter)}
        for example in raw.unlabeled[:rows]
        for shots in _shot_sets(raw.labeled, config)
    ]
    if as_json:
        sys.stdout.write(json.dumps({"tokens_by": counter.name, "prompts": shown}, ensure_ascii=False, indent=2) + "\n")
        return
    console = out()
    for item in shown:
        console.rule(f"{item['example_id']} · {item['shots']} shots · {item['tokens']} tokens ({counter.name})")
        for message in item["messages"]:
            console.print(f"[bold]{message['role']}[/bold]")
            console.print(message["content"], markup=False, soft_wrap=True)
    if any(item["shots"] for item in shown):
        console.rule()
        console.print(
            "The demonstrations shown are the first labelled rows. A run uses the nearest neighbours of each question."
        )


def _shot_sets(labeled: Sequence[Example], config: Config) -> list[tuple[Example, ...]]:
    few = () if config.run.propagation == "in-weight" else tuple(labeled[: config.annotate.max_shots])
    return [(), few] if few else [()]


def _rendered(prompt: Prompt, counter: TokenCounter) -> dict[str, object]:
    messages = [{**m.body, "content": m.content or m.more} for m in prompt.messages]
    return {"tokens": counter.count(prompt), "messages": messages}


def _write_starter(starter: Starter, folder: Path) -> None:
    """Write the files side by side in `folder`; refuses to overwrite any of them.

    Raises:
        UserError: a file is there already.
    """
    there = [name for name in starter.files if (folder / name).exists()]
    if there:
        raise UserError(
            f"The folder {str(folder)!r} holds {', '.join(there)} already; nothing was written. Remove it, or "
            f"choose another place with --folder."
        )
    from semievol_api.tasks.definition import KINDS

    folder.mkdir(parents=True, exist_ok=True)
    for name, text in starter.files.items():
        (folder / name).write_text(text, "utf-8")
    console = out()
    found = starter.understanding
    chats = found.columns.messages is not None
    columns = {k: v for k, v in found.columns.model_dump(mode="json", exclude_unset=chats).items() if v}
    answers = ", ".join(f"{answer} ({count})" for answer, count in found.answer_counts)
    more = {"answers": answers} if KINDS[found.kind].closed else {}
    facts = {"rows": found.rows, "kind": found.kind, **columns, **more}
    pairs(console, f"Recognised in {found.source}", facts)
    for line in (*found.reasons, *starter.remarks):
        console.print(f"- {line}", markup=False)
    console.print(f"Wrote {', '.join(starter.files)} into {folder.resolve()}.", markup=False)
    edit = "" if chats else "Edit the instruction in task.toml so that it says what you would ask a person. "
    console.print(f"{edit}Then: semievol preview {folder / 'semievol.toml'}", markup=False)
