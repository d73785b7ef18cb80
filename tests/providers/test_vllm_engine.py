"""A real vLLM engine: seeded samples, exact option reads, adapters trained by us, and a whole run on one engine.

Skipped where vLLM is not installed (see `make test-vllm`).
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from local_samples import DEMO_MODEL
from local_truths import SHORT_ANSWERS, forward_pass, tuned_model

from semievol_api.capabilities import ChatRequest, FineTuneRequest, OptionRequest, TrainSpec
from semievol_api.config.settings import load_config
from semievol_api.errors import RefusedError
from semievol_api.records import Message, Prompt
from semievol_api.session import run_async
from semievol_api.store.artifacts import EvidenceTable
from semievol_api.store.run_store import load_artifact
from tests.contract.subjects import Subject

pytest_plugins = ("vllm_fixtures",)
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.filterwarnings("ignore")]
DEMO = DEMO_MODEL.parent
LABELS = ("A", "B", "C", "D", "E")


def _question(text: str) -> Message:
    fields = ("medicine", "physics", "economics", "psychology", "philosophy")
    options = "\n".join(f"{letter}. {field}" for letter, field in zip(LABELS, fields, strict=True))
    asked = "Which field does this exam question belong to?"
    return Message("user", f"{asked}\n\nQuestion: {text}\n\nOptions:\n{options}\n\nReply with one line: Answer: LETTER")


def _rows(name: str, count: int) -> list[dict[str, str]]:
    with (DEMO / "data" / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))[:count]


async def _trained(subject: Subject) -> str:
    """A model that 100 labelled questions of the demo made; bought once in a session."""
    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": _question(row["question"]).content},
                    {"role": "assistant", "content": f"Answer: {row['answer']}"},
                ]
            }
        )
        for row in _rows("labeled.csv", 100)
    ]
    request = FineTuneRequest(
        model=subject.base_model, training_file="\n".join(lines).encode(), run_key="demo-warm",
        spec=TrainSpec(n_epochs=3, seed=0),
    )  # fmt: skip
    return await tuned_model(subject.provider.finetuner, request, poll_s=0.2)


async def test_four_seeded_samples_of_one_request_repeat(vllm_subject: Subject) -> None:
    chat = vllm_subject.provider.chat
    assert chat is not None
    request = ChatRequest(
        model="demo-llama", prompt=Prompt((_question("What is inertia?"),)), max_tokens=8, n=4, seed=11, logprobs=True
    )
    runs = [await chat.complete(request) for _ in range(3)]
    texts = [[c.text for c in reply.completions] for reply in runs]
    assert texts[0] == texts[1] == texts[2]
    assert len(set(texts[0])) > 1
    assert runs[0].usage.cached <= runs[0].usage.prompt


@pytest.mark.parametrize("tuned", [False, True])
async def test_option_reads_equal_a_forward_pass(vllm_subject: Subject, tuned: bool) -> None:
    reader = vllm_subject.provider.option_reader
    assert reader is not None
    model = await _trained(vllm_subject) if tuned else "demo-llama"
    adapter = reader._adapter_of(model)  # type: ignore[attr-defined]
    assert (adapter is not None) == tuned
    for row in _rows("test.csv", 3):
        prompt = Prompt((_question(row["question"]),), "Answer:")
        read = await reader.read(OptionRequest(model=model, prompt=prompt, labels=LABELS))
        assert read.logprobs == pytest.approx(forward_pass(DEMO_MODEL, prompt, LABELS, adapter), abs=1e-3)


async def test_a_long_shared_prefix_is_read_from_the_cache(vllm_subject: Subject) -> None:
    reader = vllm_subject.provider.option_reader
    assert reader is not None
    shots = Message("system", "Solved examples: " + "many words that every question shares. " * 40)
    replies = [
        await reader.read(
            OptionRequest(model="demo-llama", prompt=Prompt((shots, _question(text)), "Answer:"), labels=LABELS)
        )
        for text in ("What is inertia?", "What is demand?")
    ]
    assert replies[0].usage.cached == 0
    assert replies[1].usage.cached > replies[1].usage.prompt // 2


async def test_a_prompt_beyond_the_context_is_refused_and_the_engine_lives_on(vllm_subject: Subject) -> None:
    chat = vllm_subject.provider.chat
    assert chat is not None
    with pytest.raises(RefusedError, match="vLLM refused the request"):
        await chat.complete(
            ChatRequest(model="demo-llama", prompt=Prompt((Message("user", "word " * 3000),)), max_tokens=4)
        )
    fine = await chat.complete(ChatRequest(model="demo-llama", prompt=Prompt((_question("Why?"),)), max_tokens=4))
    assert fine.completions[0].finish in ("stop", "length")


CONFIG = (
    """
[run]
folder = "run"

[data]
task = "{demo}/task.toml"
labeled = "{demo}/data/labeled.csv"
unlabeled = "{demo}/data/unlabeled.csv"
test = "{demo}/data/test.csv"
max_unlabeled = 60
max_test = 60

[providers.gpu]
kind = "vllm"
model = "{demo}/model"
name = "demo-llama"
device = "cpu"

[roles]
student = {{ provider = "gpu", model = "demo-llama" }}
embedder = {{ provider = "gpu", model = "demo-llama" }}

[select]
rule = "top-n"
n = 30

[train]
n_epochs = 3
final_epochs = 2
poll_s = 0.2
"""
    + SHORT_ANSWERS
)


async def test_a_whole_run_starts_one_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from semievol_providers.vllm.engine import VllmEngine

    starts: list[str] = []
    start = VllmEngine._start

    def counted(engine: VllmEngine) -> Any:
        starts.append("started")
        return start(engine)

    monkeypatch.setattr(VllmEngine, "_start", counted)
    (tmp_path / "semievol.toml").write_text(CONFIG.format(demo=DEMO.as_posix()), encoding="utf-8")
    result = await run_async(load_config(tmp_path / "semievol.toml"))
    assert starts == ["started"]
    made = set(result.computed)
    for stage in ("jobs/warm_up-model", "jobs/semievol-model"):
        assert stage in made
    justified = load_artifact(result.folder, "justify", EvidenceTable)
    assert justified is not None and len(justified.table) > 0, "annotators disagree about something"
    models = [str(model["name"]) for model in result.verdict.document["models"]]  # type: ignore[index, union-attr]
    assert {"base", "sft", "semievol"} <= set(models)
    jobs = sorted((tmp_path / "semievol-local" / "jobs").glob("*/adapter/adapter_model.safetensors"))
    assert len(jobs) == 3, "the warm one, SFT on all labels, and the evolved one"
    again = await run_async(load_config(tmp_path / "semievol.toml"))
    assert not again.computed
    assert starts == ["started"], "nothing was asked, so nothing was started"
