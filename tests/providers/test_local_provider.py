"""Provider `local`: what it refuses, its exact option reads, its jobs across kills, and adapters by path."""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from local_samples import training_lines
from local_truths import forward_pass, tuned_model
from safetensors.torch import load_file, save_file

from semievol_api.capabilities import (
    ChatRequest,
    FineTuneRequest,
    OptionRequest,
    Provider,
    ProviderSettings,
    TrainSpec,
)
from semievol_api.errors import ConfigError, MissingExtraError, RefusedError, UserError
from semievol_api.planning.catalogue import load_catalogue
from semievol_api.planning.limits import with_limits
from semievol_api.records import Message, Prompt
from semievol_providers.local.chat_tokens import label_token_ids
from semievol_providers.local.children import PRELOADED
from semievol_providers.local.provider import connect

pytest_plugins = ("local_fixtures",)
PROMPT = Prompt((Message("user", "Question: which?\n\nOptions:\nA. one\nB. two"),), "Answer:")
Open = Callable[..., Provider]


@pytest.fixture
async def open_provider(tiny_model: Path, tmp_path: Path) -> AsyncIterator[Open]:
    """Connects provider `local` in a fresh folder; closes all that were opened."""
    opened: list[Provider] = []

    def connected(**options: Any) -> Provider:
        given = {"model": str(tiny_model), "name": "tiny", "device": "cpu", "train": {"rank": 4, "alpha": 8}} | options
        settings = ProviderSettings(name="home", options=given, environ={}, base_folder=str(tmp_path))
        opened.append(connect(settings))
        return opened[-1]

    yield connected
    for provider in opened:
        await provider.aclose()


def _training(key: str, lines: int = 24, epochs: int = 2) -> FineTuneRequest:
    return FineTuneRequest(
        model="tiny", training_file=training_lines(lines).encode(), run_key=key, suffix="t",
        spec=TrainSpec(n_epochs=epochs, batch_size=4, seed=3),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ planning
def test_connecting_imports_no_torch(tiny_model: Path, child_env: dict[str, str]) -> None:
    code = (
        "import sys\nfrom semievol_api.capabilities import ProviderSettings\n"
        "from semievol_providers.local.provider import connect\n"
        f"connect(ProviderSettings(name='home', options={{'model': {str(tiny_model)!r}}}, environ={{}}))\n"
        "assert not {'torch', 'transformers', 'peft', 'numpy.testing'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=child_env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_tokens_and_trainings_cost_nothing_here(open_provider: Open) -> None:
    limits = with_limits(open_provider(), load_catalogue()).limits
    for name in ("tiny", "ft:tiny:of-a-job"):
        assert (limits[name].input_usd, limits[name].output_usd) == (0, 0)
    assert limits["tiny"].training_usd == 0


def test_unknown_keys_are_refused_with_the_nearest_name(open_provider: Open) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'treads'. Did you mean 'threads'"):
        open_provider(treads=2)
    with pytest.raises(ConfigError, match=r"providers.home.train.*ranks"):
        open_provider(train={"ranks": 4})


def test_a_missing_package_is_told_before_anything_runs(open_provider: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semievol_providers.local.provider.find_spec", lambda name: name != "peft" or None)
    with pytest.raises(MissingExtraError, match=r"'peft'.*semievol-api\[local\]"):
        open_provider()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: shutil.rmtree(f), "no config.json"),
        (lambda f: (f / "model.safetensors").unlink(), "no .*safetensors file"),
        (lambda f: os.truncate(f / "model.safetensors", 5000), "cut off"),
        (lambda f: (f / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "pointer"),
        (
            lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-2.safetensors"}}'),
            "1 of 1 weight files are missing, model-2.safetensors first",
        ),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda f: [p.unlink() for p in f.glob("chat_template*")], r"no chat template.*instruct version"),
    ],
    ids=["missing", "no weights", "cut off", "pointer", "shard", "no tokenizer", "no template"],
)
def test_a_damaged_model_folder_is_one_calm_paragraph(
    open_provider: Open, tiny_model: Path, tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_model, folder)
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "chat_template"}))
    damage(folder)
    with pytest.raises(UserError, match=words) as refused:
        open_provider(model=str(folder))
    assert "\n" not in str(refused.value)


# ------------------------------------------------------------------------------------------------- reading
async def test_option_reads_equal_a_plain_forward_pass(open_provider: Open, tiny_model: Path) -> None:
    provider = open_provider()
    assert provider.option_reader is not None
    labels = ("A", "B", "x")
    reply = await provider.option_reader.read(OptionRequest(model="tiny", prompt=PROMPT, labels=labels))
    assert reply.logprobs == pytest.approx(forward_pass(tiny_model, PROMPT, labels), abs=1e-4)


