"""The trainer: what is learnt, the same losses as transformers' Trainer, resuming after a kill, failures."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import torch
from local_samples import chat_line, losses_of, make_job, train_here, training_lines
from safetensors.torch import load_file

from semievol_api.training.chat_jsonl import ChatExample, TrainingFileError, Turn
from semievol_providers.local.chat_tokens import ChatTokens
from semievol_providers.local.model_folder import end_of_turn_ids, load_tokenizer
from semievol_providers.local.training_data import (
    encode_example,
    epoch_order,
    load_token_examples,
    split_by_tokens,
    step_indices,
    to_batch,
)
from semievol_providers.local.training_job import TrainingJob, read_events

pytest_plugins = ("local_fixtures",)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]


# ------------------------------------------------------------------------------------------------- data
def test_only_assistant_turns_and_their_end_of_turn_are_learnt(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    tokens, ends = ChatTokens(tokenizer), end_of_turn_ids(str(tiny_model), tokenizer)
    turns = (
        Turn("system", "Be brief.", False),
        Turn("user", "1+1?", False),
        Turn("assistant", "two", True),
        Turn("user", "2+2?", False),
        Turn("assistant", "four", True),
    )
    example = encode_example(ChatExample(1, turns), tokens, ends)
    whole = tokens.encode_chat(ChatExample(1, turns).messages(), reply_follows=False)
    assert example.ids == whole
    learnt = [i for i, flag in zip(example.ids, example.learnt, strict=True) if flag]
    assert tokenizer.decode(learnt) == "two<|eot|>four<|eot|>"


def test_a_turn_of_weight_zero_is_not_learnt(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    turns = (
        Turn("user", "a", False),
        Turn("assistant", "no", False),
        Turn("user", "b", False),
        Turn("assistant", "yes", True),
    )
    example = encode_example(ChatExample(1, turns), ChatTokens(tokenizer), end_of_turn_ids(str(tiny_model), tokenizer))
    learnt = [i for i, flag in zip(example.ids, example.learnt, strict=True) if flag]
    assert tokenizer.decode(learnt) == "yes<|eot|>"


def test_every_epoch_sees_every_example_once_in_another_order() -> None:
    for epoch in range(3):
        steps = [step_indices(10, 4, 7, epoch * 3 + k) for k in range(3)]
        assert [len(step) for step in steps] == [4, 4, 2]
        assert sorted(i for step in steps for i in step) == list(range(10))
    assert epoch_order(10, 7, 0) != epoch_order(10, 7, 1)
    assert epoch_order(10, 7, 0) == epoch_order(10, 7, 0)


def test_passes_keep_to_the_token_budget_and_lose_nothing(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "f.jsonl").write_text(training_lines(20))
    tokenizer = load_tokenizer(str(tiny_model))
    ends = end_of_turn_ids(str(tiny_model), tokenizer)
    examples = load_token_examples(tmp_path / "f.jsonl", ChatTokens(tokenizer), ends, 512, 10)
    passes = split_by_tokens(examples, 150)
    assert sorted(id(example) for part in passes for example in part) == sorted(map(id, examples))
    assert all(to_batch(part, 0).ids.numel() <= 150 for part in passes)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "Line 11 is not valid JSON"),
        ("[1]", "Line 11 is not a JSON object"),
        ('{"messages": []}', "Line 11 has no list of messages"),
        ('{"prompt": "a", "completion": "b"}', "Line 11 has the key 'completion'"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "Line 11 has no assistant message"),
        ('{"messages": [{"role": "robot", "content": "a"}]}', "Line 11, message 1: 'role' is 'robot'"),
        ('{"messages": [{"role": "user", "content": 5}]}', "Line 11, message 1: 'content' must be a text"),
        ('{"messages": [{"role": "assistant", "content": "  "}]}', "must not be empty"),
        ('{"messages": [{"role": "assistant", "content": "a", "weight": 2}]}', "'weight' must be 0 or 1"),
        ('{"messages": [{"role": "assistant", "content": "a"}], "weight": 0}', "a number in (0, 1]"),
        (chat_line("x" * 600, "y").strip(), "Line 11 has 6"),
        ("\xff", "Line 11 is not valid JSON"),
    ],
)
def test_a_bad_line_is_named(tiny_model: Path, tmp_path: Path, line: str, complaint: str) -> None:
    (tmp_path / "f.jsonl").write_bytes((training_lines(10) + line + "\n").encode("latin-1"))
    tokenizer = load_tokenizer(str(tiny_model))
    with pytest.raises(TrainingFileError) as raised:
        load_token_examples(tmp_path / "f.jsonl", ChatTokens(tokenizer), frozenset(), 512, 10)
    assert complaint in str(raised.value)


# --------------------------------------------------------------------------------------------- training
@pytest.mark.parametrize("max_grad_norm", [1.0, 1000.0])
def test_losses_and_weights_equal_those_of_peft_with_the_plain_trainer(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_grad_norm: float
) -> None:
    job = make_job(tiny_model, tmp_path / "a", tokens_per_pass=150, max_grad_norm=max_grad_norm)
    status, events = train_here(job, monkeypatch)
    assert status == 0
    losses, reference = _plain_trainer(job, tmp_path / "plain")
    assert len(losses) == 12
    assert losses_of(events) == pytest.approx(losses, abs=1e-3)
    assert losses[0] - losses[-1] > 0.3
    ours = load_file(Path(job.folder) / "adapter" / "adapter_model.safetensors")
    for name, weight in reference.items():
        assert torch.allclose(ours[name], weight, atol=1e-4), name


def _plain_trainer(job: TrainingJob, folder: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and adapter of transformers' Trainer with PEFT on the same data in the same order."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from torch.utils.data import Dataset, Sampler
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    tokenizer = load_tokenizer(job.base)
    ends = end_of_turn_ids(job.base, tokenizer)
    examples = load_token_examples(Path(job.training_file), ChatTokens(tokenizer), ends, 512, 10)

    class Rows(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(examples)

        def __getitem__(self, i: int) -> dict[str, list[int]]:
            e = examples[i]
            return {"ids": list(e.ids), "labels": [t if f else -100 for t, f in zip(e.ids, e.learnt, strict=True)]}

    class Epochs(Sampler[int]):
        epoch = 0

        def __iter__(self) -> object:
            self.epoch += 1
            return iter(epoch_order(len(examples), job.seed, self.epoch - 1))

        def __len__(self) -> int:
            return len(examples)

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        n = max(len(r["ids"]) for r in rows)
        pad = lambda values, fill: torch.tensor([v + [fill] * (n - len(v)) for v in values])  # noqa: E731
        return {
            "input_ids": pad([r["ids"] for r in rows], 0),
            "attention_mask": pad([[1] * len(r["ids"]) for r in rows], 0),
            "labels": pad([r["labels"] for r in rows], -100),
        }

    class Ordered(Trainer):
        sampler = Epochs()

        def _get_train_sampler(self, *_: object) -> Epochs:
            return self.sampler

    base = AutoModelForCausalLM.from_pretrained(job.base, dtype=torch.float32)
    torch.manual_seed(job.seed)
    config = LoraConfig(r=job.rank, lora_alpha=job.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=job.batch_size, num_train_epochs=job.n_epochs,
        learning_rate=job.learning_rate, lr_scheduler_type="cosine", warmup_steps=0.1,
        logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, seed=job.seed,
        remove_unused_columns=False, dataloader_pin_memory=False, max_grad_norm=job.max_grad_norm,
    )  # fmt: skip
    trainer = Ordered(model=model, args=arguments, train_dataset=Rows(), data_collator=collate)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, get_peft_model_state_dict(model)


@contextmanager
def _started(job: TrainingJob, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    path = str(Path(job.folder).parent / "job.json")
    command = [sys.executable, "-m", "semievol_providers.local.train", path, "--with-parent"]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def _wait_for_step(job: TrainingJob, step: int) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if any(e.step >= step for e in read_events(Path(job.folder), 0)[0]):
            return
        time.sleep(0.02)
    raise AssertionError("the training did not get that far")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_killed_training_resumes_and_ends_with_the_same_weights(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, child_env: dict[str, str], dtype: str
) -> None:
    whole = make_job(tiny_model, tmp_path / "whole", n_epochs=30, dtype=dtype)
    assert train_here(whole, monkeypatch)[0] == 0
    cut = make_job(tiny_model, tmp_path / "cut", n_epochs=30, dtype=dtype)
    with _started(cut, child_env):
        _wait_for_step(cut, 40)
    assert not (Path(cut.folder) / "adapter").exists()
    status, events = train_here(cut, monkeypatch)
    assert status == 0
    steps = [e.step for e in events if e.kind == "step"]
    assert max(steps) == 180 and steps.count(1) == 1  # it went on instead of starting again
    assert losses_of(events) == losses_of(read_events(Path(whole.folder), 0)[0])
    name = Path("adapter") / "adapter_model.safetensors"
    assert (Path(cut.folder) / name).read_bytes() == (Path(whole.folder) / name).read_bytes()


def test_a_training_ends_when_its_parent_does_and_saves_when_asked_to_stop(
    tiny_model: Path, tmp_path: Path, child_env: dict[str, str]
) -> None:
    orphan = make_job(tiny_model, tmp_path / "orphan", n_epochs=1000, save_every_s=1000)
    stopped = make_job(tiny_model, tmp_path / "stopped", n_epochs=1000, batch_size=22, save_every_s=1000)
    with _started(orphan, child_env) as first, _started(stopped, child_env) as second:
        for job in (orphan, stopped):
            _wait_for_step(job, 3)
        assert first.stdin is not None
        first.stdin.close()  # what the end of the parent does
        second.terminate()
        assert [first.wait(timeout=20), second.wait(timeout=20)] == [4, 4]
    assert read_events(Path(stopped.folder), 0)[0][-1].kind == "stopped"
    assert (Path(stopped.folder) / "state.safetensors").exists()


def test_a_second_training_cannot_enter_the_same_folder(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, child_env: dict[str, str]
) -> None:
    job = make_job(tiny_model, tmp_path / "job", n_epochs=1000)
    with _started(job, child_env):
        _wait_for_step(job, 1)
        monkeypatch.setattr("semievol_providers.local.train._LOCK_WAIT_S", 0.3)
        assert train_here(job, monkeypatch)[0] == 3


def test_validation_weights_and_trained_embeddings(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tiny_model, tmp_path / "a", train_embeddings=True, checkpoints_kept=2, n_epochs=3)
    (tmp_path / "valid.jsonl").write_text(training_lines(5))
    job = msgspec.structs.replace(job, validation_file=str(tmp_path / "valid.jsonl"))
    job.write(tmp_path / "a" / "job.json")
    status, events = train_here(job, monkeypatch)
    assert status == 0
    scored = [e for e in events if e.valid_loss is not None]
    assert [e.epoch for e in scored] == [1, 2, 3]
    assert scored[-1].valid_loss < scored[0].valid_loss  # type: ignore[operator]
    checkpoints = [e for e in events if e.kind == "checkpoint"]
    assert [Path(e.folder or "").name for e in checkpoints] == ["step-12"]
    weights = load_file(Path(job.folder) / "adapter" / "adapter_model.safetensors")
    assert any("embed_tokens" in name for name in weights)


def test_a_lower_weight_lowers_an_examples_share(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = training_lines(11).splitlines(keepends=True)
    odd = chat_line("odd", "~" * 60)
    light = odd.replace('{"messages"', '{"weight": 0.001, "messages"')
    losses = []
    for name, line in (("full", odd), ("light", light), ("without", "")):
        job = make_job(tiny_model, tmp_path / name, batch_size=12, n_epochs=1)
        Path(job.training_file).write_text("".join(lines) + line)
        losses.append(losses_of(train_here(job, monkeypatch)[1])[0])
    assert losses[1] == pytest.approx(losses[2], abs=5e-3)
    assert abs(losses[0] - losses[2]) > 0.02


def test_running_out_of_memory_says_what_to_lower(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starve(*_: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("semievol_providers.local.train.with_adapter", starve)
    status, events = train_here(make_job(tiny_model, tmp_path / "a"), monkeypatch)
    assert status == 3
    assert events[-1].code == "out_of_memory"
    assert "tokens_per_pass (now 1,024" in (events[-1].message or "")


def test_a_diverging_loss_ends_the_training_with_advice(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, events = train_here(make_job(tiny_model, tmp_path / "a", learning_rate=1e36, n_epochs=4), monkeypatch)
    assert status == 3
    assert events[-1].code == "diverged"
    assert "learning_rate_multiplier" in (events[-1].message or "")


def test_going_on_from_an_adapter_starts_where_it_ended(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_job(tiny_model, tmp_path / "first", n_epochs=20, batch_size=22)
    before = losses_of(train_here(first, monkeypatch)[1])
    second = make_job(
        tiny_model, tmp_path / "second", adapter=str(Path(first.folder) / "adapter"), batch_size=22, n_epochs=1
    )
    after = losses_of(train_here(second, monkeypatch)[1])
    assert after[0] == pytest.approx(before[-1], abs=0.05)
    assert after[0] < before[0] - 0.3
