"""Does `auto` train as well as any setting near it? Plain fine-tuning on 100 labels, learning rate and steps varied.

    python -m benchmarks.sweep --data FOLDER --json                 what is measured so far; nothing is computed
    python -m benchmarks.sweep --data FOLDER --minutes 150          go on with the cells that are missing
    python -m benchmarks.sweep --data FOLDER --json --check         fail where `auto` does not keep its promises

FOLDER holds trec, fpb and banking77, each with labeled.csv and unlabeled.csv. A cell is one task, one draw of 100
labelled rows, one learning rate and one number of epochs; 400 rows of the unlabelled file with their gold are the
development set. It is trained by the trainer itself, read by the likeliest label (one forward pass, or several where
labels begin alike), and kept as a JSON file in benchmarks/results/sweep. A chat is a short system turn, the text and
the label: no list of labels, which would be most of the tokens. Test files are not opened. Knows nothing of the method.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import msgspec
import numpy as np

from semievol_api.capabilities import TrainSpec
from semievol_providers.local.packaged_models import folder_for
from semievol_providers.local.training_job import (
    StartingPoint,
    TrainDefaults,
    TrainingJob,
    read_train_defaults,
    training_job,
)

RESULTS = Path(__file__).parent / "results" / "sweep"
TASKS: Mapping[str, tuple[str, str]] = {
    "trec": ("text", "label"),
    "fpb": ("question", "gt"),
    "banking77": ("text", "label"),
}
LABELED, DEVELOPMENT = 100, 400
SEEDS = (0, 1, 2)
EARLIER = (2e-4, 14, 16)
"""Learning rate, epochs and batch of `auto` at a87899e, for models of this size."""
TIMES = ((1.0, 1.0), (0.4, 1.0), (2.0, 1.0), (1.0, 0.5), (1.0, 2.0), (0.4, 2.0), (2.0, 0.5))
"""Settings beside `auto`: its learning rate and its epochs, times these."""
PROMISED = {"trec": 80.0, "fpb": 91.0}
_READ_ROWS = 16
BEATEN_BY = 1.5
"""No setting may be better than `auto` by more percentage points, in the mean of all tasks and seeds."""


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement and all that decides it. `right` is the share of development rows, in percent."""

    model: str
    task: str
    seed: int
    learning_rate: float
    epochs: int
    batch_size: int
    labeled: int = LABELED
    right: float | None = None
    steps: int = 0
    trained_tokens: int = 0
    train_seconds: float = 0.0
    """CPU seconds of the training process."""

    @property
    def name(self) -> str:
        """Its file's name, without what was measured."""
        return (
            f"{self.model}-{self.task}-{self.labeled}-s{self.seed}-r{self.learning_rate:.1e}-e{self.epochs}"
            f"-b{self.batch_size}"
        )


