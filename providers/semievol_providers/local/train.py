"""Train one adapter in a process of its own: `python -m semievol_providers.local.train JOB.json`.

Writes progress to the job folder's `events.jsonl`. SIGTERM saves the state and ends after the current step;
with `--with-parent` the end of standard input ends the process at once, so that it never outlives whoever
started it. A full disk ends it with a status of its own, so that whoever started it can tell and go on later.
A lock keeps two trainings out of one folder. Knows nothing of queues or HTTP.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import IO, Any

import msgspec
import torch

from semievol_api.errors import UserError
from semievol_api.training.chat_jsonl import MIN_EXAMPLES
from semievol_providers.local.chat_tokens import ChatTokens
from semievol_providers.local.disk import full_disk, is_out_of_memory, is_out_of_space
from semievol_providers.local.model_folder import end_of_turn_ids, load_tokenizer, quiet_known_warnings, read_facts
from semievol_providers.local.training_data import TokenExample, hold_out, load_token_examples
from semievol_providers.local.training_job import (
    EXIT_FAILED,
    EXIT_NO_SPACE,
    EXIT_STOPPED,
    NO_SPACE,
    EventLog,
    TrainingEvent,
    TrainingJob,
)
from semievol_providers.local.training_loop import Ranks, TrainingFailedError, TrainingLoop, packs, with_adapter

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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("a") as lock:
            if os.environ.get("RANK", "0") == "0" and not _acquire(lock):
                sys.stderr.write("another training holds this folder\n")
                return EXIT_FAILED
            return _run(job, EventLog(folder), stop)
    except OSError as error:  # where not even the last word fits
        if not is_out_of_space(error):
            raise
        return EXIT_NO_SPACE


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
    try:
        return _train(job, log, stop)
    except TrainingFailedError as error:
        log.write(TrainingEvent(kind="failed", code=error.code, message=str(error)))
    except UserError as error:
        log.write(TrainingEvent(kind="failed", code="invalid_training_file", message=str(error)))
    except Exception as error:
        if is_out_of_space(error):
            return _out_of_space(job, log)
        if not is_out_of_memory(error):
            raise
        log.write(TrainingEvent(kind="failed", code="out_of_memory", message=_memory_advice(job)))
    return EXIT_FAILED


def _out_of_space(job: TrainingJob, log: EventLog) -> int:
    message = full_disk(job.folder, "the training could not be saved. Its last saved step is whole.")
    with contextlib.suppress(OSError):  # standard error is a file on the same disk
        sys.stderr.write(f"{message}\n")
    with contextlib.suppress(OSError):  # a few bytes may still fit
        log.write(TrainingEvent(kind="failed", code=NO_SPACE, message=message))
    return EXIT_NO_SPACE


def _memory_advice(job: TrainingJob) -> str:
    return (
        f"The training ran out of memory on {job.device!r}. Lower tokens_per_pass (now {job.tokens_per_pass:,}; "
        "the result stays the same), shorten the longest examples, or choose a smaller base model or rank."
    )


def _train(job: TrainingJob, log: EventLog, stop: _StopFlag) -> int:
    torch.set_num_threads(job.threads)
    quiet_known_warnings()
    tokenizer = load_tokenizer(job.base)
    train, valid = _examples(job, tokenizer)
    pad = tokenizer.pad_token_id
    ranks = Ranks(job.device)
    report = log.write if ranks.first else _ignore
    model = with_adapter(job, ranks.device)
    laid_out = msgspec.structs.replace(job, packing=packs(job, ranks.device))
    loop = TrainingLoop(model, laid_out, pad if isinstance(pad, int) else 0, report, ranks)
    total = -(-len(train) // job.batch_size) * job.n_epochs
    report(TrainingEvent(kind="start", total_steps=total))
    stop.training = True
    if not loop.run(train, valid, lambda: stop.is_set):
        report(TrainingEvent(kind="stopped", total_steps=total))
        return EXIT_STOPPED
    target = Path(job.folder) / "adapter"
    loop.save_result(target)
    ranks.close()
    if ranks.first:
        (target / "README.md").write_text(_adapter_card(job, len(train)), encoding="utf-8")
    report(
        TrainingEvent(
            kind="done", step=loop.steps_done, total_steps=total, folder=str(target), trained_tokens=loop.trained_tokens
        )
    )
    return 0


def _examples(job: TrainingJob, tokenizer: Any) -> tuple[list[TokenExample], list[TokenExample]]:
    """Those to train on and those to validate on."""
    context = read_facts(job.base).context_tokens
    tokens, ends = ChatTokens(tokenizer), end_of_turn_ids(job.base, tokenizer)
    train = load_token_examples(Path(job.training_file), tokens, ends, context, at_least=MIN_EXAMPLES)
    if job.validation_file:
        valid = load_token_examples(Path(job.validation_file), tokens, ends, context, at_least=1)
    else:
        train, valid = hold_out(train, job.validation_share, job.seed)
    if job.patience and not valid:
        raise TrainingFailedError(
            "no_validation",
            f"patience = {job.patience} ends a training by its validation loss, and there are no validation examples. "
            "Give a validation file, or set validation_share = 0.1.",
        )
    return train, valid


def _ignore(_event: TrainingEvent) -> None:
    """Only the first rank reports."""


def _adapter_card(job: TrainingJob, examples: int) -> str:
    """The card of an adapter."""
    base = Path(job.base).name
    settings = {
        "rank": job.rank,
        "alpha": job.alpha,
        "dropout": job.dropout,
        "kind of adapter": _kind(job),
        "examples": examples,
        "epochs": job.n_epochs,
        "examples per step": job.batch_size,
        "learning rate": job.learning_rate,
        "warm-up share": job.warmup_share,
        "seed": job.seed,
    }
    rows = "".join(f"| {name} | {value} |\n" for name, value in settings.items())
    return (
        f"---\nbase_model: {job.base}\nlibrary_name: peft\npipeline_tag: text-generation\n"
        "tags:\n- lora\n- semievol\n---\n\n"
        f"# An adapter of {base}\n\n"
        "Trained with semievol-api on chat examples; only the assistant's turns are learnt (completion-only loss, "
        "AdamW, cosine schedule).\n\n"
        f"| setting | value |\n| --- | --- |\n{rows}\n"
        "Serve it with vLLM (`--enable-lora --lora-modules NAME=THIS_FOLDER`), or merge it into its base with "
        "`semievol export-model`.\n"
    )


def _kind(job: TrainingJob) -> str:
    words = [word for word, chosen in (("DoRA", job.use_dora), ("rsLoRA", job.use_rslora)) if chosen]
    return (" + ".join(words) or "LoRA") + (", over a base in 4 bits (QLoRA)" if job.qlora else "")


if __name__ == "__main__":
    ended = main()
    if ended == EXIT_NO_SPACE:  # the interpreter's own end would fail to write what standard error still holds
        os._exit(ended)
    sys.exit(ended)
