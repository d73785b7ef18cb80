"""From the artifacts in a run folder to a `ReportData`: the one place that knows their names and shapes.

Reads what is there and leaves the rest empty, so that a run that stopped halfway has a report too. Besides the
stages' artifacts these are read where they exist: `config.toml`, `versions.json` ({package: version}),
`spend.json` ({stage: dollars}), `oracle/gold.json` and `jobs/NAME-events.jsonl` (a job's events, with `metrics`).
Knows nothing of HTML or drawing.
"""

from __future__ import annotations

import ast
import json
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from semievol_api.data.table import ChunkedTable
from semievol_api.evaluation import (
    PrecisionCoverage,
    accuracy_by_category,
    auroc,
    confusion,
    precision_coverage,
    reliability,
    score_histogram,
    wilson,
)
from semievol_api.report.labels import LabelTable, load_prepared, read_label_table
from semievol_api.report.report_data import (
    CategoryChange,
    Confidences,
    Confusion,
    FalseShare,
    JobCurve,
    ReportData,
    StageCost,
    categories_of,
    warnings_of,
)
from semievol_api.selection.values import BoolArray, FloatArray
from semievol_api.store.artifacts import Answers, EvidenceTable, Prepared
from semievol_api.store.run_store import load_artifact, read_document, stages_done
from semievol_api.store.verdict import PooledSummary, Verdict
from semievol_api.training.jobs import model_trained_by

_MAX_CONFUSION_LABELS = 12
_MAX_CATEGORIES = 60
_MAX_LISTED_DROPS = 200
_CURVE_POINTS = 400
_STAGES = ("prepare", "warm_up", "retrieve", "collaborate", "justify", "select", "evolve", "ceiling", "jobs")
_PACKAGES = ("semievol-api", "numpy", "pyarrow", "openai", "torch", "transformers", "peft", "vllm", "faiss-cpu")
_NO_VERDICT = Verdict(
    n_test=0,
    models=(),
    differences=(),
    selection=None,
    oracle=None,
    notes=(),
    sentence="This run has no verdict yet.",
)


class _Dropped(msgspec.Struct):
    part: str = ""
    example_id: str = ""
    reason: str = ""
    near: bool = False


class _Hygiene(msgspec.Struct):
    counts: dict[str, int] = {}
    dropped: list[_Dropped] = []
    repeats_in_test: int = 0
    shared_questions: list[object] = []


class _Event(msgspec.Struct):
    metrics: dict[str, float] = {}


def read_report_data(run_folder: Path) -> ReportData:
    """Everything the report shows.

    Raises:
        RunFolderError: the folder holds no prepared data.
    """
    data = load_prepared(run_folder)
    labels = read_label_table(run_folder, data)
    verdict = load_artifact(run_folder, "verdict", Verdict) or _NO_VERDICT
    names = [m.name for m in verdict.models] or _evaluated(run_folder)
    answers = {n: a for n in names if (a := load_artifact(run_folder, f"evaluate/{n}", Answers)) is not None}
    labelled = {m.name: m.label for m in verdict.models}
    pair = _before_after(answers)
    final = pair[1] if pair else None
    hygiene = msgspec.convert(dict(data.report), _Hygiene)
    return ReportData(
        title="/".join(run_folder.resolve().parts[-2:]),
        sentence=verdict.sentence,
        promoted=verdict.promoted,
        gate_items=verdict.gate.items if verdict.gate else 0,
        n_test=verdict.n_test or len(data.test),
        counts={"labelled": len(data.labeled), "unlabelled": len(data.unlabeled), "test": len(data.test)},
        models=verdict.models,
        differences=verdict.differences,
        selection=verdict.document["selection"],
        false_share=_false_share(verdict, labels),
        precision_coverage=_precision_coverage(labels),
        chosen_cut=_chosen_cut(labels),
        confidences=_confidences(labels, answers, labelled),
        before_after=(labelled.get(pair[0], pair[0]), labelled.get(pair[1], pair[1])) if pair else None,
        categories=_categories(data, answers[pair[0]], answers[pair[1]]) if pair else [],
        confusion=_confusion(data, answers[final]) if final else None,
        job_curves=list(_job_curves(run_folder)),
        stages=_stages(run_folder, answers),
        hygiene=_hygiene(hygiene),
        dropped=[
            (d.example_id, d.part, d.reason + (" (near duplicate)" if d.near else ""))
            for d in hygiene.dropped[:_MAX_LISTED_DROPS]
        ],
        warnings=[
            *_sampled(data, labels),
            *verdict.notes,
            *warnings_of(data, labels, verdict.differences),
        ],
        config_text=_config_text(run_folder),
        versions=_versions(run_folder),
        labels=labels,
    )


