"""Makes what tests train and ask: a tiny random Llama with a byte-level tokenizer, fine-tuning files and jobs."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from semievol_providers.local.training_job import TrainingEvent, TrainingJob, read_events

DEMO_MODEL = Path(__file__).resolve().parent.parent.parent / "semievol_api" / "demo" / "model"
CHAT_TEMPLATE = (
    "{{ '<|bot|>' }}{% for m in messages %}"
    "{{ '<|start|>' + m['role'] + '<|end|>' + m['content'] | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>' }}{% endif %}"
)
LLAMA_TOOLS_TEMPLATE = """\
{{- bos_token }}
{%- for m in messages %}
    {%- if m.role == 'user' and loop.index0 == (1 if messages[0].role == 'system' else 0) and tools %}
        {{- '<|start|>user<|end|>\n\nGiven the following functions, please respond with a JSON for a function call. ' }}
        {{- 'Respond in the format {"name": function name, "parameters": dictionary of arguments}.\n\n' }}
        {%- for t in tools %}
            {{- t | tojson(indent=4) }}
            {{- '\n\n' }}
        {%- endfor %}
        {{- m.content | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in m %}
        {%- if m.tool_calls | length != 1 %}
            {{- raise_exception('This model only supports single tool-calls at once!') }}
        {%- endif %}
        {%- set call = m.tool_calls[0].function %}
        {{- '<|start|>assistant<|end|>\n\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}
        {{- '}<|eot|>' }}
    {%- elif m.role == 'tool' %}
        {{- '<|start|>ipython<|end|>\n\n' + m.content | tojson + '<|eot|>' }}
    {%- else %}
        {{- '<|start|>' + m.role + '<|end|>\n\n' + m.content | trim + '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\n\n' }}
{%- endif %}"""
"""Shaped like Llama 3.1's."""
QWEN_TOOLS_TEMPLATE = """\
{%- if tools %}
    {{- '<|start|>system\n# Tools\n\nYou may call one or more functions.\n\n<tools>' }}
    {%- for t in tools %}
        {{- '\n' + t | tojson }}
    {%- endfor %}
    {{- '\n</tools>\n\nFor each function call, return a json object within <tool_call></tool_call> XML tags:\n' }}
    {{- '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|eot|>\n' }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'tool' %}
        {{- '<|start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|eot|>\n' }}
    {%- else %}
        {{- '<|start|>' + m.role }}
        {%- if m.content %}
            {{- '\n' + m.content }}
        {%- endif %}
        {%- for call in m.tool_calls or [] %}
            {{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|eot|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant\n' }}
{%- endif %}"""
"""Shaped like Qwen 2.5's."""


def make_tiny_model(folder: Path, template: str = CHAT_TEMPLATE, context: int = 512, *, markers: bool = False) -> None:
    """Write a random Llama (two layers, width 32) with a byte tokenizer into the folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|bot|>", eos_token="<|eot|>", pad_token="<|pad|>"
    )
    fast.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>"]})
    if markers:
        fast.add_tokens(["<tool_call>", "</tool_call>"])  # no special tokens: they are part of an answer's text
    fast.chat_template = template
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=context, tie_word_embeddings=True, initializer_range=0.2,
        bos_token_id=fast.bos_token_id, eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


def random_model(folder: Path, like: Path, family: str, **settings: object) -> Path:
    """A random model of another architecture with the tokenizer of `like`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(like, folder)
    plain: dict[str, object] = {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 2, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2,
    }  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **plain | settings)).save_pretrained(folder)
    return folder


def chat_line(question: str, answer: str) -> str:
    """One line of a fine-tuning file."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns}) + "\n"


def training_lines(count: int) -> str:
    """A small file that a model can learn: the answer is a letter that the question's length decides."""
    questions = [f"Item {i} " + "x" * (i % 5) for i in range(count)]
    answers = [f"Answer: {'ABCDE'[i % 5]}" + "!" * (i % 4) for i in range(count)]
    return "".join(chat_line(question, answer) for question, answer in zip(questions, answers, strict=True))


def make_job(base: Path, folder: Path, lines: str | None = None, **settings: Any) -> TrainingJob:
    """A short training of a small adapter, written down in a new folder; by default on `training_lines(22)`."""
    folder.mkdir()
    (folder / "train.jsonl").write_text(training_lines(22) if lines is None else lines)
    given = {"n_epochs": 2, "batch_size": 4, "learning_rate": 3e-3, "rank": 4, "alpha": 8, "seed": 3} | settings
    job = TrainingJob(
        base=str(base), **{"training_file": str(folder / "train.jsonl"), "folder": str(folder / "job")} | given
    )
    job.write(folder / "job.json")
    return job


def train_here(job: TrainingJob, monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[TrainingEvent]]:
    """The exit status and events of the training program, run inside this process."""
    from semievol_providers.local.train import main

    monkeypatch.setattr(sys, "argv", ["train", str(Path(job.folder).parent / "job.json")])
    before = signal.getsignal(signal.SIGTERM)
    try:
        status = main()
    finally:
        signal.signal(signal.SIGTERM, before)
    return status, read_events(Path(job.folder), 0)[0]


def losses_of(events: list[TrainingEvent]) -> list[float]:
    """The training losses by step; a step taken again after a restart counts once."""
    by_step = {e.step: e.train_loss for e in events if e.kind == "step"}
    return [loss for _, loss in sorted(by_step.items()) if loss is not None]
