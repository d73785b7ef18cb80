"""A run folder as the pipeline writes one, without any provider: made-up questions, annotators and answers.

    synthetic_run(folder, rows=600)

The same arguments give the same run. Used by the tests of the report, of review and of the export.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from msgspec import to_builtins

from semievol_api.data.schemas import EVIDENCE_SCHEMA
from semievol_api.data.table import ChunkedTable
from semievol_api.records import Example, PseudoLabel
from semievol_api.store.artifacts import Answers, EvidenceTable, Prepared, Selection, TunedModel, Verdict
from semievol_api.store.fingerprints import stage
from semievol_api.store.run_store import RunStore
from semievol_api.store.verdict import PaperSummary

WORDS = tuple(
    w
    for line in (
        "energy market neuron treaty theorem enzyme contract planet memory tariff virus proof reaction orbit verdict",
        "inflation synapse lemma catalyst statute glucose current demand reflex axiom solvent appeal nebula dividend",
    )
    for w in line.split(" ")
)
VERBS = ("explains", "limits", "follows", "contradicts", "measures", "predicts", "produces", "requires")
CATEGORIES = ("biology", "economics", "law", "mathematics", "physics", "psychology")
LETTERS = "ABCD"
ANNOTATORS = ("base-0shot", "base-2shot", "warm-1shot", "warm-3shot")
TASK = """name = "synthetic"
kind = "multiple_choice"
instruction = "Answer the question."
"""


def synthetic_run(
    folder: Path, *, rows: int = 600, labelled: int = 80, tests: int = 240, gold: bool = True, verdict: bool = True
) -> Path:
    """Write the run and return its folder."""
    asyncio.run(_write(folder, rows, labelled, tests, verdict))
    rng = np.random.default_rng(7)
    if gold:
        (folder / "oracle").mkdir(exist_ok=True)
        answers = {_id("u", i): LETTERS[_truth(i)] for i in range(rows)}
        (folder / "oracle/gold.json").write_text(json.dumps(answers), "utf-8")
    task = folder / "task.toml"
    task.write_text(TASK, "utf-8")
    settings = [
        ("data", {"task": str(task), "labeled": "labeled.csv"}),
        ("select", {"rule": "percentile", "share": 0.5}),
    ]
    (folder / "config_key.json").write_text(json.dumps({"config_key": {"value": repr(settings)}}), "utf-8")
    for job, length in (("warm_up", 24), ("semievol", 90)):
        lines = [
            {
                "id": f"e{step}",
                "message": f"Step {step}",
                "metrics": {"step": step, "train_loss": 0.3 + 1.6 * np.exp(-step / 20) + 0.05 * rng.random()},
            }
            for step in range(1, length)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"jobs/{job}-events.jsonl").write_text(text, "utf-8")
    return folder


async def _write(folder: Path, rows: int, labelled: int, tests: int, verdict: bool) -> None:
    data = Prepared(
        labeled=tuple(_example("l", i, gold=True) for i in range(labelled)),
        unlabeled=tuple(_example("u", i, gold=False) for i in range(rows)),
        test=tuple(_example("t", i, gold=True) for i in range(tests)),
        report={
            "counts": {"unlabeled: in test": 3, "labeled: duplicate": 1, "unlabeled: duplicate (near)": 2},
            "dropped": [
                {"part": "unlabeled", "example_id": f"gone-{i}", "reason": "in test", "near": i == 2} for i in range(3)
            ],
            "repeats_in_test": 1,
            "shared_questions": [],
        },
    )
    said, final, chosen = _evidence(data)
    models = {"majority": 0.27, "base": 0.55, "warm": 0.66, "semievol": 0.74, "ceiling": 0.79}
    answers = {name: _answers(name, share, data) for name, share in models.items()}
    with RunStore.open(folder, "synthetic") as store:

        async def put(name: str, artifact: object) -> None:
            @stage("make")
            async def make() -> object:
                return artifact

            await store.once(name, type(artifact), make)  # type: ignore[type-var]

        await put("prepare", data)
        await put("collaborate", said)
        await put("justify", final)
        await put("select", chosen)
        for job in ("warm_up", "semievol"):
            await put(f"jobs/{job}-model", TunedModel(f"ft:{job}", "demo-llama", f"key-{job}", 12_345))
        if verdict:
            for name, artifact in answers.items():
                await put(f"evaluate/{name}", artifact)
            await put("verdict", _verdict(answers, data, chosen))


def _id(part: str, index: int) -> str:
    return hashlib.blake2b(f"{part}{index}".encode(), digest_size=8).hexdigest()


def _truth(index: int) -> int:
    return (index * 7 + index // 3) % 4


def _example(part: str, index: int, *, gold: bool) -> Example:
    rng = np.random.default_rng([ord(part), index])
    word = [WORDS[k] for k in rng.integers(len(WORDS), size=14)]
    verb = VERBS[int(rng.integers(len(VERBS)))]
    question = (
        f"Which statement about {word[0]} and {word[1]} {verb} the {word[2]} of a {word[3]} in case {index}, when the "
        f"{word[4]} of its {word[5]} is {int(rng.integers(2, 900))}?"
    )
    return Example(
        id=_id(part, index),
        question=question,
        options=tuple(f"the {word[6 + 2 * k]} {VERBS[k]} the {word[7 + 2 * k]}" for k in range(4)),
        answer=LETTERS[_truth(index)] if gold else None,
        category=CATEGORIES[int(rng.integers(len(CATEGORIES)))],
    )


def _evidence(data: Prepared) -> tuple[EvidenceTable, EvidenceTable, Selection]:
    rng = np.random.default_rng(1)
    size = len(data.unlabeled)
    ids = [e.id for e in data.unlabeled]
    truth = np.array([_truth(i) for i in range(size)])
    ease = rng.beta(2.2, 1.1, size)
    columns: list[tuple[str, np.ndarray, np.ndarray]] = []
    for name in (*ANNOTATORS, "justify"):
        right = rng.random(size) < 0.25 + 0.75 * ease
        answers = np.where(right, truth, (truth + rng.integers(1, 4, size)) % 4)
        nll = rng.gamma(2.0, 0.05 + 0.25 * (1 - ease) * np.where(right, 0.7, 1.4))
        answers[rng.random(size) < 0.01] = -1
        columns.append((name, answers, nll))
    justified = columns.pop()
    answers = [LETTERS[a] if a >= 0 else None for a in justified[1]]
    scores = np.where(justified[1] >= 0, justified[2], np.nan)
    threshold = float(np.nanquantile(scores, 0.5)) if size else 0.0
    kept = scores <= threshold
    reason = np.where(
        kept, "kept", np.where(np.isnan(scores), "the justification gave no answer", "above the threshold")
    )
    table = pa.table(
        {
            "example_id": ids,
            "answer": pa.array(answers, pa.string()),
            "mean_nll": pa.array(scores, pa.float64(), from_pandas=True),
            "kept": kept,
            "reason": pa.array(list(reason), pa.string()),
        }
    )
    labels = tuple(
        PseudoLabel(example_id=i, answer=a or "", text=f"Answer: {a}", score=float(s))
        for i, a, s, keep in zip(ids, answers, scores, kept, strict=True)
        if keep
    )
    summary = PaperSummary(
        rule="percentile",
        share=0.5,
        threshold_mean_nll=threshold,
        unlabeled=size,
        answered=int((~np.isnan(scores)).sum()),
        kept=len(labels),
        messages=(),
    )
    said = EvidenceTable(ChunkedTable.of(pa.concat_tables([_table(ids, *column) for column in columns])))
    return (
        said,
        EvidenceTable(ChunkedTable.of(_table(ids, *justified))),
        Selection(kept=labels, scores=ChunkedTable.of(table), summary=summary),
    )


def _table(ids: list[str], name: str, answers: np.ndarray, nll: np.ndarray) -> pa.Table:
    size = len(ids)
    letters = [LETTERS[a] if a >= 0 else None for a in answers]
    texts = [f"The {VERBS[k % 8]} part decides.\nAnswer: {a}" if a else "I cannot tell." for k, a in enumerate(letters)]
    filled: dict[str, object] = {field.name: pa.nulls(size, field.type) for field in EVIDENCE_SCHEMA}
    filled |= {
        "example_id": ids,
        "annotator_id": [name] * size,
        "prompt_hash": ["00"] * size,
        "text": texts,
        "answer": letters,
        "finish": ["stop"] * size,
        "mean_nll": nll.astype(np.float32),
        "prompt_tokens": [120] * size,
        "completion_tokens": [6] * size,
        "cached_tokens": [48] * size,
        "dropped_shots": [0] * size,
    }
    return pa.table(filled, schema=EVIDENCE_SCHEMA)


def _answers(name: str, share: float, data: Prepared) -> Answers:
    rng = np.random.default_rng([5, len(name)])
    truth = np.array([LETTERS.index(e.answer or "A") for e in data.test])
    right = rng.random(truth.size) < share
    said = np.where(right, truth, (truth + rng.integers(1, 4, truth.size)) % 4)
    said[(rng.random(truth.size) < 0.02) & ~right] = -1
    nll = rng.gamma(2.0, np.where(right, 0.06, 0.16))
    ids = [e.id for e in data.test]
    correct = dict(zip(ids, right.tolist(), strict=True))
    return Answers(label=name, evidence=EvidenceTable(ChunkedTable.of(_table(ids, name, said, nll))), correct=correct)


def _verdict(answers: dict[str, Answers], data: Prepared, chosen: Selection) -> Verdict:
    n = len(data.test)
    labels = {"majority": "majority class", "base": "vanilla", "warm": "SFT", "semievol": "SemiEvol"}
    models = [
        {
            "name": name,
            "label": labels.get(name, "gold-label ceiling"),
            "accuracy": a.accuracy,
            "interval": [a.accuracy - 0.06, a.accuracy + 0.055],
            "abstained": 2,
            "tokens": 1000,
            "trained_tokens": None,
        }
        for name, a in answers.items()
    ]
    differences = []
    for of, against in (("semievol", "warm"), ("semievol", "base"), ("warm", "base")):
        points = 100 * (answers[of].accuracy - answers[against].accuracy)
        differences.append(
            {
                "of": of,
                "against": against,
                "of_label": labels[of],
                "against_label": labels[against],
                "points": points,
                "interval": [points - 6.1, points + 6.3],
                "mcnemar_p": 0.021,
                "smallest_detectable": 6.2,
            }
        )
    gain = differences[0]
    document = {
        "n_test": n,
        "models": models,
        "differences": differences,
        "selection": to_builtins(chosen.summary),
        "oracle": None,
        "notes": [f"Selection kept {len(chosen.kept)} of {len(data.unlabeled)} unlabelled examples."],
        "sentence": f"SemiEvol helped: {gain['points']:+.1f} points over SFT, 95 % interval "
        f"{gain['interval'][0]:+.1f} to {gain['interval'][1]:+.1f}.",
        "unknown_to_the_report": {"anything": 1},
    }
    return Verdict.of(document)
