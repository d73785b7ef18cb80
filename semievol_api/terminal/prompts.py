"""The exact prompts of a few examples, before a cent is spent.

Renders what `collaborate` would send, with the first labelled examples as demonstrations where neighbours are
not known yet. Knows nothing of providers; sends nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from semievol_api.config import Config
from semievol_api.data import read_data
from semievol_api.records import Example, Prompt
from semievol_api.tasks import load_task
from semievol_api.terminal.bars import out
from semievol_api.tokens import TokenCounter, token_counter


def show_prompts(config: Config, rows: int, *, as_json: bool) -> None:
    """Print the zero-shot and few-shot prompts of the first `rows` unlabelled examples."""
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
        console.print("The demonstrations here are the first labelled rows; a run shows each question its neighbours.")


def _shot_sets(labeled: Sequence[Example], config: Config) -> list[tuple[Example, ...]]:
    few = () if config.run.propagation == "in-weight" else tuple(labeled[: config.annotate.max_shots])
    return [(), few] if few else [()]


def _rendered(prompt: Prompt, counter: TokenCounter) -> dict[str, object]:
    messages = [{"role": m.role, "content": m.content} for m in prompt.messages]
    return {"tokens": counter.count(prompt), "messages": messages}
