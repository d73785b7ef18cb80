"""The vendors' differences as data: one `Preset` per table of presets.toml.

Knows nothing of keys' values, requests or the user's config.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

OptionRead: TypeAlias = Literal["prefill", "position", "off"]
MaxTokensField: TypeAlias = Literal["max_tokens", "max_completion_tokens"]
KeyHeader: TypeAlias = Literal["authorization", "api-key"]
LogprobsShape: TypeAlias = Literal["openai", "flat"]
Lack: TypeAlias = Literal["fine-tuning", "batches", "log-probabilities", "embeddings"]


class Preset(BaseModel):
    """How one vendor wants to be spoken to; presets.toml explains the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    organization_env: str | None = None
    project_env: str | None = None
    continue_final_message: bool
    option_read: OptionRead
    max_tokens_field: MaxTokensField
    suffix_chars: int
    top_logprobs: int = 20
    logprobs_shape: LogprobsShape = "openai"
    lacks: list[Lack] = []
    key_header: KeyHeader = "authorization"
    api_version: str | None = None
    deployment_paths: bool = False
    job_metadata: bool = True
    job_method: bool = True
    job_hyperparameters: dict[str, bool | int | float | str] = {}


def load_presets() -> Mapping[str, Preset]:
    """All presets of the package by vendor name."""
    text = resources.files("semievol_providers.openai").joinpath("presets.toml").read_text(encoding="utf-8")
    return {vendor: Preset.model_validate(table) for vendor, table in tomllib.loads(text).items()}


def vendor_at(base_url: str | None) -> str:
    """The vendor meant by a config that names none: OpenAI at its own address, else a compatible server."""
    if base_url is None or urlsplit(base_url).hostname == "api.openai.com":
        return "openai"
    return "compatible"
