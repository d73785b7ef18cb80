"""What a training can be told: packing, an early stop, a base in 4 bits; and what it does on a full disk."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from local_samples import chat_line, losses_of, make_job, train_here, training_lines
from local_truths import ended
from safetensors.torch import load_file

from semievol_api.capabilities import FineTuneRequest, Provider, ProviderSettings, TrainSpec
from semievol_api.errors import ConfigError, UserError
from semievol_api.training.fine_tuning import check_spec
from semievol_providers.local.children import PRELOADED
from semievol_providers.local.provider import connect
from semievol_providers.local.training_data import TokenExample, hold_out
from semievol_providers.local.training_job import (
    StartingPoint,
    TrainDefaults,
    TrainingEvent,
    TrainingJob,
    read_events,
    read_train_defaults,
    rule_rate,
    training_job,
)
from semievol_providers.local.training_loop import EarlyStop
from semievol_providers.local.training_passes import PackedPasses

pytest_plugins = ("local_fixtures",)
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
ADAPTER = Path("adapter") / "adapter_model.safetensors"


def _train(job: TrainingJob, env: dict[str, str], before: str = "") -> tuple[int, list[TrainingEvent]]:
    """In a process of its own, after a line of shell where one is given."""
    place = Path(job.folder).parent / "job.json"
    command = f'{before}\nexec "{sys.executable}" -m semievol_providers.local.train "{place}"'
    done = subprocess.run(["sh", "-c", command], env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode in (0, 3, 5), done.stderr
    return done.returncode, read_events(Path(job.folder), 0)[0]


# ------------------------------------------------------------------------------------------------- packing
def test_packed_examples_train_what_padded_ones_do(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = training_lines(11) + chat_line("light", "~" * 9).replace('{"mess', '{"weight": 0.25, "mess')
    jobs = [
        make_job(tiny_model, tmp_path / name, packing=name == "packed", tokens_per_pass=200)
        for name in ("pad", "packed")
    ]
    for job in jobs:
        Path(job.training_file).write_text(lines)
    padded, packed = (train_here(job, monkeypatch)[1] for job in jobs)
    assert len(losses_of(packed)) == 6
    assert losses_of(packed) == pytest.approx(losses_of(padded), abs=1e-4)
    mine, theirs = (load_file(Path(job.folder) / ADAPTER) for job in jobs)
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-4) for name in mine)


def test_packed_passes_are_filled_and_lose_nothing() -> None:
    rows = [TokenExample(tuple(range(n)), (False,) * (n - 1) + (True,)) for n in (5, 4, 3, 90, 2, 2)]
    passes = PackedPasses().split(rows, 10)
    assert [[len(row.ids) for row in part] for part in passes] == [[5, 4], [3], [90], [2, 2]]


# ---------------------------------------------------------------------------------------------- early stop
def test_patience_counts_from_the_best_epoch_and_survives_a_restart() -> None:
    early = EarlyStop(2)
    assert [early.is_better(epoch, loss) for epoch, loss in ((1, 2.0), (2, 1.0), (3, 1.5))] == [True, True, False]
    assert not early.is_over
    resumed = EarlyStop(2)
    resumed.restore(early.state())
    assert not resumed.is_better(4, 1.0), "an equal loss is no better"
    assert resumed.is_over and resumed.keeps_earlier
    never = EarlyStop(0)
    assert not any(never.is_better(epoch, 9.0 - epoch) for epoch in range(1, 5))
    assert not never.is_over


def test_a_training_that_learns_the_wrong_thing_stops_and_keeps_its_best_epoch(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tiny_model, tmp_path / "a", n_epochs=12, patience=2, checkpoints_kept=12)
    wrong = "".join(chat_line(f"Item {i} " + "x" * (i % 5), "~^|" * 3) for i in range(6))
    (tmp_path / "valid.jsonl").write_text(wrong)
    job = msgspec.structs.replace(job, validation_file=str(tmp_path / "valid.jsonl"))
    job.write(tmp_path / "a" / "job.json")
    status, events = train_here(job, monkeypatch)
    assert status == 0
    scored = {e.epoch: e.valid_loss for e in events if e.valid_loss is not None}
    best = min(scored, key=lambda epoch: scored[epoch] or 0.0)
    assert max(scored) == best + 2 < 12, "two epochs without a better one end it"
    (note,) = [str(e.message) for e in events if e.code == "early_stop"]
    assert f"after epoch {best}" in note
    assert events[-1].kind == "done" and events[-1].step == 6 * max(scored)
    kept = Path(job.folder) / "checkpoints" / f"step-{6 * best}" / "adapter_model.safetensors"
    assert (Path(job.folder) / ADAPTER).read_bytes() == kept.read_bytes()


def test_a_slice_is_held_out_where_there_is_no_validation_file(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [TokenExample((i, i), (False, True)) for i in range(20)]
    kept, held = hold_out(rows, 0.1, seed=3)
    assert (len(kept), len(held)) == (18, 2)
    assert sorted([*kept, *held], key=lambda row: row.ids) == rows
    assert hold_out(rows, 0.1, seed=3)[1] == held
    job = make_job(tiny_model, tmp_path / "a", validation_share=0.25)
    status, events = train_here(job, monkeypatch)
    assert status == 0
    assert events[0].total_steps == 2 * 4, "16 of 22 examples are trained on, by fours"
    assert len([e for e in events if e.valid_loss is not None]) == 2


def test_patience_without_validation_examples_is_refused(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, events = train_here(make_job(tiny_model, tmp_path / "a", patience=1), monkeypatch)
    assert status == 3
    assert "validation_share" in str(events[-1].message)


# ------------------------------------------------------------------------------------------- kinds of LoRA
def test_dora_and_rslora_are_settings_and_stand_on_the_card(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, other = (
        make_job(tiny_model, tmp_path / name, use_dora=dora, use_rslora=dora, target_modules="q_proj,v_proj")
        for name, dora in (("plain", False), ("other", True))
    )
    losses = [losses_of(train_here(job, monkeypatch)[1]) for job in (plain, other)]
    assert losses[0] != losses[1]
    names = set(load_file(Path(other.folder) / ADAPTER))
    assert any("magnitude" in name for name in names)
    assert all("q_proj" in name or "v_proj" in name for name in names)
    assert "DoRA + rsLoRA" in (Path(other.folder) / "adapter" / "README.md").read_text(encoding="utf-8")


# --------------------------------------------------------------------------------------------------- QLoRA
def _connect(tiny_model: Path, folder: Path, **train: object) -> Provider:
    given = {"model": str(tiny_model), "name": "tiny", "device": "cpu", "train": {"rank": 4, "alpha": 8} | train}
    return connect(ProviderSettings(name="home", options=given, environ={}, base_folder=str(folder)))


def test_four_bits_without_bitsandbytes_are_refused_while_planning(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semievol_providers.local.provider.can_quantize", lambda: False)
    with pytest.raises(ConfigError, match=r"providers.home.train.*pip install bitsandbytes") as refused:
        _connect(tiny_model, tmp_path, qlora=True)
    assert "\n" not in str(refused.value)


def test_four_bits_train_close_to_the_whole_base(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    whole, quantized = (make_job(tiny_model, tmp_path / name, qlora=name == "qlora") for name in ("lora", "qlora"))
    losses = [losses_of(train_here(job, monkeypatch)[1]) for job in (whole, quantized)]
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.25)
    assert load_file(Path(quantized.folder) / ADAPTER).keys() == load_file(Path(whole.folder) / ADAPTER).keys()


# ----------------------------------------------------------------------------------------- from spec to job file
ASKED = TrainSpec(
    n_epochs=9, batch_size=7, learning_rate_multiplier=0.5, seed=11, rank=3, alpha=5, dropout=0.25, use_dora=True,
    use_rslora=True, target_modules="q_proj", train_embeddings=True, warmup_share=0.5, weight_decay=0.5,
    max_grad_norm=0.1, qlora=True, validation_share=0.3, patience=4,
)  # fmt: skip
START = StartingPoint(base="/m/tiny", adapter="/a", device="cuda:1")


@pytest.mark.parametrize("name", TrainSpec.model_fields)
def test_every_field_of_a_spec_reaches_the_trainer(name: str) -> None:
    asked, defaults = ASKED.given[name], TrainDefaults(learning_rate=1e-3)
    resolved = defaults.resolve(TrainSpec(**{name: asked}), 100)
    told = msgspec.structs.asdict(training_job(resolved, defaults, START, Path("/j"), validates=False))
    if name == "learning_rate_multiplier":
        assert told["learning_rate"] == 0.5e-3
    else:
        assert told[name] == asked


def test_what_a_spec_leaves_open_is_the_models_own() -> None:
    defaults = TrainDefaults(rank=8, learning_rate=1e-3, target_steps=50, threads=2)
    job = training_job(defaults.resolve(TrainSpec(alpha=4), 40), defaults, START, Path("/j"), validates=True)
    assert (job.rank, job.alpha, job.learning_rate, job.threads, job.seed) == (8, 4, 1e-3, 2, 0)
    assert (job.batch_size, job.n_epochs) == (10, 12), "a quarter of the file at a time, and 50 steps"
    assert (job.base, job.adapter, job.device) == ("/m/tiny", "/a", "cuda:1")
    assert (job.training_file, job.validation_file) == ("/j/training_file", "/j/validation_file")


def test_rate_and_steps_of_auto_follow_from_the_models_width_and_the_rows(tiny_model: Path, tmp_path: Path) -> None:
    assert [f"{rule_rate('llama', width):.2e}" for width in (576, 2048, 4096)] == ["1.32e-03", "4.91e-04", "2.86e-04"]
    assert f"{rule_rate('qwen3', 4096):.2e}" == "4.73e-04"
    assert rule_rate("gemma3_text", 640) == rule_rate("qwen3", 640), "a family not fitted takes the lower rate"
    assert rule_rate("gemma3_text", 5120) == rule_rate("llama", 5120)
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    rule = read_train_defaults(folder, None)
    assert rule.learning_rate == rule_rate("llama", 32) == 3e-3, "no rate above what small models were tried with"
    seen = {}
    for rows in (8, 10, 32, 100, 520, 2_000, 100_000):
        spec = rule.resolve(TrainSpec(), rows)
        assert spec.batch_size and spec.n_epochs
        seen[rows] = (spec.batch_size, spec.n_epochs, spec.n_epochs * -(-rows // spec.batch_size))
    assert seen == {
        8: (2, 20, 80), 10: (2, 16, 80), 32: (8, 20, 80), 100: (8, 10, 130), 520: (8, 5, 325),
        2_000: (8, 2, 500), 100_000: (8, 1, 12_500),
    }  # fmt: skip


def test_a_folders_own_training_file_and_a_toml_files_values_come_before_the_rule(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder, toml = tmp_path / "model", tmp_path / "train.toml"
    shutil.copytree(tiny_model, folder)
    toml.write_text("rank = 4\n")
    asked = read_train_defaults(folder, toml)
    assert (asked.rank, asked.learning_rate, asked.target_steps) == (4, rule_rate("llama", 32), "auto")
    (folder / "semievol_train.json").write_text('{"learning_rate": 0.002, "batch_size": 8}')
    own = read_train_defaults(folder, None)
    assert own == TrainDefaults(learning_rate=2e-3, batch_size=8), "as before: 100 steps"
    assert own.resolve(TrainSpec(), 100).n_epochs == 8


def test_the_job_file_of_a_training_that_an_earlier_version_left_half_done_is_read(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(
        '{"base":"/m/tiny","training_file":"/j/training_file","folder":"/j","adapter":"/a","validation_file":null,'
        '"seed":7,"n_epochs":9,"batch_size":4,"learning_rate":0.003,"rank":8,"alpha":32,"dropout":0.0,'
        '"use_dora":false,"use_rslora":false,"target_modules":"all-linear","train_embeddings":false,'
        '"warmup_share":0.1,"weight_decay":0.0,"max_grad_norm":1.0,"tokens_per_pass":1024,"checkpoints_kept":3,'
        '"save_every_s":30.0,"threads":1,"device":"cpu","packing":false,"qlora":false,"validation_share":0.1,'
        '"patience":2}'
    )
    job = TrainingJob.read(tmp_path / "job.json")
    assert (job.base, job.adapter, job.seed, job.n_epochs, job.batch_size) == ("/m/tiny", "/a", 7, 9, 4)
    assert (job.learning_rate, job.rank, job.packing, job.validation_share, job.patience) == (3e-3, 8, False, 0.1, 2)


def test_four_bits_in_the_config_without_bitsandbytes_are_no_key_of_this_trainer(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(_connect(tiny_model, tmp_path).train_keys) | {"qlora"} == set(TrainSpec.model_fields)
    monkeypatch.setattr("semievol_providers.local.provider.can_quantize", lambda: False)
    with pytest.raises(ConfigError, match="qlora"):
        check_spec(TrainSpec(qlora=True), _connect(tiny_model, tmp_path))


# ----------------------------------------------------------------------------------------------- full disk
FULL = "ulimit -f 60"
"""No file of this process may grow beyond 30 kB, as the kernel sees to: enough for the log, too little for a state."""


def test_a_full_disk_leaves_whole_files_and_a_training_that_goes_on(
    tiny_model: Path, tmp_path: Path, child_env: dict[str, str]
) -> None:
    calm, full = (make_job(tiny_model, tmp_path / name, n_epochs=3) for name in ("calm", "full"))
    assert _train(calm, child_env)[0] == 0
    status, events = _train(full, child_env, FULL)
    assert status == 5
    assert "is full" in str(events[-1].message) and "\n" not in str(events[-1].message)
    assert not list(Path(full.folder).rglob("*.partial*")), "nothing torn is left to fill the disk"
    status, events = _train(full, child_env)
    assert status == 0
    assert (Path(full.folder) / ADAPTER).read_bytes() == (Path(calm.folder) / ADAPTER).read_bytes()


async def test_a_run_on_a_full_disk_ends_in_one_paragraph_and_the_next_goes_on(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = FineTuneRequest(
        model="tiny", training_file=training_lines(24).encode(), run_key="full",
        spec=TrainSpec(n_epochs=2, batch_size=4, seed=3),
    )  # fmt: skip
    cramped = tmp_path / "python"
    cramped.write_text(f'#!/bin/sh\n{FULL}\nexec "{sys.executable}" "$@"\n')
    cramped.chmod(0o755)
    provider = _connect(tiny_model, tmp_path)
    tuner = provider.finetuner
    assert tuner is not None
    with monkeypatch.context() as small:
        small.setattr(sys, "executable", str(cramped))
        small.setenv(PRELOADED, "off")
        ticket = await tuner.submit(request)
        state = await ended(tuner, ticket)
    assert (state.status, state.raw_status) == ("failed", "disk_full")
    assert "is full" in str(state.reason) and "run again" in str(state.reason) and "\n" not in str(state.reason)
    await provider.aclose()
    later = _connect(tiny_model, tmp_path)
    assert later.finetuner is not None
    assert await later.finetuner.find(request) == ticket, "the same job is taken up again"
    assert (await ended(later.finetuner, ticket)).status == "succeeded"
    await later.aclose()


async def test_a_full_disk_while_submitting_leaves_no_job(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = _connect(tiny_model, tmp_path)
    assert provider.finetuner is not None
    write = Path.write_bytes

    def full(path: Path, data: Any) -> int:
        if path.name == "training_file":
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    request = FineTuneRequest(model="tiny", training_file=training_lines(12).encode(), run_key="k")
    with pytest.raises(UserError, match=r"is full.*not submitted"):
        await provider.finetuner.submit(request)
    assert await provider.finetuner.find(request) is None
    assert not list((tmp_path / "semievol-local" / "jobs").iterdir())
