"""What local and vllm are both held to: a job that ends, and the labels' log-probabilities of a plain forward pass."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semievol_api.capabilities import FineTuner, FineTuneRequest, JobState, JobTicket
from semievol_api.records import Prompt

_WAIT_S = 120.0
SHORT_ANSWERS = """
[annotate]
max_tokens = 6

[justify]
max_tokens = 6

[evaluate]
max_tokens = 6
"""
"""The part of a config that keeps a run of a small model short."""


async def ended(tuner: FineTuner | None, ticket: JobTicket, poll_s: float = 0.05) -> JobState:
    """The job's last state, polled for as a run does."""
    assert tuner is not None
    for _ in range(int(_WAIT_S / poll_s)):
        state = await tuner.poll(ticket)
        if state.finished:
            return state
        await asyncio.sleep(poll_s)
    raise AssertionError("the training does not end")


async def tuned_model(tuner: FineTuner | None, request: FineTuneRequest, poll_s: float = 0.05) -> str:
    """The name of the model that a request buys; found, where it was bought before."""
    assert tuner is not None
    state = await ended(tuner, await tuner.find(request) or await tuner.submit(request), poll_s)
    assert state.model is not None, state.reason
    return state.model


def forward_pass(base: Path, prompt: Prompt, labels: Sequence[str], adapter: str | None = None) -> list[float]:
    """The labels' log-probabilities by plain transformers and PEFT, spellings with and without a space together."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
    turns.append({"role": "assistant", "content": prompt.prefill or ""})
    text = tokenizer.apply_chat_template(turns, tokenize=False, continue_final_message=True)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.inference_mode():
        logits = model(tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids).logits
    scores = logits[0, -1].log_softmax(-1)
    spellings = [[tokenizer.encode(s, add_special_tokens=False) for s in (label, f" {label}")] for label in labels]
    return [float(torch.logsumexp(scores[[ids[0] for ids in both if len(ids) == 1]], 0)) for both in spellings]
