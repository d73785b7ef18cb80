"""What the method can be told: the sections `[split] [annotate] [[annotators]] [justify] [select] [train] [evolve]`.

The other sections, and the file as a whole, are in `settings.py`. Knows nothing of files, providers or stages.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from semievol_api.capabilities import TrainSpec
from semievol_api.store.fingerprints import fingerprinted

Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
ThresholdPool: TypeAlias = Literal["unlabeled", "labeled"]


class Settings(BaseModel):
    """The root of all settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@fingerprinted("provider", "model")
class ModelRef(Settings):
    """One model at one provider."""

    provider: str
    model: str


@fingerprinted("calibration", "development")
class SplitSettings(Settings):
    """`[split]`: what of the labelled data calibrates and what gates (method §3)."""

    calibration: Literal["auto"] | Annotated[int, Field(ge=0)] = 0
    """Labels that are held back from the warm-up to calibrate; auto: a fifth, 50 to 500, at most half."""
    development: Literal["auto"] | Annotated[int, Field(ge=0)] = 0
    """Labels held out of everything but the gate, where `[data] dev` names no file; auto: a tenth of 500 or more."""


@fingerprinted("n", "max_shots", "draw", "temperature", "max_tokens")
class AnnotateSettings(Settings):
    """`[annotate]`: the annotators of collaborative learning (paper §3.3)."""

    n: int = Field(default=4, ge=1)
    max_shots: int = Field(default=3, ge=0)
    draw: Literal["without-replacement", "with-replacement", "diverse", "identical"] = "without-replacement"
    """Ambiguity 1: how annotators are drawn from {base, warm} x {0..max_shots shots}. `diverse` is the default
    crew of the calibrated mode, `identical` annotators differ by their seed only; `[[annotators]]` overrides all."""
    temperature: float = Field(default=1.0, ge=0)
    max_tokens: int = Field(default=512, ge=1)


@fingerprinted(
    "id", "model", "shots", "permute", "paraphrase", "temperature", "n", "estimator", "neighbours", "sharpness"
)
class AnnotatorSettings(Settings):
    """`[[annotators]]`: one way of asking; any of them replaces the whole drawn crew."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)
    model: Literal["base", "warm", "neighbour_vote"] | ModelRef
    """Who is asked. `neighbour_vote` asks nobody: the nearest labelled examples vote."""
    shots: int = Field(default=0, ge=0)
    permute: bool = False
    """Show the options in an order of each question's own."""
    paraphrase: str | None = Field(default=None, min_length=1)
    """Another wording of the task's instruction."""
    temperature: float | None = Field(default=None, ge=0)
    """Default: 0 where a distribution is read, 1 for votes."""
    n: int = Field(default=1, ge=1, le=128)
    """Samples; more than one is for votes."""
    estimator: Literal["auto", "option_prob", "answer_logprob", "p_true", "verbal", "votes"] = "auto"
    """How its answers become probabilities; auto: the best that its server gives. `p_true` asks a second question."""
    neighbours: int = Field(default=5, ge=1)
    """How many examples vote, for `neighbour_vote`."""
    sharpness: float = Field(default=10.0, gt=0)
    """How much the nearer ones of them outweigh the others: a vote's weight is exp(sharpness * cosine)."""


@fingerprinted("on", "margin", "score", "unjustified", "show", "temperature", "max_tokens")
class JustifySettings(Settings):
    """`[justify]`: self-justification by the warm model (paper §3.3)."""

    on: Literal["all", "disagreements", "uncertain", "never"] = "all"
    """Ambiguity 2: which items are justified. `uncertain`: the crew disagrees, or the pool's margin is small."""
    margin: Share = 0.2
    """Below this difference between the two best labels an item is `uncertain`."""
    score: Literal["justified", "first-annotator"] = "justified"
    """Ambiguity 8: whose log-probabilities score an item that was not justified falls back to the first
    annotator; "first-annotator" takes them always."""
    unjustified: Literal["first-annotator", "majority"] = "first-annotator"
    """Whose answer an item gets that was not justified; the majority's score is the mean over its voters."""
    show: Literal["response", "answer"] = "response"
    temperature: float = Field(default=0.0, ge=0)
    max_tokens: int = Field(default=512, ge=1)