async def test_reads_that_wait_together_have_the_bits_of_a_lone_one(open_provider: Open) -> None:
    reader = open_provider().option_reader
    assert reader is not None
    requests = [
        OptionRequest(
            model="tiny", prompt=Prompt((Message("user", "x" * (7 * i)),), "Answer:"), labels=("A", "B", "Qx")
        )
        for i in range(12)
    ]
    alone = [await reader.read(request) for request in requests]
    together = await asyncio.gather(*(reader.read(request) for request in requests))
    assert [r.logprobs for r in together] == [r.logprobs for r in alone]
    assert all(r.logprobs[2] is None for r in alone), "a label of two tokens is not read"


def test_a_label_is_every_single_token_that_spells_it() -> None:
    words = {"A": [5], " A": [6], "up": [7, 8], " up": [9], "Z": [1, 2], " Z": [3, 4]}
    spell = {(5,): "A", (6,): " A", (9,): " up"}
    assert label_token_ids("A", words.__getitem__, lambda ids: spell[tuple(ids)]) == (5, 6)
    assert label_token_ids(" up", words.__getitem__, lambda ids: spell[tuple(ids)]) == (9,)
    assert label_token_ids("Z", words.__getitem__, lambda ids: spell[tuple(ids)]) == ()


async def test_seeded_samples_repeat_and_differ_among_themselves(open_provider: Open) -> None:
    chat = open_provider().chat
    assert chat is not None
    request = ChatRequest(model="tiny", prompt=Prompt(PROMPT.messages), max_tokens=8, n=4, seed=5, logprobs=True)
    first, again = await chat.complete(request), await chat.complete(request)
    assert [c.text for c in first.completions] == [c.text for c in again.completions]
    assert len({c.text for c in first.completions}) == 4
    assert first.completions[0].token_logprobs is not None
    assert math.isfinite(float(first.completions[0].token_logprobs.sum()))


async def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(open_provider: Open) -> None:
    chat = open_provider().chat
    assert chat is not None
    with pytest.raises(RefusedError, match=r"maximum context length is 512 tokens.*requested"):
        await chat.complete(ChatRequest(model="tiny", prompt=Prompt((Message("user", "x" * 600),)), max_tokens=4))


