"""Everything a server is told when it starts.

Knows nothing of HTTP or processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from semievol_providers.local.training_defaults import Auto as Auto
from semievol_providers.local.training_defaults import TrainDefaults as TrainDefaults
from semievol_providers.local.training_defaults import read_train_defaults as read_train_defaults
from semievol_providers.local.training_defaults import worker_environment as worker_environment


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The most that one request may ask for."""

    body_bytes: int = 16 * 2**20
    upload_bytes: int = 512 * 2**20
    samples: int = 128
    completion_tokens: int = 4096
    embed_inputs: int = 2048
    prompts: int = 128
    requests_in_flight: int = 4096
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
    limits: Limits = Limits()
