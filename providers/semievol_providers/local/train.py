"""Train one adapter in a process of its own: `python -m semievol_providers.local.train JOB.json`.

Writes progress to the job folder's `events.jsonl`. SIGTERM saves the state and ends after the current step;
with `--with-parent` the end of standard input ends the process at once, so that it never outlives whoever
started it. A lock keeps two trainings out of one folder. Knows nothing of queues or HTTP.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import IO, Any

from semievol_providers.local.training_job import EventLog, TrainingEvent, TrainingJob

EXIT_FAILED = 3
EXIT_STOPPED = 4
_LOCK_WAIT_S = 30.0


class _StopFlag:
    """Set by SIGTERM; before `training` there is nothing to save, and the process ends at once."""

    def __init__(self) -> None:
        self.is_set = False
        self.training = False

    def handle(self, _signal: int, _frame: FrameType | None) -> None:
        self.is_set = True
        if not self.training:
            os._exit(EXIT_STOPPED)


def main() -> int:
    """Run the job file named on the command line; the exit status says how it ended."""
    parser = argparse.ArgumentParser(description="Train one LoRA adapter.")
    parser.add_argument("job", type=Path)
    parser.add_argument("--with-parent", action="store_true")
    arguments = parser.parse_args()
    if arguments.with_parent:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    stop = _StopFlag()
    signal.signal(signal.SIGTERM, stop.handle)
    job = TrainingJob.read(arguments.job)
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        if os.environ.get("RANK", "0") == "0" and not _acquire(lock):
            sys.stderr.write("another training holds this folder\n")
            return EXIT_FAILED
        return _run(job, EventLog(folder), stop)


def _end_with_parent() -> None:
    while os.read(0, 4096):  # sys.stdin would hold a lock that the interpreter needs at its end
        pass
    os._exit(EXIT_STOPPED)


def _acquire(lock: IO[str]) -> bool:
    if sys.platform == "win32":
        return True
    import fcntl

    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)


def _run(job: TrainingJob, log: EventLog, stop: _StopFlag) -> int:
    from semievol_api.errors import UserError
    from semievol_providers.local.training_loop import TrainingFailedError, is_out_of_memory

    try:
        return _train(job, log, stop)
    except TrainingFailedError as error:
        log.write(TrainingEvent(kind="failed", code=error.code, message=str(error)))
    except UserError as error:
        log.write(TrainingEvent(kind="failed", code="invalid_training_file", message=str(error)))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        log.write(TrainingEvent(kind="failed", code="out_of_memory", message=_memory_advice(job)))
    return EXIT_FAILED


def _memory_advice(job: TrainingJob) -> str:
    return (
        f"The training ran out of memory on {job.device!r}. Lower tokens_per_pass (now {job.tokens_per_pass:,}; "
        "the result stays the same), shorten the longest examples, or choose a smaller base model or rank."
    )


def _train(job: TrainingJob, log: EventLog, stop: _StopFlag) -> int:
    import torch

    torch.set_num_threads(job.threads)
    from semievol_providers.local.chat_tokens import ChatTokens
    from semievol_providers.local.model_card import adapter_card
    from semievol_providers.local.model_folder import (
        end_of_turn_ids,
        load_tokenizer,
        quiet_known_warnings,
        read_facts,
    )
    from semievol_providers.local.train_ranks import Ranks
    from semievol_providers.local.training_data import load_token_examples
    from semievol_providers.local.training_file import MIN_EXAMPLES
    from semievol_providers.local.training_loop import TrainingLoop

    quiet_known_warnings()
    facts = read_facts(job.base)
    tokenizer = load_tokenizer(job.base)
    tokens, ends = ChatTokens(tokenizer), end_of_turn_ids(job.base, tokenizer)
    train = load_token_examples(Path(job.training_file), tokens, ends, facts.context_tokens, at_least=MIN_EXAMPLES)
    valid = (
        load_token_examples(Path(job.validation_file), tokens, ends, facts.context_tokens, at_least=1)
        if job.validation_file
        else []
    )
    pad = tokenizer.pad_token_id
    ranks = Ranks(job.device)
    report = log.write if ranks.first else _unheard
    model = _with_adapter(job, ranks.device)
    loop = TrainingLoop(model, job, pad if isinstance(pad, int) else 0, report, ranks)
    total = -(-len(train) // job.batch_size) * job.n_epochs
    report(TrainingEvent(kind="start", total_steps=total))
    stop.training = True
    if not loop.run(train, valid, lambda: stop.is_set):
        report(TrainingEvent(kind="stopped", total_steps=total))
        return EXIT_STOPPED
    target = Path(job.folder) / "adapter"
    loop.save_adapter(target)
    ranks.close()
    if ranks.first:
        (target / "README.md").write_text(adapter_card(job, len(train)), encoding="utf-8")
    report(
        TrainingEvent(
            kind="done", step=total, total_steps=total, folder=str(target), trained_tokens=loop.trained_tokens
        )
    )
    return 0


def _unheard(_event: TrainingEvent) -> None:
    """Only the first rank tells."""


def _with_adapter(job: TrainingJob, device: str) -> Any:
    """The base model with a LoRA on all linear layers: fresh, from the job's seed, or an earlier one."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    from semievol_providers.local.adapters import check_adapter
    from semievol_providers.local.model_folder import load_model

    base = load_model(job.base, device)
    torch.manual_seed(job.seed)
    if job.adapter is not None:
        check_adapter(job.adapter)
        return PeftModel.from_pretrained(base, job.adapter, is_trainable=True)
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
    return get_peft_model(base, config)


if __name__ == "__main__":
    sys.exit(main())
