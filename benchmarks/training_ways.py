"""Three ways to train on the same steps of the same examples: ours, the released recipe's shape, and TRL's trainer.

Knows nothing of how they are timed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from semievol_providers.local.training_data import TokenExample, step_indices
from semievol_providers.local.training_job import TrainingEvent, TrainingJob
from semievol_providers.local.training_loop import TrainingLoop


def ours(model: Any, rows: Sequence[TokenExample], job: TrainingJob) -> list[float]:
    """The losses of our own loop."""
    events: list[TrainingEvent] = []
    loop = TrainingLoop(model, job, 0, events.append)
    assert loop.run(rows, [], lambda: False)
    return [e.train_loss for e in events if e.kind == "step" and e.train_loss is not None]


def released(model: Any, rows: Sequence[TokenExample], job: TrainingJob) -> list[float]:
    """The losses of batch 1, accumulated, with activation checkpointing and logits for every token."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=job.learning_rate, weight_decay=0.0)
    losses: list[float] = []
    steps = -(-len(rows) // job.batch_size)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = job.learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        chosen = [rows[i] for i in step_indices(len(rows), job.batch_size, job.seed, step)]
        learnt = sum(sum(row.learnt) for row in chosen)
        total = 0.0
        for row in chosen:
            ids = torch.tensor([row.ids], device=job.device)
            labels = torch.tensor([[t if f else -100 for t, f in zip(row.ids, row.learnt, strict=True)]])
            loss = model(input_ids=ids, labels=labels.to(job.device), num_items_in_batch=learnt, use_cache=False).loss
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(parameters, job.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


def trl(model: Any, rows: Sequence[TokenExample], job: TrainingJob) -> list[float]:
    """The losses of TRL's SFTTrainer: one padded batch a step, no checkpointing, completion-only loss."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from torch.utils.data import Sampler
    from transformers import PreTrainedTokenizerFast, PrinterCallback
    from trl import SFTConfig, SFTTrainer

    steps = -(-len(rows) // job.batch_size)
    order = [i for step in range(steps) for i in step_indices(len(rows), job.batch_size, job.seed, step)]

    class Ordered(Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(order)

        def __len__(self) -> int:
            return len(order)

    class Trainer(SFTTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: object) -> Ordered:
            return Ordered()

    vocabulary = {"[PAD]": 0, "[EOS]": 1}
    names = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]")),
        pad_token="[PAD]",
        eos_token="[EOS]",
    )
    tokens = [{"input_ids": list(row.ids), "completion_mask": [int(flag) for flag in row.learnt]} for row in rows]
    config = SFTConfig(
        output_dir=job.folder, per_device_train_batch_size=job.batch_size, num_train_epochs=1, max_length=None,
        learning_rate=job.learning_rate, lr_scheduler_type="cosine", warmup_steps=0, max_grad_norm=job.max_grad_norm,
        weight_decay=0.0, logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True, seed=job.seed,
        bf16=False, gradient_checkpointing=False, dataloader_pin_memory=False, completion_only_loss=True,
        use_cpu=job.device == "cpu",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(model=model, args=config, train_dataset=Dataset.from_list(tokens), processing_class=names)
        trainer.remove_callback(PrinterCallback)  # standard output is for the result
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