def _sampled(data: Prepared, labels: LabelTable) -> list[str]:
    """What a reader has to know of a table that shows a sample."""
    if len(labels) == len(data.unlabeled):
        return []
    return [
        f"Rows, curves and confidences are those of {len(labels):,} of {len(data.unlabeled):,} unlabelled examples, "
        f"spread evenly over them; the counts of the selection are of all."
    ]


def _evaluated(run_folder: Path) -> list[str]:
    place = run_folder / "evaluate"
    return sorted(p.name for p in place.iterdir() if p.is_dir() and p.name[0] != ".") if place.is_dir() else []


def _false_share(verdict: Verdict, labels: LabelTable) -> FalseShare | None:
    """The rule's own estimate first; else what hidden gold says of the kept rows."""
    summary = verdict.selection
    if isinstance(summary, PooledSummary) and summary.estimated_false_share is not None:
        low, high = summary.false_share_range or (None, None)
        return FalseShare(
            summary.estimated_false_share, low, high, "estimated by the selection rule on calibration labels"
        )
    source = "measured with hidden gold the method never saw"
    places, right = labels.correct()
    kept = labels.kept[places]
    if kept.any():
        share = float(np.mean(~right[kept]))
        bounds = wilson(np.array(share), np.array(float(kept.sum())))
        return FalseShare(share, float(bounds[0]), float(bounds[1]), source)
    return FalseShare(verdict.oracle.false_share, None, None, source) if verdict.oracle else None


def _precision_coverage(labels: LabelTable) -> PrecisionCoverage | None:
    places, right = labels.correct()
    if not places.size:
        return None
    return precision_coverage(labels.confidences[places], right, len(labels)).thinned(_CURVE_POINTS)


def _chosen_cut(labels: LabelTable) -> tuple[float, float] | None:
    """Coverage and precision of what the rule kept, of rows with known gold."""
    places, right = labels.correct()
    kept = labels.kept[places]
    return (int(kept.sum()) / len(labels), float(right[kept].mean())) if kept.any() else None


def _confidences(labels: LabelTable, answers: Mapping[str, Answers], names: Mapping[str, str]) -> list[Confidences]:
    """The pseudo-labels' where gold is known, then each asked model's on the test questions."""
    found: list[Confidences] = []
    places, right = labels.correct()
    if places.size:
        found.append(_confidence("Pseudo-labels (hidden gold)", labels.confidences[places], right))
    for name in ("semievol", "base"):
        if name in answers:
            rows = list(answers[name].evidence.rows())
            values = np.array([row.confidence for row in rows], dtype=np.float64)
            right = np.array([answers[name].correct.get(row.example_id, False) for row in rows], dtype=bool)
            if np.isfinite(values).any():
                found.append(_confidence(f"{names.get(name, name)} on the test questions", values, right))
    return found


def _confidence(subject: str, values: FloatArray, right: BoolArray) -> Confidences:
    area = auroc(values, right, abstentions="left-out")
    return Confidences(subject, score_histogram(values, right), reliability(values, right), area)


def _before_after(answers: Mapping[str, Answers]) -> tuple[str, str] | None:
    after = next((n for n in ("semievol", "sft", "warm") if n in answers), None)
    before = next((n for n in ("base", "sft", "warm", "majority") if n in answers and n != after), None)
    return (before, after) if before and after else None


def _categories(data: Prepared, before: Answers, after: Answers) -> list[CategoryChange]:
    """By category; by gold answer where the data has no categories and few answers."""
    categories = categories_of(data.test)
    if not 2 <= len(set(categories.values())) <= _MAX_CATEGORIES:
        return []
    first, last = (
        accuracy_by_category(np.array([side.correct.get(i, False) for i in categories]), list(categories.values()))
        for side in (before, after)
    )
    return [CategoryChange(name, found.n, found.estimate, last[name].estimate) for name, found in first.items()]


