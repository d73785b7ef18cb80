"""Train a LoRA adapter on token examples: AdamW, cosine schedule with warm-up, clipped gradients.

    loop = TrainingLoop(with_adapter(job, device), job, pad_id, report)
    if loop.run(train, valid, should_stop): loop.save_result(folder / "adapter")

A plain loop that gives the losses of transformers' Trainer with PEFT on the same data, but takes logits only
where something is learnt. Resumes bit for bit from its last saved state. Knows nothing of files of chats, of job
files, or of HTTP.
"""

from __future__ import annotations

import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from semievol_api.errors import UserError
from semievol_providers.local.disk import is_out_of_memory
from semievol_providers.local.machine import fast_in_bfloat16
from semievol_providers.local.model_folder import check_adapter, load_model, read_facts
from semievol_providers.local.training_cpu import is_quick, quicken
from semievol_providers.local.training_data import TokenExample, step_indices
from semievol_providers.local.training_job import NO_BITSANDBYTES, TrainingEvent, TrainingJob, can_quantize
from semievol_providers.local.training_passes import PackedPasses, PaddedPasses, Passes, RowPasses


class TrainingFailedError(UserError):
    """Training cannot go on; `code` is a short machine-readable word."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def packs(job: TrainingJob, device: str) -> bool:
    """Whether examples go through the model end to end: as asked, or where FlashAttention makes it pay."""
    if job.packing != "auto":
        return job.packing
    return device.startswith("cuda") and find_spec("flash_attn") is not None


def with_adapter(job: TrainingJob, device: str) -> Any:
    """The base model with its adapter: fresh, from the job's seed, or an earlier one.

    Raises:
        TrainingFailedError: 4 bits are asked for without bitsandbytes.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    base = _base(job, device)
    torch.manual_seed(job.seed)
    if job.adapter is not None:
        check_adapter(job.adapter)
        return _quick(PeftModel.from_pretrained(base, job.adapter, is_trainable=True), job, device)
    embeddings: dict[str, Any] = (
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True} if job.train_embeddings else {}
    )
    config = LoraConfig(
        r=job.rank,
        lora_alpha=job.alpha,
        lora_dropout=job.dropout,
        target_modules=job.target_modules if job.target_modules == "all-linear" else job.target_modules.split(","),
        use_dora=job.use_dora,
        use_rslora=job.use_rslora,
        task_type="CAUSAL_LM",
        **embeddings,
    )
    return _quick(get_peft_model(base, config), job, device)


def _quick(model: Any, job: TrainingJob, device: str) -> Any:
    """The same model, prepared for `RowPasses` where it is in bfloat16 on a CPU and packing is not ruled out."""
    if device == "cpu" and job.packing is not False and model.dtype == torch.bfloat16:
        quicken(model)
    return model


def _dtype(job: TrainingJob, device: str) -> str:
    """Of the base: bfloat16 on an accelerator, the job's on the CPU. Embeddings that are trained need float32."""
    if device != "cpu":
        return "bfloat16"
    if job.dtype != "auto":
        return job.dtype
    fits = read_facts(job.base).dtype == "bfloat16" and not (job.train_embeddings or job.qlora)
    return "bfloat16" if fits and fast_in_bfloat16(device) else "float32"


def _passes_for(model: Any, job: TrainingJob, pad_id: int) -> Passes:
    if is_quick(model):
        return RowPasses()
    return PackedPasses() if job.packing is True else PaddedPasses(pad_id)


def _base(job: TrainingJob, device: str) -> Any:
    """In eval mode, frozen by PEFT later: float32 or bfloat16 on the CPU, bfloat16 on an accelerator, or 4 bits."""
    options: dict[str, Any] = {"dtype": _dtype(job, device)}
    if packs(job, device) and device.startswith("cuda") and find_spec("flash_attn") is not None:
        options["attn_implementation"] = "flash_attention_2"
    if job.qlora:
        if not can_quantize():
            raise TrainingFailedError("no_bitsandbytes", NO_BITSANDBYTES)
        options["quantization_config"] = _four_bits(device)
    return load_model(job.base, device, **options)


def _four_bits(device: str) -> Any:
    """NormalFloat4 with the scales quantized too, as in the QLoRA paper; products in the base's usual type."""
    import transformers

    computing = torch.float32 if device == "cpu" else torch.bfloat16
    config: Any = transformers.BitsAndBytesConfig
    return config(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=computing,
    )


