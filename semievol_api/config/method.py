"""The settings of the method: the sections `[split] [annotate] [[annotators]] [justify] [select] [train] [evolve]`.

The other sections, and the file as a whole, are in `settings.py`. Knows nothing of files, providers or stages.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

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
    """`[split]`: how many labelled examples are used for calibration and for the gate (docs/method.md)."""

    calibration: Literal["auto", "cross"] | Annotated[int, Field(ge=0)] = 0
    """Number of calibration examples, which are not used in the warm-up; auto (or "holdout"): a fifth, 50 to 500, at
    most half; 0 (or "none"): nothing is calibrated. "cross": all labels teach and all calibrate, each answered by
    models that have not seen it; labels that share groups are held back as with "auto"."""
    folds: Literal[2, 5] = 2
    """Number of warm models that share the labels with `calibration = "cross"`; each costs a training."""
    development: Literal["auto"] | Annotated[int, Field(ge=0)] = 0
    """Number of examples for the gate, if `[data] dev` is not set; auto: a tenth of 500 or more labels."""

    @field_validator("calibration", mode="before")
    @classmethod
    def _by_other_names(cls, value: object) -> object:
        return {"holdout": "auto", "none": 0}.get(value, value) if isinstance(value, str) else value


@fingerprinted("n", "max_shots", "draw", "temperature", "max_tokens")
class AnnotateSettings(Settings):
    """`[annotate]`: the annotators of collaborative learning (paper §3.3)."""

    n: int = Field(default=4, ge=1)
    max_shots: int = Field(default=3, ge=0)
    draw: Literal["without-replacement", "with-replacement", "diverse", "auto", "identical"] = "without-replacement"
    """Ambiguity 1: how annotators are drawn from {base, warm} x {0..max_shots shots}. `diverse` is the
    default of the calibrated mode; `auto` adds annotators that labels teach where
    it can; `identical` annotators differ by their seed only. `[[annotators]]` overrides it."""
    temperature: float = Field(default=1.0, ge=0)
    max_tokens: int = Field(default=512, ge=1)


@fingerprinted(
    "id", "model", "shots", "permute", "paraphrase", "temperature", "n", "estimator", "neighbours", "sharpness"
)
class AnnotatorSettings(Settings):
    """`[[annotators]]`: one annotator. If there are any, they replace those of the mode."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)
    model: Literal["base", "warm", "neighbour_vote", "classifier", "label_propagation"] | ModelRef
    """The model. Three ask none and need an embedder: `neighbour_vote` (the nearest labelled examples vote),
    `classifier` (logistic regression on the embeddings), `label_propagation` (labels spread over a graph of them)."""
    shots: int = Field(default=0, ge=0)
    permute: bool = False
    """Shuffle the options of each question."""
    paraphrase: str | None = Field(default=None, min_length=1)
    """An instruction that replaces that of the task."""
    temperature: float | None = Field(default=None, ge=0)
    """Default: 0 if a distribution is read, 1 for votes."""
    n: int = Field(default=1, ge=1, le=128)
    """Samples; more than one is for votes."""
    estimator: Literal["auto", "option_prob", "answer_logprob", "p_true", "verbal", "votes"] = "auto"
    """How answers become probabilities; auto: the best that the server supports. `p_true` asks a second question."""
    neighbours: int = Field(default=5, ge=1)
    """Number of voting examples, for `neighbour_vote`."""
    sharpness: float = Field(default=10.0, gt=0)
    """The weight of a vote is exp(sharpness * cosine)."""
    seeds: int = Field(default=1, ge=1, le=8)
    """Number of warm models, trained with different seeds, that answer side by side; each costs a training."""

    @model_validator(mode="after")
    def _seeds_are_trainings(self) -> AnnotatorSettings:
        if self.seeds > 1 and self.model != "warm":
            raise ValueError('seeds is for model = "warm", which is trained once for each')
        return self


