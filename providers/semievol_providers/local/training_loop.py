"""Train a LoRA adapter on token examples: AdamW, cosine schedule with warm-up, clipped gradients.

A plain loop that gives the losses of transformers' Trainer with PEFT on the same data, but takes logits only
where something is learnt. Resumes bit for bit from its last saved state. Knows nothing of files of chats,
processes or HTTP.
"""

from __future__ import annotations

import math
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from semievol_api.errors import UserError
from semievol_providers.local.train_ranks import Ranks
from semievol_providers.local.training_data import (
    TokenBatch,
    TokenExample,
    split_by_tokens,
    step_indices,
    to_batch,
)
from semievol_providers.local.training_job import TrainingEvent, TrainingJob


class TrainingFailedError(UserError):
    """Training cannot go on; `code` is a short machine-readable word."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def is_out_of_memory(error: BaseException) -> bool:
    """True for every way in which torch or Python says so."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in words or "can't allocate memory" in words


@dataclass(frozen=True, slots=True)
class _Score:
    loss: float
    accuracy: float


class TrainingLoop:
    """One training from its last saved state to its end, or until `should_stop` says so after a step."""

    def __init__(
        self,
        model: Any,
        job: TrainingJob,
        pad_id: int,
        report: Callable[[TrainingEvent], None],
        ranks: Ranks | None = None,
    ) -> None:
        self._ranks = ranks or Ranks(job.device)
        self._tokens_per_pass = job.tokens_per_pass
        self._checkpointing = False
        self._model = model
        self._job = job
        self._pad_id = pad_id
        self._report = report
        self._folder = Path(job.folder)
        self._named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._parameters = [p for _, p in self._named]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=job.learning_rate, weight_decay=job.weight_decay)
        self._trained_tokens = 0

    def run(
        self,
        train: Sequence[TokenExample],
        valid: Sequence[TokenExample],
        should_stop: Callable[[], bool],
    ) -> bool:
        """Train; True when finished, False when stopped with its state saved."""
        job = self._job
        per_epoch = -(-len(train) // job.batch_size)
        total = per_epoch * job.n_epochs
        step = first = self._restore()
        self._model.train()
        started = saved = time.monotonic()
        while step < total:
            rows = [train[i] for i in step_indices(len(train), job.batch_size, job.seed, step)]
            rate = job.learning_rate * _schedule(step, total, job.warmup_share)
            score = self._step(rows, rate, step)
            step += 1
            epoch, at_epoch_end = -(-step // per_epoch), step % per_epoch == 0
            eta_s = (time.monotonic() - started) / (step - first) * (total - step)
            self._report(
                TrainingEvent(
                    kind="step", step=step, total_steps=total, epoch=epoch, train_loss=score.loss,
                    token_accuracy=score.accuracy, learning_rate=rate, eta_s=round(eta_s, 2),
                )
            )  # fmt: skip
            stopping = self._ranks.total(float(should_stop()))[0] > 0
            if at_epoch_end:
                self._checkpoint(step, total, epoch, score, valid)
            if at_epoch_end or stopping or time.monotonic() - saved > job.save_every_s:
                self._save_state(step)
                saved = time.monotonic()
            if stopping and step < total:
                return False
        return True

    @property
    def trained_tokens(self) -> int:
        """Tokens of all examples seen so far, prompts included."""
        return self._trained_tokens

    # ---------------------------------------------------------------------------------------------- steps
    def _step(self, rows: Sequence[TokenExample], rate: float, step: int) -> _Score:
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        weight = sum(row.weight * sum(row.learnt) for row in rows)
        learnt = sum(sum(row.learnt) for row in rows)
        while (passed := self._gradients(rows, weight, step)) is None:
            continue
        self._ranks.add_up(p.grad for p in self._parameters if p.grad is not None)
        loss_sum, right = self._ranks.total(*passed)
        loss_mean = loss_sum / weight
        if not math.isfinite(loss_mean):
            raise TrainingFailedError(
                "diverged",
                f"The loss became {loss_mean} at step {step + 1}. Lower learning_rate_multiplier.",
            )
        torch.nn.utils.clip_grad_norm_(self._parameters, self._job.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._trained_tokens += sum(len(row.ids) for row in rows)
        return _Score(loss_mean, right / learnt)

    def _gradients(self, rows: Sequence[TokenExample], weight: float, step: int) -> tuple[float, int] | None:
        """This rank's part of the gradient, its loss and hits; None where the step must be tried in smaller passes."""
        size = self._ranks.size
        longest = max(len(row.ids) for row in rows)
        budget = min(self._tokens_per_pass, max(longest, -(-longest * len(rows) // size)))
        loss_sum, right = 0.0, 0
        for p in self._parameters if size > 1 else ():
            p.grad = torch.zeros_like(p)
        try:
            for part in split_by_tokens(rows, budget)[self._ranks.rank :: size]:
                loss, hits = self._loss(to_batch(part, self._pad_id))
                (loss / weight).backward()  # type: ignore[no-untyped-call]
                loss_sum += float(loss.detach())
                right += hits
        except RuntimeError as error:
            if size > 1 or not is_out_of_memory(error) or not self._lighten(longest * len(rows), longest, step):
                raise
            return None
        return loss_sum, right

    def _lighten(self, padded_tokens: int, longest: int, step: int) -> bool:
        """Make the next try need less memory; False where nothing is left to do."""
        self._optimizer.zero_grad()
        if self._job.device.startswith("cuda"):
            torch.cuda.empty_cache()
        largest = min(self._tokens_per_pass, padded_tokens)
        if largest > longest:
            self._tokens_per_pass = max(longest, largest // 2)
            change = f"passes of at most {self._tokens_per_pass:,} tokens"
        elif not self._checkpointing:
            self._checkpointing = True
            with warnings.catch_warnings():  # the name that transformers 5.5 to 6 have in common is deprecated
                warnings.simplefilter("ignore", FutureWarning)
                self._model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            change = "activation checkpointing, which is slower"
        else:
            return False
        message = f"Out of memory at step {step + 1}: going on with {change}. The result stays the same."
        self._report(TrainingEvent(kind="note", step=step + 1, code="out_of_memory", message=message))
        return True

    def _loss(self, batch: TokenBatch) -> tuple[Tensor, int]:
        """Weighted sum of the learnt tokens' negative log-likelihoods, and how many were the likeliest."""
        tail = batch.targets.shape[1]
        device = self._ranks.device
        mask = batch.mask.to(device)
        logits = self._model(
            input_ids=batch.ids.to(device),
            attention_mask=None if bool(batch.mask.all()) else mask,  # without one, attention is quicker
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            logits_to_keep=tail + 1,
            use_cache=False,
        ).logits[:, :-1]
        learnt = batch.targets.to(device) >= 0
        picked, targets = logits[learnt].float(), batch.targets.to(device)[learnt]
        losses = torch.nn.functional.cross_entropy(picked, targets, reduction="none")
        right = int((picked.detach().argmax(-1) == targets).sum())
        return (losses * batch.weights.to(device)[learnt]).sum(), right

    def _validate(self, valid: Sequence[TokenExample]) -> _Score:
        self._model.eval()
        loss_sum, weight, right, learnt = 0.0, 0.0, 0, 0
        with torch.no_grad():
            for part in split_by_tokens(valid, self._tokens_per_pass):
                batch = to_batch(part, self._pad_id)
                loss, hits = self._loss(batch)
                loss_sum += float(loss)
                weight += float(batch.weights.sum())
                right += hits
                learnt += int((batch.targets >= 0).sum())
        self._model.train()
        return _Score(loss_sum / weight, right / learnt)

    # -------------------------------------------------------------------------------------------- keeping
    def _checkpoint(self, step: int, total: int, epoch: int, score: _Score, valid: Sequence[TokenExample]) -> None:
        scores = self._validate(valid) if valid else None
        keep_from = self._job.n_epochs - self._job.checkpoints_kept
        target: Path | None = None
        if keep_from < epoch < self._job.n_epochs:
            target = self._folder / "checkpoints" / f"step-{step}"
            self.save_adapter(target)
        self._report(
            TrainingEvent(
                kind="checkpoint" if target else "validation", step=step, total_steps=total, epoch=epoch,
                train_loss=score.loss, token_accuracy=score.accuracy,
                valid_loss=scores.loss if scores else None,
                valid_token_accuracy=scores.accuracy if scores else None,
                folder=str(target) if target else None,
            )
        )  # fmt: skip

    def save_adapter(self, target: Path) -> None:
        """Write the adapter as a PEFT folder in safetensors, whole or not at all."""
        if not self._ranks.first:
            return
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        self._model.save_pretrained(str(partial), save_embedding_layers=False)
        shutil.rmtree(target, ignore_errors=True)
        partial.replace(target)

    def _save_state(self, step: int) -> None:
        if not self._ranks.first:
            return
        tensors = {f"weight/{name}": p.detach().cpu() for name, p in self._named}
        for name, p in self._named:
            kept = self._optimizer.state[p]
            tensors[f"mean/{name}"] = kept["exp_avg"].cpu()
            tensors[f"square/{name}"] = kept["exp_avg_sq"].cpu()
        tensors["random"] = torch.get_rng_state()
        partial = self._folder / "state.partial"
        numbers = {"step": str(step), "trained_tokens": str(self._trained_tokens)}
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial, metadata=numbers)
        partial.replace(self._folder / "state.safetensors")

    def _restore(self) -> int:
        """Load the last saved state; returns the number of steps already done."""
        path = self._folder / "state.safetensors"
        if not path.exists():
            return 0
        with safe_open(path, framework="pt") as saved:
            numbers = saved.metadata()
            step = int(numbers["step"])
            self._trained_tokens = int(numbers["trained_tokens"])
            for name, p in self._named:
                p.data.copy_(saved.get_tensor(f"weight/{name}"))
                self._optimizer.state[p] = {
                    "step": torch.tensor(float(step)),
                    "exp_avg": saved.get_tensor(f"mean/{name}").to(p.device),
                    "exp_avg_sq": saved.get_tensor(f"square/{name}").to(p.device),
                }
            torch.set_rng_state(saved.get_tensor("random"))
        return step


def _schedule(step: int, total: int, warmup_share: float) -> float:
    """Factor of the learning rate at step `step` (from 0): linear warm-up, then half a cosine to zero."""
    warmup = math.ceil(total * warmup_share)
    if step < warmup:
        return step / max(1, warmup)
    progress = (step - warmup) / max(1, total - warmup)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
