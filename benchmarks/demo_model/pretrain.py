"""Fixed-step pretraining of the demo's Llama: read options, copy from solved examples, weigh proposals.

Beside the replies, the teacher's vectors are regressed: in the middle of the stack where a solved example,
the question or an option has been read, and at its top at the end of a prompt and of a bare text, whose last
hidden state is the text's embedding. The regression heads are thrown away.
Knows nothing of the demo's labels, nor of files.
"""

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.demo_model.batches import Places, PromptBatch, PromptBatcher
from benchmarks.demo_model.episodes import Episode, EpisodeMaker
from benchmarks.demo_model.tokenizer import CONTEXT_TOKENS, SPECIAL_TOKENS, PromptEncoder

EMBEDDING_STD, EMBEDDING_NOISE = 0.05, 0.005
TEACHER_SHARPNESS = 15.0
REPLY_TOKENS = 3
EASY_SHARE = 0.3
FIRST_CYCLE = ("options", "shots", "text", "justify")
LATER_CYCLE = ("options", "shots", "text", "options", "text", "justify", "options", "text")
SHOWN_SHARE = 0.3


@dataclass(frozen=True)
class ModelShape:
    """The size of the Llama.

    After `reading_layer` layers a text must have been understood where it ends.
    """

    width: int = 128
    n_layers: int = 4
    reading_layer: int = 2
    mlp_width: int = 352
    n_heads: int = 4
    n_kv_heads: int = 2


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train; batch sizes are prompts of each kind."""

    n_steps: int = 1600
    learning_rate: float = 2e-3
    warmup_steps: int = 60
    final_share: float = 0.03
    weight_decay: float = 0.03
    seed: int = 0
    options_batch: int = 64
    shots_batch: int = 24
    justify_batch: int = 24
    text_batch: int = 96
    report_every: int = 50


class PieceVectors(Protocol):
    """Gives a token's text a first vector, or None."""

    def vector(self, token_text: str) -> torch.Tensor | None: ...


@dataclass(frozen=True)
class Makers:
    """Where episodes come from: short sentences first, then all."""

    easy: EpisodeMaker
    full: EpisodeMaker


def new_model(shape: ModelShape, encoder: PromptEncoder, pieces: PieceVectors, seed: int) -> LlamaForCausalLM:
    """A Llama whose token embeddings start from the teacher's word pieces, the rest at random."""
    torch.manual_seed(seed)
    n_tokens = len(encoder.tokenizer)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=n_tokens,
            hidden_size=shape.width,
            intermediate_size=shape.mlp_width,
            num_hidden_layers=shape.n_layers,
            num_attention_heads=shape.n_heads,
            num_key_value_heads=shape.n_kv_heads,
            max_position_embeddings=CONTEXT_TOKENS,
            tie_word_embeddings=True,
            rms_norm_eps=1e-5,
            bos_token_id=encoder.token_id(SPECIAL_TOKENS[0]),
            eos_token_id=encoder.end_of_turn_id,
            pad_token_id=encoder.padding_id,
        )
    )
    found = [
        (i, vector)
        for i in range(len(SPECIAL_TOKENS), n_tokens)
        if (vector := pieces.vector(str(encoder.tokenizer.decode([i])))) is not None
    ]
    rows = torch.stack([vector for _, vector in found])
    centred = rows - rows.mean(0)
    reduced = centred @ torch.linalg.svd(centred, full_matrices=False)[2][: shape.width].T
    start = reduced / reduced.std() * EMBEDDING_STD + EMBEDDING_NOISE * torch.randn_like(reduced)
    with torch.no_grad():
        model.model.embed_tokens.weight[[i for i, _ in found]] = start
    return model