@fingerprinted(
    "rule",
    "score",
    "label_shares",
    "alpha",
    "delta",
    "n",
    "budget",
    "audit_share",
    "class_quota",
    "share",
    "pool",
    "interpolation",
)
class SelectSettings(Settings):
    """`[select]`: which pseudo-labels are kept (paper §3.4)."""

    rule: Literal["percentile", "fdr", "high-probability", "top-n", "human-budget", "random", "official-2025"] = (
        "percentile"
    )
    """`random` keeps a random `share`: the control of all others."""
    score: Literal["mean_nll", "pooled"] = "mean_nll"
    """What is ranked: the justified answer's mean negative log-probability, or the crew's pooled probability."""
    label_shares: Literal["labeled", "as-read"] = "labeled"
    """Whether, for `pooled`, an annotator that says a label far more or less often than it stands among the labels is
    brought back to their shares. `as-read` where the labelled rows were not drawn like the unlabelled ones."""
    alpha: float = Field(default=0.1, gt=0, lt=1)
    """The tolerated share of false labels, for `fdr` (on average) and `high-probability`."""
    delta: float = Field(default=0.1, gt=0, lt=1)
    """How often `high-probability` may exceed alpha."""
    n: int = Field(default=0, ge=0)
    """How many are kept by `top-n`."""
    budget: int = Field(default=0, ge=0)
    """How many questions a person is asked, for `human-budget`."""
    audit_share: float = Field(default=0.15, ge=0.1, le=0.2)
    """The part of the budget that is a uniform sample, so that calibration stays honest."""
    class_quota: Share = 0.0
    """The least share that is kept of every predicted class; costs precision."""
    share: Share = 0.5
    """theta: the share of the threshold's pool that is kept."""
    pool: ThresholdPool = "unlabeled"
    """Ambiguity 4: whose scores place the threshold (the formula: unlabelled)."""
    interpolation: Literal["linear", "lower", "higher"] = "linear"
    """Ambiguity 7: how the percentile falls between two scores."""


@fingerprinted(
    "n_epochs",
    "final_epochs",
    "batch_size",
    "learning_rate_multiplier",
    "data",
    "start",
    "final_learning_rate_multiplier",
    "poll_s",
    "suffix",
)
class TrainSettings(TrainSpec):
    """`[train]`: the two trainings, with every field of a `TrainSpec`; None is the trainer's own (the vendor's `auto`).

    `seed` is the run's where it is left out.
    """

    n_epochs: int | None = Field(default=2, ge=1)
    final_epochs: int | None = Field(default=None, ge=1)
    """Epochs of the final training; default: `n_epochs`."""
    data: Literal["selected+labeled", "selected"] = "selected+labeled"
    """Ambiguity 3: Eq. 9 (both) or Algorithm 1 (selected only)."""
    start: Literal["base", "warm"] = "base"
    """What the final training starts from."""
    final_learning_rate_multiplier: float | None = Field(default=None, gt=0)
    """Of the final training; default: `learning_rate_multiplier`."""
    poll_s: float = Field(default=10.0, gt=0)
    suffix: str = Field(default="semievol", max_length=40)

    @property
    def final(self) -> TrainSettings:
        """The settings of the final training."""
        rate = self.final_learning_rate_multiplier or self.learning_rate_multiplier
        return self.model_copy(
            update={"n_epochs": self.final_epochs or self.n_epochs, "learning_rate_multiplier": rate}
        )

    def spec(self, run_seed: int) -> TrainSpec:
        """What a trainer is told."""
        return TrainSpec.model_validate({"seed": run_seed, **self.given})


@fingerprinted("kind", "shots")
class EvolveSettings(Settings):
    """`[evolve]`: what becomes of the kept pseudo-labels."""

    kind: Literal["fine-tune", "in-context"] = "fine-tune"
    """A training, or demonstrations beside every question: for models that cannot be tuned."""
    shots: int = Field(default=3, ge=1)
    """Demonstrations per question, for `in-context`."""
