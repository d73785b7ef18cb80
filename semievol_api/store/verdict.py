"""What a run came to, as typed values: the accuracies, the paired differences, the gate, how selection ended.

    verdict = load_artifact(folder, "verdict", Verdict)
    verdict.sentence, verdict.models[0].accuracy, verdict.document["sentence"]

The only module that knows how they lie in JSON; keys that it does not know are left alone. Knows nothing of how a
figure is computed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeAlias, cast

from msgspec import UNSET, Struct, UnsetType, convert, to_builtins

from semievol_api.records import Alert
from semievol_api.store.run_store import Packed

Range: TypeAlias = tuple[float, float]
"""The low and the high end of an interval."""


class _WithInterval(Struct, frozen=True, kw_only=True):
    interval: Range

    @property
    def low(self) -> float:
        """The low end of the interval."""
        return self.interval[0]

    @property
    def high(self) -> float:
        """The high end of the interval."""
        return self.interval[1]


class FieldScores(_WithInterval, frozen=True, kw_only=True):
    """Where answers consist of fields: F1 in [0, 1] over all of them, its interval, the mean over fields, and each."""

    micro_f1: float
    macro_f1: float
    by_field: Mapping[str, float]


class ModelScore(_WithInterval, frozen=True, kw_only=True):
    """One model on the test questions: the accuracy is a share in [0, 1] with its 95 % interval."""

    name: str
    label: str
    accuracy: float
    abstained: int
    tokens: int
    trained_tokens: int | UnsetType | None = UNSET
    fields: FieldScores | UnsetType = UNSET


class Difference(_WithInterval, frozen=True, kw_only=True):
    """A paired difference of two models in percentage points, with its 95 % interval."""

    of: str
    against: str
    of_label: str
    against_label: str
    points: float
    mcnemar_p: float
    smallest_detectable: float


class Oracle(Struct, frozen=True, kw_only=True):
    """What hidden gold says of the kept pseudo-labels."""

    kept_with_gold: int
    right: int
    false_share: float


class Gate(Struct, frozen=True, kw_only=True):
    """Whether the evolved model replaces the fine-tuned one, on `items` held-out labels; points None for no items."""

    promoted: bool
    items: int
    points: float | None
    interval: Range | None
    message: str


class AnnotatorUse(Struct, frozen=True, kw_only=True):
    """Which model an annotator asked, how its answers were read, and what it counted where weights were fitted."""

    role: str
    read_by: str
    weight: float | UnsetType = UNSET


class SelectionSummary(Struct, frozen=True, kw_only=True):
    """What every rule reports: counts of examples, and what the user has to be told.

    `shortened_prompts` counts few-shot prompts that did not fit the model's context.
    """

    rule: str
    unlabeled: int
    answered: int
    kept: int
    messages: tuple[str, ...]
    shortened_prompts: int = 0
    lost: tuple[str, ...] | UnsetType = UNSET
    """Sentences about answers cut at `max_tokens` and alternatives that a server did not show."""

    @property
    def enough_to_train(self) -> bool:
        """Whether enough was kept to train on; a rule that does not say so always trains."""
        return True


class PaperSummary(SelectionSummary, frozen=True, kw_only=True):
    """The rules of the paper and of its released code: the percentile of `mean_nll` below which labels are kept."""

    share: float
    threshold_mean_nll: float | None
    unanimous: int | UnsetType = UNSET


class Teaching(Struct, frozen=True, kw_only=True):
    """What the kept labels can teach: of those `compared`, `differ` from what the annotator `asked` says by itself.

    `hardest_quarter` is the share of the kept that are from the quarter of the questions that it is least sure of.
    """

    asked: str
    compared: int
    differ: int
    hardest_quarter: float


CountsByName: TypeAlias = Mapping[str, tuple[int, int]]
"""How many were kept, and of how many."""


class PooledSummary(SelectionSummary, frozen=True, kw_only=True):
    """A rule over the pooled probability: what it promised, on which calibration, and what should worry the user.

    `applied_rule` differs from `rule` where there were too few labels for it. `label_factors`: by annotator and number
    of options, what its labels were weighted by. `smallest_alpha` is the least budget that keeps at least 20 rows,
    `kept_at_smallest_alpha` how many, where too few were kept; `best_half` is true where half was kept instead.
    `fields` are those of which every answer consists.
    """

    score: str
    alpha: float | None
    applied_rule: str
    guarantee: bool
    threshold: float | None
    estimated_false_share: float | None
    coverage: float
    calibration: int
    calibration_error: float | None
    agreed: int
    asked_of_a_person: int
    answered_by_a_person: int
    enough: bool
    annotators: Mapping[str, AnnotatorUse]
    labels_filled_in: Mapping[str, int]
    label_factors: Mapping[str, Mapping[str, list[float]]] | UnsetType = UNSET
    fields: tuple[str, ...] | UnsetType = UNSET
    false_share_range: Range | None
    warnings: tuple[Alert, ...]
    smallest_alpha: float | UnsetType = UNSET
    kept_at_smallest_alpha: int | UnsetType = UNSET
    best_half: bool | UnsetType = UNSET
    teaching: Teaching | UnsetType = UNSET
    kept_by_category: CountsByName | UnsetType = UNSET
    kept_by_label: CountsByName | UnsetType = UNSET

    @property
    def enough_to_train(self) -> bool:
        """See `SelectionSummary`."""
        return self.enough


def summary_of(document: Mapping[str, object]) -> PaperSummary | PooledSummary:
    """A stored summary."""
    return convert(document, PooledSummary) if "enough" in document else convert(document, PaperSummary)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The comparison of all models; what the table and the report show.

    `selection` is None for a baseline that selects nothing, `oracle` without hidden gold. `promoted`, `gate` and
    `warnings` stand only where the selection rule goes beyond the paper's.
    """

    n_test: int
    models: tuple[ModelScore, ...]
    differences: tuple[Difference, ...]
    selection: PaperSummary | PooledSummary | None
    oracle: Oracle | None
    hygiene: Mapping[str, object] | None = None
    notes: tuple[str, ...]
    sentence: str
    promoted: bool | None = None
    gate: Gate | None = None
    warnings: tuple[Alert, ...] | None = None

    @property
    def document(self) -> dict[str, Any]:
        """The verdict as JSON values."""
        found = {name: to_builtins(value) for name, value in vars(self).items()}
        found["selection"] = found["selection"] or {}
        absent = [name for name in ("hygiene", "promoted", "gate", "warnings") if found[name] is None]
        return cast("dict[str, Any]", json.loads(json.dumps({k: v for k, v in found.items() if k not in absent})))

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """A verdict from its JSON values."""
        selection = document["selection"]
        return cls(
            n_test=document["n_test"],
            models=convert(document["models"], tuple[ModelScore, ...]),
            differences=convert(document["differences"], tuple[Difference, ...]),
            selection=summary_of(selection) if selection else None,
            oracle=convert(document["oracle"], Oracle | None),
            hygiene=document.get("hygiene"),
            notes=tuple(document["notes"]),
            sentence=document["sentence"],
            promoted=document.get("promoted"),
            gate=convert(document.get("gate"), Gate | None),
            warnings=convert(document.get("warnings"), tuple[Alert, ...] | None),
        )

    def pack(self) -> Packed:
        """One document."""
        return Packed(documents={"verdict": self.document})

    @classmethod
    def unpack(cls, packed: Packed) -> Self:
        """See `pack`."""
        return cls.of(cast("Mapping[str, Any]", packed.documents["verdict"]))