@dataclass(frozen=True, slots=True)
class Row:
    """A text and its label."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class _Draw:
    labeled: list[Row]
    development: list[Row]
    labels: tuple[str, ...]


def draw(data: Path, name: str, seed: int) -> _Draw:
    """The labelled and the development rows of a seed; texts that occur in both files are no development rows."""
    text, label = TASKS[name]
    split: dict[str, list[Row]] = {}
    for part in ("labeled", "unlabeled"):
        with (data / name / f"{part}.csv").open(encoding="utf-8") as file:
            split[part] = [
                Row(_sentence(row[text]), row[label].replace("_", " ").lower()) for row in csv.DictReader(file)
            ]
    chance = np.random.default_rng([20261130, seed])
    labeled = [split["labeled"][i] for i in chance.permutation(len(split["labeled"]))[:LABELED]]
    known = {row.text for row in split["labeled"]}
    rest = [row for row in split["unlabeled"] if row.text not in known]
    development = [rest[i] for i in chance.permutation(len(rest))[:DEVELOPMENT]]
    labels = sorted({row.label for rows in split.values() for row in rows})
    return _Draw(labeled, development, tuple(labels))


def _sentence(question: str) -> str:
    """A question of fpb without the line that asks; its task says what is wanted."""
    return question.partition("of the following sentence:\n")[2] or question


def messages(text: str, label: str | None = None) -> list[dict[str, str]]:
    """A chat about a text, with or without its label."""
    asked = [{"role": "system", "content": "Give the label of the text."}, {"role": "user", "content": text}]
    return [*asked, {"role": "assistant", "content": label}] if label is not None else asked


def cells(model: str, defaults: TrainDefaults, tasks: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """All cells of the sweep, the most telling first; those of `auto` lead."""
    auto = defaults.resolve(TrainSpec(), LABELED)
    epochs, batch = auto.n_epochs or 1, auto.batch_size or 1
    settings = [
        (float(f"{defaults.learning_rate * rate:.1e}"), max(1, round(epochs * steps)), batch) for rate, steps in TIMES
    ]
    return [
        Cell(model=model, task=task, seed=seed, learning_rate=rate, epochs=n_epochs, batch_size=size)
        for seed in seeds
        for rate, n_epochs, size in (*settings, EARLIER)
        for task in tasks
    ]


def measure(cell: Cell, base: str, data: Path, work: Path, defaults: TrainDefaults) -> Cell:
    """Train and read one cell. A training that was killed goes on from its last saved step."""
    drawn = draw(data, cell.task, cell.seed)
    folder = work / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"messages": messages(row.text, row.label)}) + "\n" for row in drawn.labeled]
    (folder / "training_file").write_text("".join(lines), encoding="utf-8")
    spec = TrainSpec(n_epochs=cell.epochs, batch_size=cell.batch_size, seed=cell.seed, learning_rate_multiplier=1.0)
    chosen = msgspec.structs.replace(defaults, learning_rate=cell.learning_rate)
    job = training_job(spec, chosen, StartingPoint(base=base), folder, validates=False)
    job = msgspec.structs.replace(job, checkpoints_kept=0)
    job.write(folder / "job.json")
    seconds = _train(folder / "job.json")
    last = msgspec.json.decode((folder / "events.jsonl").read_bytes().splitlines()[-1])
    right = read(job, drawn)
    return msgspec.structs.replace(
        cell, right=right, steps=last["step"], trained_tokens=last["trained_tokens"], train_seconds=seconds
    )


def _train(job: Path) -> float:
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "semievol_providers.local.train", str(job)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, 1)


def read(job: TrainingJob, drawn: _Draw) -> float:
    """The share of development rows, in percent, whose likeliest label is the right one, token by token."""
    import torch

    from semievol_providers.local.chat_tokens import ChatTokens
    from semievol_providers.local.model_folder import end_of_turn_ids, load_tokenizer
    from semievol_providers.local.training_loop import with_adapter

    torch.set_num_threads(1)
    tokenizer = load_tokenizer(job.base)
    tokens, end = ChatTokens(tokenizer), min(end_of_turn_ids(job.base, tokenizer))
    model = with_adapter(msgspec.structs.replace(job, adapter=f"{job.folder}/adapter"), job.device).eval()
    options: dict[tuple[int, ...], str] = {(*tokens.encode_rendered(label), end): label for label in drawn.labels}
    prompts = [tokens.encode_chat(messages(row.text)) for row in drawn.development]
    said: list[tuple[int, ...]] = [()] * len(prompts)
    while asked := [i for i, start in enumerate(said) if len(_nexts(options, start)) > 0]:
        for i in asked:  # what can be followed by one token alone needs no model
            while len(_nexts(options, said[i])) == 1:
                said[i] += _nexts(options, said[i])
        asked = sorted((i for i in asked if _nexts(options, said[i])), key=lambda i: -len(prompts[i]))
        for start in range(0, len(asked), _READ_ROWS):
            part = asked[start : start + _READ_ROWS]
            for i, logits in zip(part, _next_logits(model, [prompts[i] + said[i] for i in part]), strict=True):
                nexts = _nexts(options, said[i])
                said[i] += (nexts[int(logits[list(nexts)].argmax())],)
    hits = [options[ids] == row.label for ids, row in zip(said, drawn.development, strict=True)]
    return round(100 * statistics.fmean(hits), 2)


def _nexts(options: Mapping[tuple[int, ...], str], start: tuple[int, ...]) -> tuple[int, ...]:
    """The tokens that may follow the beginning of a label, in order; none after a whole one."""
    longer = (ids for ids in options if len(ids) > len(start) and ids[: len(start)] == start)
    return tuple(sorted({ids[len(start)] for ids in longer}))


def _next_logits(model: Any, prompts: Sequence[tuple[int, ...]]) -> Any:
    """Logits (prompts, vocabulary) of each prompt's next token."""
    import torch

    from semievol_providers.local.training_cpu import RowPlan, is_quick

    with torch.no_grad():
        if not is_quick(model):
            ids = (torch.tensor([prompt]) for prompt in prompts)
            return torch.cat([model(input_ids=one, logits_to_keep=1, use_cache=False).logits[:, -1] for one in ids])
        lengths = [len(prompt) for prompt in prompts]
        return model(
            input_ids=torch.tensor([[token for prompt in prompts for token in prompt]]),
            position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
            logits_to_keep=torch.tensor(lengths).cumsum(0) - 1,
            use_cache=False,
            row_plan=RowPlan.of(lengths),
        ).logits[0]