class EarlyStop:
    """Ends the training after `patience` epochs without a lower validation loss. 0: never."""

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._last_epoch = 0
        self.best_epoch = 0
        self.best_loss = math.inf

    def is_better(self, epoch: int, loss: float) -> bool:
        """Take in an epoch; True where its model is the one to keep."""
        self._last_epoch = epoch
        if self._patience == 0 or not loss < self.best_loss:
            return False
        self.best_epoch, self.best_loss = epoch, loss
        return True

    @property
    def is_over(self) -> bool:
        """Whether patience has run out."""
        return 0 < self._patience <= self._last_epoch - self.best_epoch

    @property
    def keeps_earlier(self) -> bool:
        """Whether the model to keep is not the last one."""
        return 0 < self.best_epoch < self._last_epoch

    def state(self) -> dict[str, str]:
        """To be saved with the training."""
        return {"best_epoch": str(self.best_epoch), "best_loss": repr(self.best_loss), "heard": str(self._last_epoch)}

    def restore(self, state: Mapping[str, str]) -> None:
        """Go on from a saved state; one without these words is a training's that heard nothing."""
        self.best_epoch = int(state.get("best_epoch", "0"))
        self.best_loss = float(state.get("best_loss", "inf"))
        self._last_epoch = int(state.get("heard", "0"))


class Ranks:
    """`rank` of `size`; `first` writes files and events."""

    def __init__(self, device: str) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.device = device
        if self.size > 1:
            import torch.distributed as dist

            if device.startswith("cuda"):
                self.device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
                torch.cuda.set_device(self.device)
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")

    @property
    def first(self) -> bool:
        """True for the one that writes."""
        return self.rank == 0

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace every tensor by its sum over all ranks."""
        if self.size > 1:
            import torch.distributed as dist

            for tensor in tensors:
                dist.all_reduce(tensor)

    def total(self, *numbers: float) -> list[float]:
        """The sums of these numbers over all ranks, in float64."""
        if self.size == 1:
            return list(numbers)
        held = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        self.add_up([held])
        return [float(value) for value in held]

    def close(self) -> None:
        """Leave the group."""
        if self.size > 1:
            import torch.distributed as dist

            dist.destroy_process_group()


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
        self._passes = _passes_for(model, job, pad_id)
        self._early = EarlyStop(job.patience)
        self._step_count = 0
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
        while step < total and not self._early.is_over:
            rows = [train[i] for i in step_indices(len(train), job.batch_size, job.seed, step)]
            rate = job.learning_rate * _schedule(step, total, job.warmup_share)
            score = self._step(rows, rate, step)
            step = self._step_count = step + 1
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
        if self._early.keeps_earlier:
            self._report_best(step, total)
        return True

    @property
    def steps_done(self) -> int:
        """Optimizer steps taken, those before a restart included."""
        return self._step_count

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
            for part in self._passes.split(rows, budget)[self._ranks.rank :: size]:
                loss, hits = self._passes.loss(self._model, part, self._ranks.device)
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

    def _validate(self, valid: Sequence[TokenExample]) -> _Score:
        self._model.eval()
        loss_sum, weight, right, learnt = 0.0, 0.0, 0, 0
        with torch.no_grad():
            for part in self._passes.split(valid, self._tokens_per_pass):
                loss, hits = self._passes.loss(self._model, part, self._ranks.device)
                loss_sum += float(loss)
                right += hits
                weight += sum(row.weight * sum(row.learnt) for row in part)
                learnt += sum(sum(row.learnt) for row in part)
        self._model.train()
        return _Score(loss_sum / weight, right / learnt)

    # -------------------------------------------------------------------------------------------- keeping
    def _checkpoint(self, step: int, total: int, epoch: int, score: _Score, valid: Sequence[TokenExample]) -> None:
        scores = self._validate(valid) if valid else None
        if scores is not None:
            loss = self._ranks.total(scores.loss if self._ranks.first else 0.0)[0]  # one rank decides for all
            if self._early.is_better(epoch, loss):
                self.save_adapter(self._folder / "best")
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

    def _report_best(self, step: int, total: int) -> None:
        early = self._early
        message = (
            f"The validation loss was lowest after epoch {early.best_epoch} ({early.best_loss:.4f}), so the adapter of "
            "that epoch is the result."
        )
        self._report(TrainingEvent(kind="note", step=step, total_steps=total, code="early_stop", message=message))

    def save_result(self, target: Path) -> None:
        """Write the adapter that the training is for: the best epoch's with `patience`, else the last one's."""
        best = self._folder / "best"
        if not self._early.keeps_earlier:
            self.save_adapter(target)
        elif self._ranks.first and best.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            best.replace(target)

    def save_adapter(self, target: Path) -> None:
        """Write the adapter as a PEFT folder in safetensors, whole or not at all."""
        if not self._ranks.first:
            return
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            self._model.save_pretrained(str(partial), save_embedding_layers=False)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)  # it would fill what little room there is
            raise
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
        numbers = {"step": str(step), "trained_tokens": str(self._trained_tokens), **self._early.state()}
        try:
            save_file({k: v.contiguous() for k, v in tensors.items()}, partial, metadata=numbers)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        partial.replace(self._folder / "state.safetensors")

    def _restore(self) -> int:
        """Load the last saved state; returns the number of steps already done."""
        path = self._folder / "state.safetensors"
        if not path.exists():
            return 0
        with safe_open(path, framework="pt") as saved:
            numbers = saved.metadata()
            step = self._step_count = int(numbers["step"])
            self._early.restore(numbers)
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
