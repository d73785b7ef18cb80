"""A server's settings and limits.

Knows nothing of HTTP or processes.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from semievol_api.errors import ConfigError
from semievol_providers.local.requests import DtypeName
from semievol_providers.local.training_job import TrainDefaults


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The most that one request, or one key, may ask for; a rate of 0 is no limit.

    `requests_in_flight` and the names with `_all_keys` are lids over all keys together; of the first, no key holds more
    than it leaves free, so that the next one finds room. `batch_in_flight` counts the
    requests that the batches of one key ask at a time.
    A body may pause for `body_pause_s`, and after that time must have come at `body_bytes_per_s` or more. An engine
    that says nothing for `engine_silence_s` is started again. What waits for a disk with room, or broke, is tried
    again after `retry_s`. A deployment takes `deployment_start_s` to get ready, and
    its owner is told that it costs `deployment_usd_per_hour`.
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
    queued_jobs_all_keys: int = 10_000
    unfinished_batches: int = 200
    unfinished_batches_all_keys: int = 2_000
    batch_requests: int = 50_000
    batch_bytes: int = 200 * 2**20
    batch_in_flight: int = 64
    batch_window_s: int = 24 * 3600
    engine_silence_s: Annotated[float, Meta(gt=0)] = 60.0
    retry_s: Annotated[float, Meta(gt=0)] = 10.0
    deployment_start_s: Annotated[float, Meta(ge=0)] = 0.0
    deployment_usd_per_hour: Annotated[float, Meta(ge=0)] = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """One running server. `api_keys` empty means that no key is asked for.

    With `deployments` a tuned model answers only while it is deployed.
    """

    model_folder: str
    name: str
    state: Path
    host: str = "127.0.0.1"
    port: int = 0
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    api_keys: tuple[str, ...] = ()
    threads: int = 1
    dtype: DtypeName = "auto"
    device: str = "cpu"
    train: TrainDefaults = field(default_factory=TrainDefaults)
    limits: Limits = field(default_factory=Limits)
    log_requests: bool = False
    deployments: bool = False

    def __post_init__(self) -> None:
        if self.train.processes > 1:
            raise ConfigError(
                f"The training defaults say processes = {self.train.processes}, and the server trains in one process. "
                "Set processes = 1, or train with the provider 'local'."
            )


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