def known(cell: Cell) -> Cell | None:
    """What was measured of a cell, or None."""
    path = RESULTS / f"{cell.name}.json"
    return msgspec.json.decode(path.read_bytes(), type=Cell) if path.is_file() else None


def summary(planned: Sequence[Cell]) -> dict[str, Any]:
    """Means over seeds by task and setting, how much the best one beats `auto`, and the cells that are missing."""
    found = {cell.name: done for cell in planned if (done := known(cell))}
    rows: list[dict[str, Any]] = []
    for rate, epochs in dict.fromkeys((cell.learning_rate, cell.epochs) for cell in planned):
        row: dict[str, Any] = {"learning_rate": rate, "epochs": epochs}
        for task in dict.fromkeys(cell.task for cell in planned):
            of_task = [c for c in planned if (c.task, c.learning_rate, c.epochs) == (task, rate, epochs)]
            row[task] = [found[c.name].right if c.name in found else None for c in of_task]
        rows.append(row)
    for row in rows:
        row["better_than_auto"] = _gain(rows[0], row)
    return {
        "auto": {task: _mean(values) for task, values in rows[0].items() if isinstance(values, list)},
        "settings": rows,
        "missing": [cell.name for cell in planned if cell.name not in found],
    }


def _gain(auto: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    """Percentage points in the mean of the cells that both have, tasks equally."""
    gains: list[float] = []
    for task, values in auto.items():
        if isinstance(values, list):
            pairs = [(a, b) for a, b in zip(values, other[task], strict=True) if a is not None and b is not None]
            if pairs:
                gains.append(statistics.fmean(b - a for a, b in pairs))
    return round(statistics.fmean(gains), 2) if gains else None


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return round(statistics.fmean(there), 2) if there else None


def main() -> None:
    """Measure what is missing for as long as is given, and print what is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2", help="a packaged model's name, or a folder")
    parser.add_argument("--tasks", nargs="+", choices=sorted(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--minutes", type=float, default=0.0, help="no cell is begun after so many")
    parser.add_argument("--work", type=Path, default=Path(gettempdir()) / "semievol-sweep")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true", help="fail where a promise is not kept")
    given = parser.parse_args()
    base = str(folder_for(given.model))
    defaults = read_train_defaults(Path(base), None)
    planned = cells(Path(base).name, defaults, given.tasks, given.seeds)
    until = time.monotonic() + 60 * given.minutes
    for cell in planned:
        if known(cell) is None and time.monotonic() < until:
            done = measure(cell, base, given.data, given.work, defaults)
            RESULTS.mkdir(parents=True, exist_ok=True)
            (RESULTS / f"{cell.name}.json").write_bytes(
                msgspec.json.format(msgspec.json.encode(done), indent=1) + b"\n"
            )
            print(f"{cell.name}: {done.right} after {done.train_seconds} CPU s", file=sys.stderr, flush=True)
    found = summary(planned)
    if given.json:
        print(json.dumps(found))
    else:
        for row in found["settings"]:
            print({name: _mean(value) if isinstance(value, list) else value for name, value in row.items()})
        print(f"{len(found['missing'])} of {len(planned)} cells are missing")
    if given.check:
        _check(found)


def _check(found: Mapping[str, Any]) -> None:
    if found["missing"]:
        sys.exit(f"{len(found['missing'])} cells are missing; go on with --minutes.")
    for task, least in PROMISED.items():
        if task in found["auto"] and found["auto"][task] < least:
            sys.exit(f"auto reaches {found['auto'][task]} on {task}; {least} is promised.")
    best = max(row["better_than_auto"] for row in found["settings"])
    if best > BEATEN_BY:
        sys.exit(f"A setting beats auto by {best} points; at most {BEATEN_BY} are promised.")


if __name__ == "__main__":
    main()
