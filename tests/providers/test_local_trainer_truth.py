"""The trainer against the field's own: TRL's losses, the templates of three families, two processes, little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from local_samples import chat_line, losses_of, make_job
from safetensors.torch import load_file

from semievol_api.training.chat_jsonl import ChatExample, Turn
from semievol_providers.local.chat_tokens import ChatTokens
from semievol_providers.local.model_folder import load_tokenizer
from semievol_providers.local.training_data import encode_example, epoch_order, load_token_examples
from semievol_providers.local.training_job import TrainingEvent, TrainingJob, read_events
from semievol_providers.local.training_loop import TrainingLoop
from semievol_providers.local.training_passes import PaddedPasses

pytest_plugins = ("local_fixtures",)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]
LLAMA_31 = (
    "{{ '<|begin_of_text|>' }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n' + system + '<|eot_id|>' }}"
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim "
    "+ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a "
    "helpful assistant.<|im_end|>\n' }}{% endif %}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + "
    "m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "end"),
    [(LLAMA_31, "<|eot_id|>"), (QWEN, "<|im_end|>"), (CHATML, "<|im_end|>")],
    ids=["Llama-3.1", "Qwen", "ChatML"],
)
@pytest.mark.parametrize("system", [False, True])
def test_only_answers_and_their_end_of_turn_are_learnt(tiny_model: Path, template: str, end: str, system: bool) -> None:
    tokenizer: Any = load_tokenizer(str(tiny_model))
    tokenizer.add_special_tokens({"additional_special_tokens": [end]})
    tokenizer.chat_template = template
    turns = (
        *((Turn("system", "Be brief.", False),) if system else ()),
        Turn("user", "Which letter?\nA. one\nB. two", False),
        Turn("assistant", "Answer: A", True),
        Turn("user", "And now?", False),
        Turn("assistant", "Answer: B", True),
    )
    ends = frozenset([tokenizer.convert_tokens_to_ids(end)])
    example = encode_example(ChatExample(1, turns), ChatTokens(tokenizer), ends)
    learnt = tokenizer.decode([i for i, flag in zip(example.ids, example.learnt, strict=True) if flag])
    assert learnt == f"Answer: A{end}Answer: B{end}"
    whole = tokenizer.apply_chat_template([{"role": t.role, "content": t.content} for t in turns], tokenize=False)
    assert tokenizer.decode(example.ids) == whole.rstrip("\n")


# ------------------------------------------------------------------------------------------------- losses
def _lines(count: int) -> list[str]:
    letters = "ABCDE"
    return [chat_line(f"Item {i} " + "word " * (i * 7 % 13), f"Answer: {letters[i % 5]}") for i in range(count)]


def _job(base: Path, folder: Path, lines: list[str], **settings: Any) -> TrainingJob:
    return make_job(base, folder, "".join(lines), **{"n_epochs": 1, "batch_size": 8} | settings)


def _train(job: TrainingJob, env: dict[str, str], ranks: int = 1) -> list[TrainingEvent]:
    trainer = ["-m", "semievol_providers.local.train", str(Path(job.folder).parent / "job.json")]
    if ranks > 1:
        trainer = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *trainer]
    done = subprocess.run([sys.executable, *trainer], env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return read_events(Path(job.folder), 0)[0]


def _weights(job: TrainingJob) -> dict[str, torch.Tensor]:
    return load_file(Path(job.folder) / "adapter" / "adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_losses_equal_those_of_trl_on_the_same_200_examples(
    tiny_model: Path, tmp_path: Path, child_env: dict[str, str]
) -> None:
    pytest.importorskip("trl")
    from datasets import Dataset
    from peft import LoraConfig
    from torch.utils.data import Sampler
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    lines = _lines(200)
    job = _job(tiny_model, tmp_path / "ours", lines)
    ours = losses_of(_train(job, child_env))

    class Ours(Sampler[int]):
        def __iter__(self) -> Any:
            return iter(epoch_order(len(lines), job.seed, 0))

        def __len__(self) -> int:
            return len(lines)

    class Ordered(SFTTrainer):
        def _get_train_sampler(self, *_: object) -> Ours:
            return Ours()

    chats = [json.loads(line)["messages"] for line in lines]
    rows = Dataset.from_list([{"prompt": chat[:1], "completion": chat[1:]} for chat in chats])
    config = SFTConfig(
        output_dir=str(tmp_path / "trl"), per_device_train_batch_size=8, num_train_epochs=1, learning_rate=3e-3,
        lr_scheduler_type="cosine", warmup_steps=0.1, max_grad_norm=1.0, logging_steps=1, save_strategy="no",
        report_to=[], use_cpu=True, disable_tqdm=True, seed=3, bf16=False, dataloader_pin_memory=False,
        gradient_checkpointing=False, weight_decay=0.0,
    )  # fmt: skip
    torch.manual_seed(3)
    trainer = Ordered(
        model=AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32),
        args=config,
        train_dataset=rows,
        processing_class=load_tokenizer(str(tiny_model)),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    model: Any = trainer.model
    _start_alike(model, tiny_model, job)
    trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(ours) == len(theirs) == 25
    assert ours == pytest.approx(theirs, abs=1e-3)
    assert ours[0] - ours[-1] > 0.3


def _start_alike(model: Any, base: Path, job: TrainingJob) -> None:
    """Give a model the adapter that our trainer starts from, whatever drew random numbers before."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    from semievol_providers.local.training_loop import with_adapter

    set_peft_model_state_dict(model, get_peft_model_state_dict(with_adapter(job, "cpu")))


