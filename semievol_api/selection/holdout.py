"""Which labels teach, which calibrate, which gate (method §3.1 and §3.9).

Stratified, seeded, whole groups together; settings that hold nothing back leave all labels to the warm-up. Knows
nothing of models or of what calibration is for.
"""

from __future__ import annotations

from collections.abc import Sequence

from semievol_api.config.method import SplitSettings
from semievol_api.data import split
from semievol_api.records import Example
from semievol_api.selection.promises import calibration_size
from semievol_api.selection.values import ENOUGH_CALIBRATION
from semievol_api.store.artifacts import FINEST, Folds, Prepared
from semievol_api.store.fingerprints import stage
from semievol_api.training.chat_jsonl import MIN_EXAMPLES

GATE_FROM = 500
"""From this many labels on some are held out for the gate."""
LEAST_GATE = 50


_GROUPED = " Labels that share a group cannot teach and calibrate at once: whole groups were held back."


@stage("split_labels")
async def split_labels(
    data: Prepared,
    development: Sequence[Example],
    pseudo_labeled: Sequence[Example],
    reviewed: Sequence[str],
    settings: SplitSettings,
    seed: int,
) -> Folds:
    """D_lab as D_warm, D_cal and D_dev; `development` is the user's own D_dev, empty for none.

    What earlier rounds kept (`pseudo_labeled`) joins D_warm, and so do examples that a person `reviewed` (by id): those
    were chosen for their doubt, so they are unlike the pool and neither calibrate nor gate.
    """
    doubted = set(reviewed)
    labeled = tuple(e for e in data.labeled if e.id not in doubted)
    extra = tuple(e for e in data.labeled if e.id in doubted)
    gate = _gate_size(len(labeled), settings) if not development else 0
    rest, held = _apart(labeled, gate, seed + 1)
    grouped = settings.calibration == "cross" and _share_groups(rest)
    if grouped:
        settings = settings.model_copy(update={"calibration": "auto"})
    if settings.calibration == "cross":
        return _crossed(rest, (*extra, *pseudo_labeled), tuple(development) or held, settings, seed)
    wanted = settings.calibration
    size = calibration_size(len(labeled), len(held)) if wanted == "auto" else min(wanted, len(rest) // 2)
    warm, calibration = _apart(rest, size, seed)
    return Folds(
        warm=(*warm, *extra, *pseudo_labeled),
        calibration=calibration,
        development=tuple(development) or held,
        tunable=settings.calibration == 0 or len(warm) + len(extra) >= MIN_EXAMPLES,
        note=_note(
            len(warm) + len(extra) + len(pseudo_labeled), len(calibration), len(development) or len(held), settings
        )
        + (_GROUPED if grouped else ""),
    )


def _crossed(
    labeled: tuple[Example, ...],
    extra: tuple[Example, ...],
    development: tuple[Example, ...],
    settings: SplitSettings,
    seed: int,
) -> Folds:
    """All labels teach and calibrate; `extra` only teaches. Too few of them calibrate nothing."""
    calibrates = len(labeled) >= ENOUGH_CALIBRATION
    gating = f" and {len(development)} gate" if development else ""
    teaching = len(labeled) + len(extra)
    if calibrates:
        note = (
            f"Of the labelled examples {teaching} teach, {len(labeled)} calibrate as well{gating}: each is answered by "
            f"models that have not seen it, {settings.folds} warm models where there are any."
        )
    else:
        note = f"{teaching} labels teach{gating}; fewer than {ENOUGH_CALIBRATION} can calibrate nothing."
    return Folds(
        warm=(*labeled, *extra),
        calibration=labeled if calibrates else (),
        development=development,
        tunable=teaching >= MIN_EXAMPLES,
        note=note,
        cross=tuple(tuple(e.id for e in part) for part in split(labeled, (1,) * FINEST, seed)) if calibrates else (),
        n_models=settings.folds if calibrates else 1,
    )


def _share_groups(examples: Sequence[Example]) -> bool:
    """Whether one would be shown beside the question of another of its group."""
    groups = [e.group for e in examples if e.group]
    return len(set(groups)) < len(groups)


def _gate_size(n: int, settings: SplitSettings) -> int:
    if settings.development != "auto":
        return min(settings.development, n // 2)
    return max(LEAST_GATE, round(0.1 * n)) if n >= GATE_FROM else 0


def _apart(examples: Sequence[Example], size: int, seed: int) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """All but about `size` examples, and those."""
    if size == 0:
        return tuple(examples), ()
    kept, taken = split(examples, (len(examples) - size, size), seed)
    return kept, taken


def _note(warm: int, calibration: int, development: int, settings: SplitSettings) -> str:
    if settings.calibration == 0 and not development:
        return f"All {warm} labels teach."
    parts = [f"{warm} labels teach the warm model"]
    if calibration:
        parts.append(f"{calibration} calibrate")
    if development:
        parts.append(f"{development} gate")
    text = f"Of the labelled examples {', '.join(parts)}."
    if settings.calibration == "auto" and not calibration:
        text += " Fewer than 60 labels are too few to hold any back for calibration: no guarantee can be given."
    if warm < MIN_EXAMPLES and settings.calibration != 0:
        text += f" A training needs {MIN_EXAMPLES}: the model is shown the labels beside each question instead."
    return text