def _confusion(data: Prepared, answers: Answers) -> Confusion | None:
    gold = {e.id: e.answer for e in data.test if e.answer is not None}
    labels = sorted(set(gold.values()))
    if not 2 <= len(labels) <= _MAX_CONFUSION_LABELS:
        return None
    table, place = answers.evidence.table, {label: i for i, label in enumerate(labels)}
    answered = dict(zip(table["example_id"].to_pylist(), table["answer"].to_pylist(), strict=True))
    known = [(g, answered.get(i)) for i, g in gold.items() if answered.get(i) is None or answered[i] in place]
    right = np.array([place[g] for g, _ in known], dtype=np.int64)
    predicted = np.array([-1 if answer is None else place[answer] for _, answer in known], dtype=np.int64)
    counts = confusion(right, predicted, len(labels))
    return Confusion(labels, counts.tolist()) if counts.any() else None


def _job_curves(run_folder: Path) -> Iterator[JobCurve]:
    for path in sorted((run_folder / "jobs").glob("*-events.jsonl")):
        points: dict[str, list[tuple[float, float]]] = {}
        for line in filter(None, path.read_text("utf-8").split("\n")):
            metrics = msgspec.json.decode(line, type=_Event).metrics
            for name, value in metrics.items():
                if "step" in metrics and name not in ("step", "total_steps", "epoch"):
                    points.setdefault(name, []).append((metrics["step"], value))
        for name, pairs in sorted(points.items()):
            steps, values = zip(*sorted(set(pairs)), strict=True)
            yield JobCurve(model_trained_by(path.name.removesuffix("-events.jsonl")), name, steps, values)


def _stages(run_folder: Path, answers: Mapping[str, Answers]) -> list[StageCost]:
    asked = {n: load_artifact(run_folder, n, EvidenceTable) for n in ("collaborate", "justify")}
    tables = {n: t.parts for n, t in asked.items() if t is not None}
    tables |= {f"evaluate/{n}": a.evidence.parts for n, a in answers.items() if n != "majority"}
    spend = read_document(run_folder / "spend.json")
    merged: dict[str, float] = {}
    for name, seconds in stages_done(run_folder).items():
        merged_name = name.removesuffix("-ticket").removesuffix("-model")
        merged[merged_name] = merged.get(merged_name, 0.0) + seconds
    stages: list[StageCost] = []
    for name, seconds in sorted(merged.items(), key=lambda item: (_rank(item[0]), item[0])):
        table = tables.get(name)
        dollars = spend.get(name) if name in spend else _training_usd(run_folder, name)
        stages.append(
            StageCost(
                name=name,
                seconds=seconds,
                requests=len(table) if table is not None else None,
                prompt_tokens=_total(table, "prompt_tokens"),
                cached_tokens=_total(table, "cached_tokens"),
                completion_tokens=_total(table, "completion_tokens"),
                cost_usd=float(dollars) if isinstance(dollars, int | float) else None,
            )
        )
    return stages


def _total(table: ChunkedTable[Any] | None, column: str) -> int | None:
    return None if table is None else int(table[column].to_numpy().sum())


def _training_usd(run_folder: Path, name: str) -> object:
    """What the model of a job cost, where the run noted it."""
    return read_document(run_folder / f"{name}-model" / "model.json").get("training_usd")


def _rank(name: str) -> int:
    first = name.split("/")[0]
    return _STAGES.index(first) if first in _STAGES else len(_STAGES)


def _hygiene(report: _Hygiene) -> list[tuple[str, str]]:
    findings = [(f"Dropped: {what}", f"{count:,}") for what, count in report.counts.items()]
    if report.repeats_in_test:
        findings.append(("Repeated test questions, kept", f"{report.repeats_in_test:,}"))
    if report.shared_questions:
        findings.append(("Groups that share a question but not its options, kept", f"{len(report.shared_questions):,}"))
    return findings


def _config_text(run_folder: Path) -> str:
    """The config as the user wrote it where the run kept it, else the settings that shaped the results."""
    written = run_folder / "config.toml"
    if written.is_file():
        return written.read_text("utf-8")
    settings = stored_settings(run_folder)
    return json.dumps(settings, ensure_ascii=False, indent=2) if settings else ""


def stored_settings(run_folder: Path) -> dict[str, Any]:
    """The settings that shaped a run's results, as its folder remembers them; empty where it does not."""
    key = read_document(run_folder / "config_key.json").get("config_key")
    try:
        return dict(ast.literal_eval(key["value"])) if isinstance(key, dict) else {}
    except (KeyError, ValueError, SyntaxError, TypeError):
        return {}


def _versions(run_folder: Path) -> dict[str, str]:
    kept = read_document(run_folder / "versions.json")
    if kept:
        return {name: str(value) for name, value in kept.items()}
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
