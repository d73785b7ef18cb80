"""Everything a server is told when it starts, and what a model folder says about training it.

Knows nothing of HTTP or processes.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from semievol_api.errors import ConfigError

Auto: TypeAlias = Literal["auto"]


class TrainDefaults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `auto` means for a model: read from its `semievol_train.json` or from a TOML file.

    `learning_rate` is what a multiplier of 1 stands for. `n_epochs` of "auto" takes as many epochs as
    `target_steps` optimizer steps need, within [min_epochs, max_epochs].
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
    train_embeddings: bool = False
    warmup_share: float = 0.1
    weight_decay: float = 0.0
    tokens_per_pass: int = 1024
    threads: int = 1

    def batch_for(self, examples: int) -> int:
        """Examples per optimizer step for a file of this many examples."""
        return self.batch_size if self.batch_size != "auto" else max(1, min(16, examples // 4))

    def epochs_for(self, examples: int, batch_size: int) -> int:
        """Passes over a file of this many examples."""
        if self.n_epochs != "auto":
            return self.n_epochs
        per_epoch = -(-examples // batch_size)
        return max(self.min_epochs, min(self.max_epochs, round(self.target_steps / per_epoch)))


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The most that one request, or one key, may ask for; a rate of 0 is no limit.

    A body may pause for `body_pause_s`, and after that time must have come at `body_bytes_per_s` or more.
    """

    body_bytes: int = 16 * 2**20
    upload_bytes: int = 512 * 2**20
    body_pause_s: float = 30.0
    body_bytes_per_s: int = 1024
    idle_connection_s: float = 75.0
    samples: int = 128
    completion_tokens: int = 16384
    default_completion_tokens: int = 4096
    embed_inputs: int = 2048
    prompts: int = 128
    requests_in_flight: int = 4096
    requests_per_key: int = 2048
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    queued_jobs: int = 1000
    unfinished_batches: int = 200
    batch_requests: int = 50_000
    batch_bytes: int = 200 * 2**20
    batch_in_flight: int = 64
    batch_window_s: int = 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """One running server. `api_keys` empty means that no key is asked for."""

    model_folder: str
    name: str
    state: Path
    host: str = "127.0.0.1"
    port: int = 0
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    api_keys: tuple[str, ...] = ()
    threads: int = 1
    device: str = "cpu"
    train: TrainDefaults = field(default_factory=TrainDefaults)
    limits: Limits = field(default_factory=Limits)
    log_requests: bool = False


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


def read_limits(toml_file: Path | None) -> Limits:
    """The limits of a TOML file, or the usual ones.

    Raises:
        ConfigError: a key is unknown or a value has the wrong type.
    """
    if toml_file is None:
        return Limits()
    try:
        return msgspec.convert(tomllib.loads(toml_file.read_text(encoding="utf-8")), Limits)
    except (OSError, ValueError) as error:
        known = ", ".join(Limits.__struct_fields__)
        raise ConfigError(f"The limits in {str(toml_file)!r} cannot be used: {error}. Known keys: {known}.") from error
