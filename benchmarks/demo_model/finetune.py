"""A small LoRA trainer and letter reader, for measuring the demo model without a server.

Trains as the embedded server does: AdamW, a tenth of the steps warming up, half a cosine to zero, loss on the
reply only, whole epochs. Knows nothing of stages, pseudo-labels or files other than the model's.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from benchmarks.demo_model import wording
from benchmarks.demo_model.tokenizer import PromptEncoder

INFERENCE_BATCH = 64
REPLY_TOKENS = 3
WARMUP_SHARE = 0.1


@dataclass(frozen=True)
class Recipe:
    """One fine-tuning: full epochs over the file, LoRA on every linear layer."""

    n_epochs: int = 10
    batch_size: int = 8
    learning_rate: float = 3e-3
    rank: int = 16
    alpha: int = 32
    train_embeddings: bool = False
    seed: int = 0


@dataclass(frozen=True)
class TrainingRow:
    """A prompt and the index of the letter to answer."""

    item: wording.Item
    letter: int


@dataclass(frozen=True)
class Reading:
    """What a model says to a set of prompts.

    `letter_probs` has shape (prompts, letters): probabilities over the whole vocabulary after `Answer:`, so
    rows may sum to less than one. `opening_nll` is the negative log-likelihood of `Answer:` itself.
    """

    letter_probs: NDArray[np.float64]
    opening_nll: NDArray[np.float64]

    @property
    def best(self) -> NDArray[np.int64]:
        """The greedy letters."""
        letters: NDArray[np.int64] = self.letter_probs.argmax(1)
        return letters

    def sampled(self, seed: int) -> NDArray[np.int64]:
        """One letter a prompt at temperature 1."""
        rng = np.random.default_rng(seed)
        shares = self.letter_probs / self.letter_probs.sum(1, keepdims=True)
        return np.array([rng.choice(len(row), p=row) for row in shares])

    def mean_nll(self, letters: NDArray[np.int64]) -> NDArray[np.float64]:
        """Mean negative log-likelihood of the reply's tokens, the end of turn left out."""
        chosen = self.letter_probs[np.arange(len(letters)), letters]
        nll: NDArray[np.float64] = (self.opening_nll - np.log(np.maximum(chosen, 1e-12))) / 2
        return nll


def load_base(folder: Path) -> LlamaForCausalLM:
    """The shipped model in 32-bit floats."""
    return LlamaForCausalLM.from_pretrained(str(folder), dtype=torch.float32)


def fine_tune(folder: Path, encoder: PromptEncoder, rows: Sequence[TrainingRow], recipe: Recipe) -> Any:
    """A new model, trained on the rows, its adapter folded into the weights."""
    torch.manual_seed(recipe.seed)
    model = get_peft_model(
        load_base(folder),
        LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
            modules_to_save=["embed_tokens"] if recipe.train_embeddings else None,
            ensure_weight_tying=recipe.train_embeddings,
        ),
    )
    prompts = encoder.prompts([row.item for row in rows])
    texts = [p + encoder.reply(row.letter) for p, row in zip(prompts, rows, strict=True)]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0)
    n_steps = math.ceil(len(rows) / recipe.batch_size) * recipe.n_epochs
    model.train()
    for step, chosen in enumerate(_batches(len(rows), recipe)):
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * _rate_share(step, n_steps)
        ids, mask = encoder.pad_right([texts[i] for i in chosen])
        loss = _reply_loss(model, ids, mask)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
    return model.merge_and_unload().eval()


def _batches(n_rows: int, recipe: Recipe) -> Iterator[list[int]]:
    for epoch in range(recipe.n_epochs):
        order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(recipe.seed + epoch)).tolist()
        yield from (order[i : i + recipe.batch_size] for i in range(0, n_rows, recipe.batch_size))


def _rate_share(step: int, n_steps: int) -> float:
    warmup = math.ceil(n_steps * WARMUP_SHARE)
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, n_steps - warmup)))


def _reply_loss(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(len(ids))[:, None]
    columns = mask.sum(1, keepdim=True) - 1 - REPLY_TOKENS + torch.arange(REPLY_TOKENS)
    hidden = model.base_model.model.model(input_ids=ids, attention_mask=mask).last_hidden_state
    logits = model.base_model.model.lm_head(hidden[rows, columns])
    return F.cross_entropy(logits.flatten(0, 1), ids[rows, columns + 1].flatten())


@torch.no_grad()
def read_letters(model: Any, encoder: PromptEncoder, items: Sequence[wording.Item]) -> Reading:
    """The model's letters after each prompt."""
    prompts = [[*ids, encoder.answer_id] for ids in encoder.prompts(items)]
    probs = np.zeros((len(prompts), len(wording.LETTERS)))
    opening = np.zeros(len(prompts))
    for chosen in _by_length(prompts):
        ids, mask = encoder.pad_right([prompts[i] for i in chosen])
        hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        rows, last = torch.arange(len(chosen)), mask.sum(1) - 1
        logprobs = model.lm_head(torch.stack([hidden[rows, last - 1], hidden[rows, last]])).log_softmax(-1)
        opening[chosen] = -logprobs[0, :, encoder.answer_id].numpy()
        probs[chosen] = logprobs[1][:, list(encoder.letter_ids)].exp().numpy()
    return Reading(probs, opening)


def embed_texts(model: Any, encoder: PromptEncoder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Unit vectors, shape (texts, width): the final hidden state of each text's end token."""
    return embed_tokens(model, encoder, encoder.embedding_inputs(texts))


@torch.no_grad()
def embed_tokens(model: Any, encoder: PromptEncoder, rows: Sequence[list[int]]) -> NDArray[np.float32]:
    """Unit vectors, shape (rows, width): the final hidden state of each row's last token."""
    vectors = np.zeros((len(rows), model.config.hidden_size), np.float32)
    for chosen in _by_length(rows):
        ids, mask = encoder.pad_right([rows[i] for i in chosen])
        hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        last = hidden[torch.arange(len(chosen)), mask.sum(1) - 1]
        vectors[chosen] = F.normalize(last, dim=-1).numpy()
    return vectors


def _by_length(rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    yield from (order[i : i + INFERENCE_BATCH] for i in range(0, len(order), INFERENCE_BATCH))