class Pretraining:
    """One training run: a model, the heads that the teacher's vectors are read off, and the optimiser."""

    def __init__(self, model: LlamaForCausalLM, shape: ModelShape, schedule: Schedule, makers: Makers) -> None:
        self.model, self._shape, self._schedule = model, shape, schedule
        self._easy, self._maker = makers.easy, makers.full
        maker = makers.full
        d_teacher = maker.topics.sentence_vectors.shape[1]
        self._shown_head = torch.nn.Linear(shape.width, d_teacher, bias=False)
        self._meaning_head = torch.nn.Linear(shape.width, d_teacher, bias=False)
        self._parameters = [
            *model.parameters(),
            *self._shown_head.parameters(),
            *self._meaning_head.parameters(),
        ]
        self._optimiser = torch.optim.AdamW(
            self._parameters, lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=schedule.weight_decay
        )
        self._seen: dict[str, list[float]] = defaultdict(list)

    def run(self, encoder: PromptEncoder) -> dict[str, float]:
        """Train for all steps; returns closing averages: accuracy of each kind of episode, similarities."""
        batcher, started = PromptBatcher(encoder, self._maker.topics), time.monotonic()
        self.model.train()
        for step in range(self._schedule.n_steps):
            progress = step / self._schedule.n_steps
            loss = self._loss(step, progress, encoder, batcher)
            self._update(loss, step, progress)
            if (step + 1) % self._schedule.report_every == 0:
                print(f"[{time.monotonic() - started:5.0f}s] {step + 1} {self._report()}", flush=True)
        return {kind: round(float(np.mean(values[-400:])), 3) for kind, values in sorted(self._seen.items())}

    def _report(self) -> str:
        recent = {kind: values[-400:] for kind, values in sorted(self._seen.items())}
        return " ".join(f"{kind} {np.mean(values):.3f}" for kind, values in recent.items())

    def _update(self, loss: torch.Tensor, step: int, progress: float) -> None:
        schedule = self._schedule
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        share = schedule.final_share + (1 - schedule.final_share) * cosine
        for group in self._optimiser.param_groups:
            group["lr"] = schedule.learning_rate * min(1.0, (step + 1) / schedule.warmup_steps) * share
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimiser.step()

    def _loss(self, step: int, progress: float, encoder: PromptEncoder, batcher: PromptBatcher) -> torch.Tensor:
        schedule = self._schedule
        maker = self._easy if progress < EASY_SHARE else self._maker
        cycle = FIRST_CYCLE if progress < EASY_SHARE else LATER_CYCLE
        kind = cycle[step % len(cycle)]
        if kind == "text":
            return self._text_loss(encoder, maker)
        if kind == "options":
            episodes = [maker.options() for _ in range(schedule.options_batch)]
        elif kind == "shots":
            episodes = [maker.shots(progress) for _ in range(schedule.shots_batch)]
        else:
            episodes = [maker.justify(progress) for _ in range(schedule.justify_batch)]
        # Halves of similar length waste little on padding.
        episodes.sort(key=lambda episode: episode.n_characters)
        middle = len(episodes) // 2
        halves = [episodes[:middle], episodes[middle:]]
        # Copying letters is learnt first: early on, the teacher's share of the gradient would drown it.
        meaning_weight = min(1.0, 0.3 + 4 * progress)
        return torch.stack([self._prompt_loss(batcher.batch(half), half, meaning_weight) for half in halves]).mean()

    def _prompt_loss(self, batch: PromptBatch, episodes: Sequence[Episode], meaning_weight: float) -> torch.Tensor:
        out = self.model.model(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True)
        rows = torch.arange(len(episodes))[:, None]
        columns = batch.reply_start[:, None] - 1 + torch.arange(REPLY_TOKENS)
        logits = self.model.lm_head(out.last_hidden_state[rows, columns])
        targets = batch.ids[rows, columns + 1]
        nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
        # The residual stream is small at first: unscaled, little of it would reach the head.
        middle = F.rms_norm(out.hidden_states[self._shape.reading_layer], (self._shape.width,))
        shown = self._meaning_loss(self._shown_head, middle, batch.shown, "shown")
        asked = self._meaning_loss(self._meaning_head, out.last_hidden_state, batch.asked, "asked")
        for episode, hit in zip(episodes, logits[:, 1].argmax(-1) == targets[:, 1], strict=True):
            self._seen[episode.kind].append(float(hit))
        return nll.mean() + nll[:, 1].mean() + meaning_weight * (asked + SHOWN_SHARE * shown)

    def _meaning_loss(self, head: torch.nn.Linear, hidden: torch.Tensor, places: Places, name: str) -> torch.Tensor:
        predicted = head(hidden[places.rows, places.columns])
        similarity = F.cosine_similarity(predicted, places.vectors)
        self._seen[name].append(similarity.mean().item())
        contrast = F.normalize(predicted, dim=-1) @ places.vectors.T * TEACHER_SHARPNESS
        # Two places may show the same text: both are right.
        same = (places.vectors @ places.vectors.T > 0.999).float()
        nce = -(contrast.log_softmax(-1) * same / same.sum(-1, keepdim=True)).sum(-1).mean()
        return 2 * (1 - similarity.mean()) + 0.5 * nce

    def _text_loss(self, encoder: PromptEncoder, maker: EpisodeMaker) -> torch.Tensor:
        drawn = maker.rng.choice(maker.usable, size=self._schedule.text_batch, replace=False)
        ids, mask = encoder.pad_right(encoder.embedding_inputs([maker.sentences[int(i)] for i in drawn]))
        hidden = self.model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        last = hidden[torch.arange(len(drawn)), mask.sum(1) - 1]
        target = torch.from_numpy(maker.topics.sentence_vectors[drawn])
        similarity = F.cosine_similarity(self._meaning_head(last), target).mean()
        unit = F.normalize(last, dim=-1)
        apart = ~torch.eye(len(drawn), dtype=torch.bool)
        student, teacher = (unit @ unit.T)[apart], (target @ target.T)[apart]
        self._seen["text"].append(similarity.item())
        self._seen["text_pairs"].append(torch.corrcoef(torch.stack([student, teacher]))[0, 1].item())
        return 2 * (1 - similarity) + 20 * F.mse_loss(student, teacher)
