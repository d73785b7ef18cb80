"""Cut the data of `semievol demo --model smollm2` out of Banking77, and that of its development beside it.

    python -m benchmarks.demo_llm --data FOLDER                      writes semievol_api/demo/llm/*.csv
    python -m benchmarks.demo_llm --data FOLDER --development OUT    the same task of other intents, to choose on

FOLDER holds the splits of the dataset (labeled.csv, unlabeled.csv, test.csv with `text,label`), which are put together
and cut anew. Intents with at least 105 messages are ordered by a hash of their names: the first 13 are the demo's,
the next 13 the development's. Messages are ordered by a hash of their text: 150 labelled, 800 unlabelled, the
rest up to 400 for the test. Every recipe is chosen on the development's intents. Knows nothing of models.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import semievol_api.demo

HOME = Path(semievol_api.demo.__file__).parent / "llm"
INTENTS, LEAST_MESSAGES = 13, 105
LABELED, UNLABELED, TEST = 150, 800, 400


@dataclass(frozen=True, slots=True)
class Message:
    """A customer's message and what it is about, as the dataset names it."""

    text: str
    intent: str


def read(folder: Path) -> list[Message]:
    """All messages of the dataset; texts that are equal up to case and spaces count once."""
    found: dict[str, Message] = {}
    for name in ("labeled", "unlabeled", "test"):
        with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                text = " ".join(row["text"].split())
                found.setdefault(text.casefold(), Message(text, row["label"]))
    return list(found.values())


def intents_of(messages: Sequence[Message], part: int) -> tuple[str, ...]:
    """The intents of the demo (part 0) or of its development (part 1), in alphabetical order."""
    counts: dict[str, int] = defaultdict(int)
    for message in messages:
        counts[message.intent] += 1
    able = sorted((name for name, count in counts.items() if count >= LEAST_MESSAGES), key=_place)
    return tuple(sorted(able[part * INTENTS : (part + 1) * INTENTS]))


def cut(messages: Sequence[Message], intents: Sequence[str]) -> Mapping[str, list[Message]]:
    """The three files' messages."""
    chosen = sorted((m for m in messages if m.intent in intents), key=lambda m: _place(m.text))
    ends = {"labeled": LABELED, "unlabeled": LABELED + UNLABELED, "test": LABELED + UNLABELED + TEST}
    starts = (0, *ends.values())
    return {name: chosen[start:end] for (name, end), start in zip(ends.items(), starts, strict=False)}


def write(parts: Mapping[str, Sequence[Message]], folder: Path) -> None:
    """The files, with ids that say where a message lies."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, messages in parts.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["id", "message", "intent"])
            writer.writerows((f"{name}-{i}", m.text, spoken(m.intent)) for i, m in enumerate(messages))


def spoken(intent: str) -> str:
    """An intent in words: `Refund_not_showing_up` is `refund not showing up`."""
    return intent.replace("_", " ").replace("?", "").lower()


def task_text(intents: Sequence[str]) -> str:
    """The task file."""
    labels = "".join(f'    "{spoken(intent)}",\n' for intent in intents)
    return (
        "# What does a bank's customer want? Messages of Banking77 (CC BY 4.0); see ../LICENSES.md.\n"
        'name = "banking-messages"\nkind = "labels"\ninstruction = "What is the customer\'s message about?"\n'
        f'labels = [\n{labels}]\n\n[columns]\nid = "id"\nquestion = "message"\nanswer = "intent"\n'
    )


def _place(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def main() -> None:
    """Write the demo's files, or the development's."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_llm", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--development", type=Path, metavar="OUT")
    chosen = parser.parse_args()
    messages = read(chosen.data)
    intents = intents_of(messages, 0 if chosen.development is None else 1)
    folder: Path = chosen.development or HOME
    parts = cut(messages, intents)
    write(parts, folder)
    (folder / "task.toml").write_text(task_text(intents), "utf-8")
    print(f"{', '.join(f'{len(rows)} {name}' for name, rows in parts.items())} messages in {folder}")


if __name__ == "__main__":
    main()
