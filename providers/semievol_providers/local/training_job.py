"""What one training is told and what it tells: the job file and the lines of its event log.

A job's folder holds `job.json`, `events.jsonl`, `state/` (to resume from), `checkpoints/step-N/` and in the
end `adapter/`. Imports no torch. Knows nothing of how training is done or who asked for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from semievol_providers.local.whole_files import append_whole, cut_torn_line, write_whole

NO_SPACE = "disk_full"
"""The code of a failure that leaves a training to go on from its last saved step."""


class TrainingJob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one training. `batch_size` is examples per optimizer step, whatever fits memory at once.

    `tokens_per_pass` limits how many padded tokens one forward pass takes; a batch is split to keep to it
    without changing the gradient. `adapter` is an earlier adapter to go on from.
    `threads` is part of the result: bits repeat at an equal thread count only. `packing` puts examples end to end;
    "auto" does so where FlashAttention is installed. `qlora` keeps the base in 4 bits. Without a validation file,
    `validation_share` of the examples are held out; `patience` epochs without a lower validation loss end the
    training, and the best epoch's adapter is the result (0: all epochs, the last one's).
    """

    base: str
    training_file: str
    folder: str
    adapter: str | None = None
    validation_file: str | None = None
    seed: int = 0
    n_epochs: int = 3
    batch_size: int = 16
    learning_rate: float = 2e-4
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    use_dora: bool = False
    use_rslora: bool = False
    target_modules: str = "all-linear"
    train_embeddings: bool = False
    warmup_share: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    tokens_per_pass: int = 1024
    checkpoints_kept: int = 3
    save_every_s: float = 30.0
    threads: int = 1
    device: str = "cpu"
    packing: bool | Literal["auto"] = "auto"
    qlora: bool = False
    validation_share: float = 0.0
    patience: int = 0

    @classmethod
    def read(cls, path: Path) -> TrainingJob:
        """The job of a job file."""
        return msgspec.json.decode(path.read_bytes(), type=cls)

    def write(self, path: Path) -> None:
        """Write the job file, whole or not at all."""
        write_whole(path, msgspec.json.encode(self))


class TrainingEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of `events.jsonl`.

    A resumed training writes the steps since its last saved state once more: equal `kind` and `step` mean the
    same event. `failed` and `done` are last words. A `note` tells of something that the trainer decided.
    """

    kind: Literal["start", "step", "validation", "checkpoint", "done", "failed", "stopped", "note"]
    step: int = 0
    total_steps: int = 0
    epoch: int = 0
    train_loss: float | None = None
    token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_token_accuracy: float | None = None
    learning_rate: float | None = None
    eta_s: float | None = None
    trained_tokens: int | None = None
    folder: str | None = None
    code: str | None = None
    message: str | None = None


class EventLog:
    """Appends events to a job's `events.jsonl`, one whole line each; a line torn by a kill is cut off at the start."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "events.jsonl"
        self._begun = False

    def write(self, event: TrainingEvent) -> None:
        """Append one event; it is in the file when this returns.

        Raises:
            OSError: it finds no place, and nothing of it is there.
        """
        if not self._begun:
            cut_torn_line(self._path)
            self._begun = True
        append_whole(self._path, msgspec.json.encode(event) + b"\n")


def read_events(folder: Path, offset: int) -> tuple[list[TrainingEvent], int]:
    """Whole events written after the byte `offset`, and the offset to go on from."""
    path = folder / "events.jsonl"
    if not path.exists():
        return [], offset
    with path.open("rb") as log:
        log.seek(offset)
        data = log.read()
    whole = data.rfind(b"\n") + 1
    lines = [line for line in data[:whole].split(b"\n") if line]
    events: list[TrainingEvent] = []
    for line in lines:
        try:
            events.append(msgspec.json.decode(line, type=TrainingEvent))
        except msgspec.DecodeError:
            continue  # a line cut by a kill and continued by the next run
    return events, offset + whole
