"""One training without a run: pairs of prompt and answer in, a tuned model out, bought once.

    warm = tune(provider, [(prompt, answer), ...], "gpt-4o-mini-2024-07-18", folder="runs/mine")

Knows nothing of tasks, labels or what the pairs teach.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from semievol_api.capabilities import Provider
from semievol_api.cassettes.clock import RealClock
from semievol_api.config.method import TrainSettings
from semievol_api.config.settings import parse_settings
from semievol_api.engine.asking import PromptLike, as_prompt
from semievol_api.notebook import CellProgress, cell_display, run_blocking
from semievol_api.records import Message, TrainingExample
from semievol_api.store.artifacts import TrainingFile, TunedModel
from semievol_api.store.run_store import RunStore
from semievol_api.training.chat_jsonl import jsonl_chunks
from semievol_api.training.fine_tuning import Trainer, fine_tune


def tune(
    provider: Provider,
    examples: Iterable[tuple[PromptLike, str]],
    model: str,
    *,
    folder: str | Path,
    **settings: Any,
) -> TunedModel:
    """Fine-tune a model on prompts and answers, and wait for it; the same training is never bought twice.

    The job's receipt is in the folder before the wait begins: a call after an interruption goes on waiting, a call
    after the end returns at once. No cap holds here; a run's `max_usd` does.

    Parameters
    ----------
    provider : Provider
        From `connect`, with a `finetuner`.
    examples : iterable of (prompt, answer)
        At least 10. A prompt is a text, a `Prompt` or chat messages; the answer is the assistant's turn.
    model : str
        The base model's name at the provider.
    folder : path
        Where receipts and results are kept; several trainings may share it.
    **settings
        As in `[train]` of a config: `n_epochs`, `batch_size`, `learning_rate_multiplier`, `seed` (default 0), `rank`
        and others, `poll_s` (seconds between two looks), `suffix`.

    Returns
    -------
    TunedModel
        `model` is the name to ask; `trained_tokens` and `training_usd` (USD) where they are known.

    Raises
    ------
    MissingAbilityError
        The provider cannot fine-tune.
    ConfigError
        A setting is unknown, or the provider's trainings have no place for it.
    DataError
        A prompt or the file cannot be used; vendors want at least 10 examples.
    JobFailedError
        The job ended without a model; the next call may buy it anew.

    Notes
    -----
    SemiEvol, equations 1 and 9: the warm-up and the final training.

    Examples
    --------
    >>> provider = semievol_api.connect("scripted")
    >>> pairs = [(f"Item {i} has cue: red", "Answer: red") for i in range(20)]
    >>> warm = semievol_api.tune(provider, pairs, "tiny", folder="tuned", n_epochs=2, poll_s=0.01)
    >>> warm.base, warm.model.startswith("ft:")
    ('tiny', True)
    """
    chosen = parse_settings(TrainSettings, settings, where="tune")
    content = b"".join(jsonl_chunks(_lines(examples)))
    show = cell_display()
    trainer = Trainer(provider=provider, base=model, clock=RealClock(), seed=0)
    if show is not None:
        trainer = replace(trainer, on_event=CellProgress(show, f"Training {model}").on_job)
    told = repr((provider.identity, model, sorted(chosen.spec(0).model_dump().items())))
    name = f"tune-{hashlib.blake2b(content + told.encode(), digest_size=6).hexdigest()}"

    async def waiting() -> TunedModel:
        try:
            with RunStore.open(Path(folder), "tune") as store:
                return await fine_tune(trainer, store, name, TrainingFile(content), chosen)
        finally:
            await provider.aclose()

    return run_blocking(waiting())


def _lines(examples: Iterable[tuple[PromptLike, str]]) -> Iterator[TrainingExample]:
    for number, (prompt, answer) in enumerate(examples):
        turns = as_prompt(prompt, None, number).messages
        yield TrainingExample(messages=(*turns, Message("assistant", answer)))
