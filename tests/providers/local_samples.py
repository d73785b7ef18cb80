"""Makes what tests train and ask: a tiny random Llama with a byte-level tokenizer, and fine-tuning files."""

from __future__ import annotations

import json
from pathlib import Path

CHAT_TEMPLATE = (
    "{{ '<|bot|>' }}{% for m in messages %}"
    "{{ '<|start|>' + m['role'] + '<|end|>' + m['content'] | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>' }}{% endif %}"
)


def make_tiny_model(folder: Path) -> None:
    """Write a random Llama (two layers, width 32, context 512) with a byte tokenizer into the folder."""
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
    fast.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, initializer_range=0.2,
        bos_token_id=fast.bos_token_id, eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


def chat_line(question: str, answer: str) -> str:
    """One line of a fine-tuning file."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns}) + "\n"


def training_lines(count: int) -> str:
    """A small file that a model can learn: the answer is a letter that the question's length decides."""
    questions = [f"Item {i} " + "x" * (i % 5) for i in range(count)]
    answers = [f"Answer: {'ABCDE'[i % 5]}" + "!" * (i % 4) for i in range(count)]
    return "".join(chat_line(question, answer) for question, answer in zip(questions, answers, strict=True))