@fingerprinted("on", "margin", "score", "unjustified", "show", "temperature", "max_tokens")
class JustifySettings(Settings):
    """`[justify]`: self-justification by the warm model (paper §3.3)."""

    on: Literal["all", "disagreements", "uncertain", "never"] = "all"
    """Ambiguity 2: which items are justified. `uncertain`: annotators disagree, or the pooled margin is small."""
    margin: Share = 0.2
    """Below this difference between the two best labels an item is `uncertain`."""
    score: Literal["justified", "first-annotator"] = "justified"
    """Ambiguity 8: whose log-probabilities are the score; items without a justification use those of the first
    annotator. "first-annotator" uses them for all items."""
    unjustified: Literal["first-annotator", "majority"] = "first-annotator"
    """The answer of an item without a justification; the score of the majority is the mean over its voters."""
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
    """`random` keeps a random `share`, as a control."""
    score: Literal["mean_nll", "pooled"] = "mean_nll"
    """The ranking score: mean negative log-probability of the justified answer, or the pooled probability."""
    label_shares: Literal["labeled", "as-read"] = "labeled"
    """For `pooled`: rescale an annotator that gives a label far more or less often than it occurs among the labelled
    examples. Use `as-read` if the labelled rows were not drawn like the unlabelled ones."""
    weights: Literal["equal", "fitted"] = "equal"
    """What annotators count in the pool. `fitted`: by how right they are on labels of other folds; needs `[split]
    calibration = "cross"`."""
    alpha: float = Field(default=0.1, gt=0, lt=1)
    """The tolerated share of false labels, for `fdr` (on average) and `high-probability`."""
    delta: float = Field(default=0.1, gt=0, lt=1)
    """How often `high-probability` may exceed alpha."""
    n: int = Field(default=0, ge=0)
    """Number of kept pseudo-labels, for `top-n`."""
    budget: int = Field(default=0, ge=0)
    """Number of questions for human review, for `human-budget`."""
    audit_share: float = Field(default=0.15, ge=0.1, le=0.2)
    """The part of the budget that is a uniform sample, so that calibration stays unbiased."""
    class_quota: Share = 0.0
    """Minimum share to keep of every predicted class; lowers precision."""
    category_floor: Share = 0.0
    """Minimum share to keep of every category of questions; lowers precision."""
    on_empty: Literal["best-half", "stop"] = "best-half"
    """If `fdr` or `high-probability` keeps too few to train on: keep the best half, without a guarantee, or nothing."""
    share: Share = 0.5
    """theta: the share of the pool that is kept."""
    pool: ThresholdPool = "unlabeled"
    """Ambiguity 4: whose scores determine the threshold (the formula: unlabelled)."""
    interpolation: Literal["linear", "lower", "higher"] = "linear"
    """Ambiguity 7: interpolation of the percentile between two scores."""


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
    """`[train]`: both trainings, with all fields of a `TrainSpec`; None is the trainer's default.

    `n_epochs`, `batch_size` and the multipliers may be "auto", which leaves them to the trainer and is None here. The
    default of `seed` is the seed of the run.
    """

    n_epochs: int | None = Field(default=2, ge=1)
    final_epochs: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    """Epochs of the final training; default: `n_epochs`."""
    data: Literal["selected+labeled", "selected"] = "selected+labeled"
    """Ambiguity 3: Eq. 9 (both) or Algorithm 1 (selected only)."""
    start: Literal["base", "warm"] = "base"
    """The model that the final training starts from."""
    final_learning_rate_multiplier: float | None = Field(default=None, gt=0)
    """Of the final training; default: `learning_rate_multiplier`."""
    poll_s: float = Field(default=10.0, gt=0)
    suffix: str = Field(default="semievol", max_length=40)

    @field_validator("n_epochs", "batch_size", "learning_rate_multiplier", mode="before")
    @classmethod
    def _left_to_the_trainer(cls, value: object) -> object:
        return None if value == "auto" else value

    @property
    def final(self) -> TrainSettings:
        """The settings of the final training."""
        rate = self.final_learning_rate_multiplier or self.learning_rate_multiplier
        epochs = None if self.final_epochs == "auto" else self.final_epochs or self.n_epochs
        return self.model_copy(update={"n_epochs": epochs, "learning_rate_multiplier": rate})

    def spec(self, run_seed: int) -> TrainSpec:
        """The specification for a trainer."""
        return TrainSpec.model_validate({"seed": run_seed, **self.given})


@fingerprinted("kind", "shots")
class EvolveSettings(Settings):
    """`[evolve]`: how the kept pseudo-labels are used."""

    kind: Literal["fine-tune", "in-context"] = "fine-tune"
    """Fine-tune on them, or use them as demonstrations (for models that cannot be tuned)."""
    shots: int = Field(default=3, ge=1)
    """Demonstrations per question, for `in-context`."""
