"""`semievol export-model`: merge a trained adapter into its base model, as a folder that any tool opens, or push it.

The folder appears whole or not at all. Heavy imports stand inside. Knows nothing of runs or jobs.
"""

from __future__ import annotations

import errno
import json
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from semievol_api.errors import UserError
from semievol_providers.local.model_folder import (
    check_adapter,
    check_adapter_fits,
    load_tokenizer,
    quiet_known_warnings,
    read_facts,
)

_ROOM = 1.05
"""Of the base model's bytes: the merged model has as many, and its tokenizer a few more."""


def export(
    adapter: Annotated[Path, typer.Argument(help="Folder of an adapter, such as .../jobs/ftjob-.../adapter.")],
    target: Annotated[Path, typer.Argument(help="Folder to write. It must not exist.")],
    base: Annotated[Path | None, typer.Option(help="The base model. Default: the one that it was trained on.")] = None,
    push: Annotated[
        str | None, typer.Option(help="Also push to this private OWNER/NAME on the Hugging Face hub.")
    ] = None,
) -> None:
    """Merge an adapter into its base model and write safetensors, tokenizer and model card."""
    folder = merge(adapter, target, base)
    sys.stdout.write(f"The merged model is in {folder}\n")
    if push is not None:
        sys.stdout.write(f"Pushed to {_push(folder, push)}\n")


def merge(adapter: Path, target: Path, base: Path | None = None) -> Path:
    """Write the merged model; returns its folder.

    Raises:
        UserError: the adapter or its base is missing or they do not fit, or the disk is full.
    """
    check_adapter(str(adapter))
    source = str(base) if base is not None else _recorded_base(adapter)
    facts = read_facts(source)
    check_adapter_fits(str(adapter), source)
    if target.exists():
        raise UserError(f"The folder {str(target)!r} exists already. Name another one, or remove it first.")
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < facts.weight_bytes * _ROOM:
        raise _disk_full(target, facts.weight_bytes, free)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write(source, str(adapter), partial)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if error.errno == errno.ENOSPC:
            raise _disk_full(target, facts.weight_bytes, shutil.disk_usage(target.parent).free) from error
        raise
    partial.replace(target)
    return target


def _write(base: str, adapter: str, folder: Path) -> None:
    import torch
    import transformers
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    quiet_known_warnings()
    config: Any = transformers.AutoConfig.from_pretrained(base, local_files_only=True)
    dtype = config.dtype or torch.float32
    # In float32, since a small change added to a 16-bit weight is rounded away.
    model: Any = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    wrapped: Any = PeftModel.from_pretrained(model, adapter)
    merged: Any = wrapped.merge_and_unload().to(dtype)
    folder.mkdir(parents=True)
    merged.save_pretrained(str(folder))
    load_tokenizer(base).save_pretrained(str(folder))
    (folder / "README.md").write_text(_merged_card(base, adapter), encoding="utf-8")


def _recorded_base(adapter: Path) -> str:
    recorded = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not recorded or not Path(recorded).is_dir():
        raise UserError(
            f"The adapter {str(adapter)!r} was trained on {recorded!r}, which is no folder here. Name its base model's "
            "folder with --base."
        )
    return str(recorded)


def _push(folder: Path, repo: str) -> str:
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repo, private=True, exist_ok=True)
    return str(api.upload_folder(repo_id=repo, folder_path=str(folder)))


def _disk_full(target: Path, needed: int, free: int) -> UserError:
    return UserError(
        f"The disk of {str(target.parent)!r} has {free / 1e9:.1f} GB free, and the merged model needs about "
        f"{needed * _ROOM / 1e9:.1f} GB. Free some space or name a folder on another disk; nothing was left behind."
    )


def _merged_card(base: str, adapter: str) -> str:
    """The card of a model that an adapter was merged into."""
    return (
        f"---\nbase_model: {base}\nlibrary_name: transformers\npipeline_tag: text-generation\n"
        "tags:\n- semievol\n---\n\n"
        f"# {Path(base).name}, fine-tuned\n\n"
        f"The base model with the adapter `{Path(adapter).name}` merged into its weights by semievol-api. The base "
        "model's licence holds for it too.\n"
    )
