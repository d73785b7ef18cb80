"""What `auto` means for a training, and the variables of a process that computes.

Read from the model folder's own `semievol_train.json`, from a TOML file, or chosen by the model's size. Knows
nothing of HTTP, jobs or how training is done.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from semievol_api.errors import ConfigError
from semievol_providers.local.training_job import TrainingJob

Auto: TypeAlias = Literal["auto"]


class TrainDefaults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `auto` means for a model: read from its `semievol_train.json` or from a TOML file.

    `processes` above 1 trains on as many GPUs, by torchrun. `target_modules` is "all-linear", or names by commas.
    `learning_rate` is what a multiplier of 1 stands for. `n_epochs` of "auto" takes as many epochs as
    `target_steps` optimizer steps need, within [min_epochs, max_epochs]. `packing`, `qlora`, `validation_share` and
    `patience` are those of `TrainingJob`.
    """

    learning_rate: float = 2e-4
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    batch_size: int | Auto = "auto"
    n_epochs: int | Auto = "auto"
    target_steps: int = 100
    min_epochs: int = 3
    max_epochs: int = 25
    use_dora: bool = False
    use_rslora: bool = False
    target_modules: str = "all-linear"
    train_embeddings: bool = False
    warmup_share: float = 0.1
    weight_decay: float = 0.0
    tokens_per_pass: int = 1024
    threads: int = 1
    processes: int = 1
    packing: bool | Auto = "auto"
    qlora: bool = False
    validation_share: float = 0.0
    patience: int = 0

    def batch_for(self, examples: int) -> int:
        """Examples per optimizer step for a file of this many examples."""
        return self.batch_size if self.batch_size != "auto" else max(1, min(16, examples // 4))

    def epochs_for(self, examples: int, batch_size: int) -> int:
        """Passes over a file of this many examples."""
        if self.n_epochs != "auto":
            return self.n_epochs
        per_epoch = -(-examples // batch_size)
        return max(self.min_epochs, min(self.max_epochs, round(self.target_steps / per_epoch)))

    def job_settings(self) -> dict[str, Any]:
        """What stands in a job's file under the same name as here."""
        shared = set(TrainingJob.__struct_fields__) - {"batch_size", "n_epochs", "learning_rate"}
        return {name: value for name, value in msgspec.structs.asdict(self).items() if name in shared}


def worker_environment(threads: int) -> dict[str, str]:
    """Variables of a process that computes: threads wait without spinning, which on shared cores costs 20 x."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }


def read_train_defaults(model_folder: Path, weight_bytes: int, toml_file: Path | None) -> TrainDefaults:
    """The training defaults of a model: the TOML file's, else the model folder's own, else by size.

    Raises:
        ConfigError: a key is unknown or a value has the wrong type.
    """
    own = model_folder / "semievol_train.json"
    source = toml_file or own
    try:
        if toml_file is not None:
            return msgspec.convert(tomllib.loads(toml_file.read_text(encoding="utf-8")), TrainDefaults)
        if own.is_file():
            return msgspec.json.decode(own.read_bytes(), type=TrainDefaults)
    except (OSError, ValueError) as error:
        known = ", ".join(TrainDefaults.__struct_fields__)
        raise ConfigError(
            f"The training defaults in {str(source)!r} cannot be used: {error}. Known keys: {known}."
        ) from error
    return TrainDefaults(learning_rate=3e-3 if weight_bytes < 100 * 2**20 else 2e-4)
