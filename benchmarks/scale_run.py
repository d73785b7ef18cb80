"""One measured process of `scale.py`: `python -m benchmarks.scale_run '{"do": "pipeline", ...}'`.

Prints one JSON line: CPU and wall seconds, peak memory, counts. Knows nothing of how the figures are judged.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.load import WORDS
from benchmarks.mock import cores, pin
from semievol_api.annotate.annotators import JUDGE, Annotator, Crew
from semievol_api.annotate.collaboration import collaborate, justify
from semievol_api.annotate.pooled import annotator_probs
from semievol_api.annotate.requests import Corpus, Student
from semievol_api.capabilities import OptionRequest, Provider, ProviderSettings
from semievol_api.config.method import AnnotateSettings, JustifySettings, SelectSettings, TrainSettings
from semievol_api.config.settings import DataSettings, Limits, RetrieveSettings
from semievol_api.data import read_data
from semievol_api.data.parts import part_of, parts_for
from semievol_api.data.prepare import prepare
from semievol_api.data.tables import examples_table
from semievol_api.engine import Ask, RequestEngine
from semievol_api.records import Example
from semievol_api.selection.columns import PoolColumns
from semievol_api.selection.stage import SelectionInputs, select
from semievol_api.selection.stage_pooled import PooledSelectionContext, by_pool
from semievol_api.store.artifacts import EvidenceTable, Folds, Neighbours, Prepared, Selection, TrainingFile
from semievol_api.store.fingerprints import stage
from semievol_api.store.run_store import RunStore
from semievol_api.tasks import load_task
from semievol_api.training.files import evolve_file

MODEL = "gpt-4o-mini"
LABELLED = 600
CREW = Crew(
    (Annotator("base-0shot", "base", 0, reading="option_read"),), Annotator("justify", JUDGE, 0, reading="option_read")
)
Figures = dict[str, Any]


def question(row: int, characters: int) -> str:
    """A question with the row's own number in it, which the mock server answers by."""
    return f"row-{row:08d} " + (WORDS * (characters // len(WORDS) + 1))[:characters]


def examples(rows: range | np.ndarray, characters: int, *, gold: bool = False) -> list[Example]:
    """Four options; with gold, B as often as the mock server's probability of it says."""
    luck = np.random.default_rng(0).random(len(rows))
    return [
        Example(
            id=f"row-{row:08d}",
            question=question(int(row), characters),
            options=("first", "second", "third", f"number {row}"),
            answer=None if not gold else "B" if luck[place] < np.exp(-(int(row) % 10_000) / 10_000) else "A",
        )
        for place, row in enumerate(rows)
    ]


def make_files(settings: dict[str, Any]) -> Figures:
    """A user's two files."""
    folder, rows, characters = Path(settings["folder"]), settings["rows"], settings["characters"]

    def write(name: str, places: Iterator[range], *, gold: bool) -> None:
        with (folder / name).open("wb") as file:
            for some in places:
                for e in examples(some, characters, gold=gold):
                    row = {"id": e.id, "question": e.question, "options": e.options}
                    file.write(msgspec.json.encode(row | ({"answer": e.answer} if gold else {})) + b"\n")

    write("unlabeled.jsonl", (range(at, min(rows, at + 10_000)) for at in range(0, rows, 10_000)), gold=False)
    write("labeled.jsonl", iter((range(rows, rows + LABELLED),)), gold=True)
    return {}


def make_scores(settings: dict[str, Any]) -> Figures:
    """The artifact of `prepare`, written part by part, and scored columns beside it."""
    folder, rows, characters = Path(settings["folder"]), settings["rows"], settings["characters"]
    place = folder / "prepare"
    count = parts_for(rows)
    (place / "unlabeled").mkdir(parents=True)
    where = np.fromiter((part_of(f"row-{row:08d}", count) for row in range(rows)), np.int16, rows)
    rng = np.random.default_rng(1)
    (folder / "scored").mkdir()
    for part in range(count):
        own = np.flatnonzero(where == part)
        path = place / "unlabeled" / f"part-{part:05d}.parquet"
        pq.write_table(examples_table(examples(own, characters)), path, compression="zstd")
        pq.write_table(scored_columns(own, rng), folder / "scored" / f"part-{part:05d}.parquet", compression="zstd")
    labelled = examples(range(rows, rows + LABELLED), characters, gold=True)
    pq.write_table(examples_table(labelled), place / "labeled.parquet")
    pq.write_table(examples_table([]), place / "test.parquet")
    (place / "report.json").write_text("{}")
    return {}


def scored_columns(rows: np.ndarray, rng: np.random.Generator) -> pa.Table:
    """What a crew of three might have made of some rows."""
    score = 0.25 + 0.75 * rng.beta(3, 1, len(rows))
    label = rng.integers(0, 4, len(rows))
    return pa.table(
        {
            "example_id": pa.array([f"row-{row:08d}" for row in rows], pa.string()),
            "answer": pa.array(np.array(["A", "B", "C", "D"])[label].tolist(), pa.string()),
            "label": pa.array(label.astype(np.int16)),
            "score": pa.array(score, pa.float64()),
            "margin": pa.array(np.maximum(0.0, 2 * score - 1), pa.float64()),
            "voices": pa.array(np.full(len(rows), 3, np.int16)),
            "agreed": pa.array(score > 0.8, pa.bool_()),
        }
    )


def provider_of(url: str) -> Provider:
    """The `openai` provider at the mock server."""
    from semievol_providers.openai import connect

    options = {"base_url": url, "api_key_env": "MOCK_KEY", "vendor": "openai"}
    return connect(ProviderSettings(name="mock", options=options, environ={"MOCK_KEY": "sk-mock"}))


def corpus_of(data: Prepared) -> Corpus:
    """The prepared data; half of the labels calibrate."""
    folds = Folds(data.labeled[300:], data.labeled[:300], (), tunable=True, note="")
    return Corpus(load_task("arc"), data, folds, Neighbours())


class Watch:
    """CPU and wall seconds of what is done between its calls."""

    def __init__(self) -> None:
        self.figures: Figures = {}
        self._cpu_s, self._wall_s = time.process_time(), time.perf_counter()

    def lap(self, name: str) -> None:
        """The end of a lap."""
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        self.figures[f"{name}_cpu_s"] = round(cpu_s - self._cpu_s, 2)
        self.figures[f"{name}_wall_s"] = round(wall_s - self._wall_s, 2)
        self.figures[f"rss_mb_after_{name}"] = round(peak_mb(), 1)
        self._cpu_s, self._wall_s = time.process_time(), time.perf_counter()


def peak_mb() -> float:
    """This process's greatest resident size so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def pipeline(settings: dict[str, Any]) -> Figures:
    """From the user's files to the training file: option reads, nothing justified; the stages themselves."""
    folder = Path(settings["folder"])
    provider = provider_of(settings["url"])
    watch = Watch()
    task = load_task("arc")
    with RunStore.open(folder / "run", "benchmark") as store:
        files = DataSettings(
            labeled=folder / "labeled.jsonl",
            unlabeled=folder / "unlabeled.jsonl",
            task="arc",
            columns={"id": "id", "question": "question", "options": "options", "answer": "answer"},
        )
        raw = read_data(files, task)
        watch.lap("read")
        data = await store.once("prepare", Prepared, prepare, raw.labeled, raw.unlabeled, (), (), False, raw.notes)
        del raw
        watch.lap("prepare")
        async with RequestEngine.open(folder / "journal.sqlite", Limits(concurrency=256)) as engine:
            corpus = corpus_of(data)
            student = Student(engine, provider, {"base": MODEL, "judge": MODEL}, {"base": MODEL}, 0)
            annotate = AnnotateSettings()
            said = await store.once(
                "collaborate", EvidenceTable, collaborate, student, corpus, CREW, annotate, "unlabeled"
            )
            watch.lap("collaborate")
            never = JustifySettings(on="never")
            final = await store.once("justify", EvidenceTable, justify, student, corpus, CREW, said, never, "unlabeled")
            heard = SelectionInputs(said, final, never, None, RetrieveSettings(), {})
            rule = SelectSettings(rule="fdr", score="pooled", alpha=0.2)
            chosen = await store.once("select", Selection, select, corpus, CREW, heard, rule, 0)
            watch.lap("select")
            await store.once("evolve", TrainingFile, evolve_file, corpus, chosen, TrainSettings())
            watch.lap("export")
            bill = engine.ledger.stages["collaborate"]
    await provider.aclose()
    return {**watch.figures, "requests": bill.requests, "kept": len(chosen.kept), "rows": len(corpus.data.unlabeled)}


async def engine_alone(settings: dict[str, Any]) -> Figures:
    """The request engine's own figure: the same option reads, and nothing around them."""
    folder, rows, characters = Path(settings["folder"]), settings["rows"], settings["characters"]
    provider, task = provider_of(settings["url"]), load_task("arc")
    (example,) = examples(range(1), characters)
    prompt = task.prompt(example, ())
    turn = prompt.messages[0].content

    def asks() -> Iterator[Ask[OptionRequest]]:
        from semievol_api.records import Message, Prompt

        for row in range(rows):
            worded = Prompt((Message("user", turn.replace("row-00000000", f"row-{row:08d}", 1)),), "Answer:")
            yield Ask(str(row), OptionRequest(model=MODEL, prompt=worded, labels=("A", "B", "C", "D")))

    watch = Watch()
    failed = 0
    async with RequestEngine.open(folder / "alone.sqlite", Limits(concurrency=256)) as engine:
        async for answer in engine.read_options(provider, asks(), stage="alone"):
            failed += answer.reply is None
    watch.lap("alone")
    await provider.aclose()
    return {**watch.figures, "failed": failed}


async def selection(settings: dict[str, Any]) -> Figures:
    """Selection and export of scored columns, no requests: the rule, the kept labels, all scores, the training file."""
    folder = Path(settings["folder"])
    watch = Watch()
    with RunStore.open(folder, "benchmark") as store:
        corpus = corpus_of(store.load("prepare", Prepared))
        settings_of_rule = SelectSettings(rule="fdr", score="pooled", alpha=0.1)

        @stage("choose")
        async def choose(name: str) -> Selection:
            parts = tuple(pq.read_table(path) for path in sorted((folder / "scored").iterdir()))
            pool = PoolColumns(parts, _calibrating(corpus), {}, {})
            beside = PooledSelectionContext(reviewed={}, embedder=None, retrieve=RetrieveSettings(), seed=0)
            return await by_pool(corpus, CREW, pool, settings_of_rule, beside)

        chosen = await store.once("select", Selection, choose, "scored")
        watch.lap("select")
        file = await store.once("evolve", TrainingFile, evolve_file, corpus, chosen, TrainSettings())
        watch.lap("export")
    size = file.source.stat().st_size if isinstance(file.source, Path) else 0
    return {
        **watch.figures,
        "kept": len(chosen.kept),
        "rows": len(corpus.data.unlabeled),
        "file_mb": round(size / 2**20),
    }


def _calibrating(corpus: Corpus) -> Any:
    """Calibration items with the scores' own distribution, right as often as they say."""
    from dataclasses import replace

    found = annotator_probs(corpus, CREW.everybody, corpus.folds.calibration, {})
    rng = np.random.default_rng(2)
    score = 0.25 + 0.75 * rng.beta(3, 1, len(found.examples))
    gold = np.array(["ABCD".index(e.answer or "A") for e in found.examples], dtype=np.int64)
    right = rng.random(len(score)) < score
    label = np.where(right, gold, (gold + 1) % 4)
    probs = np.full_like(found.probs, np.nan)
    return replace(found, probs=probs, pooled=replace(found.pooled, score=score, label=label))


MAKES = {"files": make_files, "scores": make_scores}
DOES = {"pipeline": pipeline, "engine": engine_alone, "selection": selection}


def main() -> None:
    """Do what the first argument says."""
    settings = json.loads(sys.argv[1])
    if settings["do"] in MAKES:
        figures = MAKES[settings["do"]](settings)
    else:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        pin(cores()[1])
        try:
            import uvloop

            run = uvloop.run
        except ImportError:
            run = asyncio.run
        figures = run(DOES[settings["do"]](settings))
    print(json.dumps({**figures, "peak_mb": round(peak_mb(), 1)}))


if __name__ == "__main__":
    main()
