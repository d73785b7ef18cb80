"""What one training is told and what it tells: from a `TrainSpec` to the job file, and the lines of its event log.

    resolved = defaults.resolve(spec, examples)            # what `auto` comes to for this file
    training_job(resolved, defaults, start, folder, validates=False).write(folder / "job.json")

A job's folder holds `job.json`, `events.jsonl`, `state/` (to resume from), `checkpoints/step-N/` and in the
end `adapter/`. Imports no torch. Knows nothing of how training is done or who asked for it.
"""

from __future__ import annotations

import math
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from semievol_api.capabilities import TrainSpec
from semievol_api.errors import ConfigError
from semievol_api.training.chat_jsonl import rule_batch, rule_epochs
from semievol_providers.local.disk import append_whole, cut_torn_line, write_whole
from semievol_providers.local.model_folder import read_facts

NO_SPACE = "disk_full"
"""The code of a failure that leaves a training to go on from its last saved step."""
EXIT_FAILED = 3
EXIT_STOPPED = 4
EXIT_NO_SPACE = 5
"""How the process of a training ends where it does not end well."""


Auto: TypeAlias = Literal["auto"]


class _TrainValues(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every value of a training that does not depend on its file: what a `TrainSpec` may leave open, none left open.

    `learning_rate` is what a multiplier of 1 stands for, or the product. `tokens_per_pass` limits how many padded
    tokens one forward pass takes; a batch is split to keep to it without changing the gradient. `threads` is part of
    the result: bits repeat at an equal thread count only. `packing` puts examples end to end; "auto" does so where
    FlashAttention is installed, and on a CPU over a base in bfloat16. `dtype` is the base's on a CPU, where "auto" is
    bfloat16 if the CPU multiplies in it and the folder's weights are in it, else float32; the adapter and the optimizer
    are always float32. `qlora` keeps the base in 4 bits. `patience` epochs without a lower validation loss
    end the training, and the best epoch's adapter is the result (0: all epochs, the last one's).
    """

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
    threads: int = 1
    packing: bool | Auto = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    qlora: bool = False
    validation_share: float = 0.0
    patience: int = 0


class TrainDefaults(_TrainValues, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a `TrainSpec` leaves open, for one model: by rule, or as its `semievol_train.json` or a TOML file says.

    `processes` above 1 trains on as many GPUs, by torchrun. `n_epochs` of "auto" takes as many epochs as
    `target_steps` optimizer steps need, within [min_epochs, max_epochs]; `target_steps` of "auto" follows from the
    number of examples alone, and takes steps of at most 8 of them.
    """

    batch_size: int | Auto = "auto"
    n_epochs: int | Auto = "auto"
    target_steps: int | Auto = 100
    min_epochs: int = 3
    max_epochs: int = 25
    processes: int = 1

    def resolve(self, spec: TrainSpec, examples: int) -> TrainSpec:
        """The same training with what depends on the file filled in, for one of this many examples."""
        batch = spec.batch_size or self._batch_for(examples)
        numbers: dict[str, int | float] = {
            "n_epochs": spec.n_epochs or self._epochs_for(examples, batch),
            "batch_size": batch,
            "learning_rate_multiplier": spec.learning_rate_multiplier or 1.0,
        }
        return spec.model_copy(update=numbers)

    def _batch_for(self, examples: int) -> int:
        if self.batch_size != "auto":
            return self.batch_size
        return rule_batch(examples) if self.target_steps == "auto" else max(1, min(16, examples // 4))

    def _epochs_for(self, examples: int, batch_size: int) -> int:
        if self.n_epochs != "auto":
            return self.n_epochs
        if self.target_steps == "auto":
            return rule_epochs(examples, batch_size)
        per_epoch = -(-examples // batch_size)
        return max(self.min_epochs, min(self.max_epochs, round(self.target_steps / per_epoch)))


_LARGEST_RATE = 3e-3
_WIDTH_EXPONENTS = {"llama": 0.781, "qwen": 0.0775}


def rule_rate(family: str, hidden_size: int) -> float:
    """The learning rate of a LoRA by the width of its model: 5e-4 (2000 / width)^P, at most 3e-3.

    P is 0.781 for Llama and 0.0775 for Qwen, as tinker-cookbook's `hyperparam_utils.get_lr` has fitted them; other
    families take the lower of both rates. docs/decisions/0016-the-auto-rule.md says why and how it was checked.

    >>> [f"{rule_rate('llama', width):.1e}" for width in (576, 4096)]
    ['1.3e-03', '2.9e-04']
    """
    known = [power for name, power in _WIDTH_EXPONENTS.items() if family.startswith(name)]
    width = 2000 / max(1, hidden_size)
    return min(_LARGEST_RATE, *(5e-4 * math.pow(width, power) for power in known or _WIDTH_EXPONENTS.values()))


class StartingPoint(msgspec.Struct, frozen=True, kw_only=True):
    """The model that a training begins with: the base's folder, an earlier adapter to go on from, and the device."""

    base: str
    adapter: str | None = None
    device: str = "cpu"


class TrainingJob(_TrainValues, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One training as its process reads it from `job.json`. `batch_size` is examples per optimizer step."""

    base: str
    training_file: str
    folder: str
    adapter: str | None = None
    validation_file: str | None = None
    seed: int = 0
    n_epochs: int = 3
    batch_size: int = 16
    checkpoints_kept: int = 3
    save_every_s: float = 30.0
    device: str = "cpu"

    @classmethod
    def read(cls, path: Path) -> TrainingJob:
        """The job of a job file."""
        return msgspec.json.decode(path.read_bytes(), type=cls)

    def write(self, path: Path) -> None:
        """Write the job file, whole or not at all."""
        write_whole(path, msgspec.json.encode(self))


def training_job(
    spec: TrainSpec, defaults: TrainDefaults, start: StartingPoint, folder: Path, *, validates: bool
) -> TrainingJob:
    """The job of a resolved spec, in a folder that holds `training_file` and, where it validates, `validation_file`."""
    if spec.n_epochs is None or spec.batch_size is None:
        raise ValueError("The spec leaves epochs or batch size open; resolve it first.")
    values = {name: value for name, value in msgspec.structs.asdict(defaults).items() if name in _VALUES}
    values |= {name: value for name, value in spec.given.items() if name in _VALUES}
    values["learning_rate"] = defaults.learning_rate * (spec.learning_rate_multiplier or 1.0)
    return TrainingJob(
        base=start.base,
        adapter=start.adapter,
        device=start.device,
        training_file=str(folder / "training_file"),
        validation_file=str(folder / "validation_file") if validates else None,
        folder=str(folder),
        seed=spec.seed or 0,
        n_epochs=spec.n_epochs,
        batch_size=spec.batch_size,
        **values,
    )


_VALUES = frozenset(_TrainValues.__struct_fields__)


def read_train_defaults(model_folder: Path, toml_file: Path | None) -> TrainDefaults:
    """The training defaults of a model: those of its folder's own file, else by rule; a TOML file's values before them.

    Raises:
        ConfigError: a key is unknown or a value has the wrong type.
        ModelFolderError: the folder holds no model.
    """
    own = model_folder / "semievol_train.json"
    facts = read_facts(model_folder)
    rule = TrainDefaults(learning_rate=rule_rate(facts.family, facts.hidden_size), target_steps="auto")
    source = toml_file or own
    try:
        if toml_file is not None:
            values = tomllib.loads(toml_file.read_text(encoding="utf-8"))
            return msgspec.convert({**msgspec.structs.asdict(rule), **values}, TrainDefaults)
        if own.is_file():
            return msgspec.json.decode(own.read_bytes(), type=TrainDefaults)
    except (OSError, ValueError) as error:
        known = ", ".join(TrainDefaults.__struct_fields__)
        raise ConfigError(
            f"The training defaults in {str(source)!r} cannot be used: {error}. Known keys: {known}."
        ) from error
    return rule


NO_BITSANDBYTES = (
    "Training over a base in 4 bits (qlora = true) needs the package 'bitsandbytes', which is not installed. Install "
    "it with: pip install bitsandbytes; or set qlora = false and lower tokens_per_pass instead, which trains the same "
    "adapter over the unchanged base."
)


def can_quantize() -> bool:
    """Whether bitsandbytes is installed; nothing is imported."""
    return find_spec("bitsandbytes") is not None


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

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers of a step or a checkpoint that are known, under the fine-tuning API's names."""
        named = {
            "step": self.step,
            "train_loss": self.train_loss,
            "train_mean_token_accuracy": self.token_accuracy,
            "full_valid_loss": self.valid_loss,
            "full_valid_mean_token_accuracy": self.valid_token_accuracy,
            "learning_rate": self.learning_rate,
        }
        return {name: value for name, value in named.items() if value is not None}


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