@pytest.mark.slow
def test_two_processes_train_what_one_does(tiny_model: Path, tmp_path: Path, child_env: dict[str, str]) -> None:
    env = child_env | {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    one, two = (_job(tiny_model, tmp_path / name, _lines(30), n_epochs=2) for name in ("one", "two"))
    alone, shared = _train(one, env), _train(two, env, ranks=2)
    assert losses_of(shared) == pytest.approx(losses_of(alone), abs=1e-4)
    assert [e.kind for e in shared] == [e.kind for e in alone], "only one process tells"
    mine, ours = _weights(one), _weights(two)
    assert mine.keys() == ours.keys()
    assert all(torch.allclose(mine[name], ours[name], atol=1e-4) for name in mine)


# ------------------------------------------------------------------------------------------------- memory
def test_out_of_memory_halves_the_passes_then_checkpoints_and_changes_no_loss(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, child_env: dict[str, str]
) -> None:
    from semievol_providers.local.model_folder import end_of_turn_ids
    from semievol_providers.local.training_loop import with_adapter

    calm = _job(tiny_model, tmp_path / "calm", _lines(16))
    job = _job(tiny_model, tmp_path / "tight", _lines(16))
    tokenizer = load_tokenizer(job.base)
    ends = end_of_turn_ids(job.base, tokenizer)
    examples = load_token_examples(Path(job.training_file), ChatTokens(tokenizer), ends, 512, 10)
    longest = max(len(example.ids) for example in examples)
    real = PaddedPasses.loss
    loops: list[TrainingLoop] = []

    def tight(passes: PaddedPasses, model: Any, part: Any, device: str) -> Any:
        if max(len(row.ids) for row in part) * len(part) > longest or not loops[0]._checkpointing:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(passes, model, part, device)

    monkeypatch.setattr(PaddedPasses, "loss", tight)
    events: list[TrainingEvent] = []
    Path(job.folder).mkdir()
    loops.append(TrainingLoop(with_adapter(job, "cpu"), job, 0, events.append))
    assert loops[0].run(examples, [], lambda: False)
    notes = [str(e.message) for e in events if e.kind == "note"]
    assert len(notes) > 2
    assert "passes of at most" in notes[0]
    assert "activation checkpointing" in notes[-1]
    assert all("The result stays the same" in note for note in notes)
    assert losses_of(events) == pytest.approx(losses_of(_train(calm, child_env)), abs=1e-4)