async def test_a_gpu_that_is_too_small_is_one_calm_paragraph_and_the_engine_lives_on(
    open_provider: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated at the forward pass, since no GPU is here: torch raises the same error there."""
    from transformers import LlamaForCausalLM

    reader = open_provider().option_reader
    assert reader is not None
    request = OptionRequest(model="tiny", prompt=PROMPT, labels=("A", "B"))

    def starved(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with monkeypatch.context() as small:
        small.setattr(LlamaForCausalLM, "forward", starved)
        with pytest.raises(UserError, match=r"ran out of memory while answering as 'tiny'.*goes on where") as refused:
            await reader.read(request)
        small.setattr("semievol_providers.local.engine.load_model", starved)
        other = open_provider(state="other").option_reader
        assert other is not None
        with pytest.raises(UserError, match="ran out of memory while loading the model"):
            await other.read(request)
    assert "\n" not in str(refused.value)
    assert (await reader.read(request)).logprobs[0] is not None


async def test_an_unknown_model_is_refused_by_name(open_provider: Open) -> None:
    chat = open_provider().chat
    assert chat is not None
    with pytest.raises(RefusedError, match="no model 'ft:tiny:local:none'"):
        await chat.complete(ChatRequest(model="ft:tiny:local:none", prompt=Prompt(PROMPT.messages), max_tokens=1))


# -------------------------------------------------------------------------------------------------- jobs
async def test_a_trained_model_answers_otherwise_than_its_base(open_provider: Open) -> None:
    provider = open_provider()
    assert provider.option_reader is not None
    name = await tuned_model(provider.finetuner, _training("key-one"))
    assert name == "ft:tiny:local:t:key-one"
    read = [
        await provider.option_reader.read(OptionRequest(model=model, prompt=PROMPT, labels=("A", "B")))
        for model in ("tiny", name)
    ]
    assert read[0].logprobs != read[1].logprobs


async def test_a_job_killed_with_its_process_is_found_and_ends_with_the_same_weights(
    open_provider: Open, tmp_path: Path
) -> None:
    train = {"rank": 4, "alpha": 8}
    calm, cut = open_provider(state="calm", train=train), open_provider(state="cut", train=train)
    request = _training("key-two", epochs=3)
    await tuned_model(calm.finetuner, request)
    assert cut.finetuner is not None
    ticket = await cut.finetuner.submit(request)
    job = tmp_path / "cut" / "jobs" / ticket.job_id
    for _ in range(2000):
        await asyncio.sleep(0.01)
        if (job / "state.safetensors").exists():
            break
    os.kill(cut.finetuner._running.process.pid, signal.SIGKILL)  # type: ignore[attr-defined]
    later = open_provider(state="cut", train=train)
    assert later.finetuner is not None
    assert await later.finetuner.find(request) == ticket
    await tuned_model(later.finetuner, request)
    a, b = (
        load_file(tmp_path / s / "jobs" / ticket.job_id / "adapter/adapter_model.safetensors") for s in ("calm", "cut")
    )
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


async def test_a_trainer_that_dies_again_and_again_ends_the_job_with_its_last_words(
    open_provider: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 'no space left on device' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    monkeypatch.setenv(PRELOADED, "off")
    tuner = open_provider().finetuner
    assert tuner is not None
    ticket = await tuner.submit(_training("key-three"))
    for _ in range(200):
        state = await tuner.poll(ticket)
        if state.finished:
            break
        await asyncio.sleep(0.02)
    assert state.status == "failed"
    assert "no space left on device" in str(state.reason)
    assert "goes on from the last saved step" in str(state.reason)
    assert await tuner.find(_training("key-three")) == ticket, "a later run takes it up again"


async def test_a_malformed_training_file_is_refused_at_once_and_leaves_nothing(
    open_provider: Open, tmp_path: Path
) -> None:
    tuner = open_provider().finetuner
    assert tuner is not None
    bad = FineTuneRequest(model="tiny", training_file=b'{"messages": 3}\n' * 12, run_key="bad")
    with pytest.raises(RefusedError, match="Line 1"):
        await tuner.submit(bad)
    assert await tuner.find(bad) is None
    assert list((tmp_path / "semievol-local" / "jobs").iterdir()) == []


async def test_an_adapter_folder_can_be_asked_by_path_and_one_of_another_base_is_refused(
    open_provider: Open, tmp_path: Path
) -> None:
    provider = open_provider()
    assert provider.option_reader is not None
    await tuned_model(provider.finetuner, _training("key-four"))
    (adapter,) = (tmp_path / "semievol-local" / "jobs").glob("*/adapter")
    request = OptionRequest(model=str(adapter), prompt=PROMPT, labels=("A",))
    assert (await provider.option_reader.read(request)).logprobs[0] is not None
    other = tmp_path / "other"
    shutil.copytree(adapter, other)
    tensors = load_file(other / "adapter_model.safetensors")
    wide = {k: torch.zeros(v.shape[0], 48) if "q_proj.lora_A" in k else v for k, v in tensors.items()}
    save_file(wide, other / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"does not belong to the model.*takes 48 inputs.*32 inputs there"):
        await provider.option_reader.read(OptionRequest(model=str(other), prompt=PROMPT, labels=("A",)))


# ------------------------------------------------------------------------------------------------- export
async def test_an_exported_model_answers_as_base_and_adapter_do(
    open_provider: Open, tiny_model: Path, tmp_path: Path
) -> None:
    from semievol_providers.local.export import merge

    provider = open_provider()
    assert provider.option_reader is not None
    name = await tuned_model(provider.finetuner, _training("key-five"))
    (adapter,) = (tmp_path / "semievol-local" / "jobs").glob("*/adapter")
    assert "base_model:" in (adapter / "README.md").read_text(encoding="utf-8")
    merged = merge(adapter, tmp_path / "merged")
    with pytest.raises(UserError, match="exists already"):
        merge(adapter, tmp_path / "merged")
    alone = open_provider(model=str(merged), name="merged", state="other")
    assert alone.option_reader is not None
    labels = ("A", "B")
    tuned = await provider.option_reader.read(OptionRequest(model=name, prompt=PROMPT, labels=labels))
    whole = await alone.option_reader.read(OptionRequest(model="merged", prompt=PROMPT, labels=labels))
    assert whole.logprobs == pytest.approx(tuned.logprobs, abs=1e-4)


async def test_a_full_disk_is_told_before_an_export_starts(
    open_provider: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from semievol_providers.local.export import merge

    await tuned_model(open_provider().finetuner, _training("key-six"))
    (adapter,) = (tmp_path / "semievol-local" / "jobs").glob("*/adapter")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage._replace(free=10))
    with pytest.raises(UserError, match=r"0\.0 GB free"):
        merge(adapter, tmp_path / "merged")
    assert not (tmp_path / "merged.partial").exists()
