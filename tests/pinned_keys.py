"""Every kind of key that money hangs on, computed by today's code, as one table of names and values.

    python -m tests.pinned_keys > tests/data/pinned_keys.json      # only where a key is added: never to move one

This is the one place of these tests that names the code's own classes and functions: where they are renamed or moved,
it follows, and `tests/data/pinned_keys.json` stays as commit a87899e made it. Knows nothing of how keys are made.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from semievol_api import run
from semievol_api.annotate.annotators import request_seed
from semievol_api.annotate.replies import prompt_hash
from semievol_api.capabilities import (
    ChatRequest,
    EmbedRequest,
    FineTuneRequest,
    JobEvent,
    JobState,
    JobTicket,
    OptionRequest,
    Provider,
)
from semievol_api.cassettes.clock import RealClock
from semievol_api.cassettes.exchange import canonical_request
from semievol_api.cassettes.scrub import Scrubber
from semievol_api.config.method import TrainSettings
from semievol_api.config.settings import load_config
from semievol_api.data.examples import content_id
from semievol_api.data.splits import order_of
from semievol_api.engine.batch import BatchLine
from semievol_api.engine.requests import ChatKind, EmbedKind, OptionKind
from semievol_api.records import Message, Prompt
from semievol_api.session import config_key
from semievol_api.store.artifacts import TrainingFile
from semievol_api.store.run_store import RunStore
from semievol_api.tasks import load_task, task_names
from semievol_api.training.fine_tuning import Trainer, fine_tune
from tests.pinned_runs import AT_SERVER, FINISHED, PLACE, write_project

STORED = Path(__file__).resolve().parent / "data/pinned_keys.json"
LINE = b'{"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Answer: A"}]}\n'
TURNS = Prompt((Message("system", "Be brief."), Message("user", "Why? Ärger 漢字")))
TRAININGS: Mapping[str, tuple[dict[str, Any], int, str | None]] = {
    "defaults": ({}, 0, None),
    "another seed": ({}, 1, None),
    "all auto": ({"n_epochs": None}, 0, None),
    "batch size": ({"batch_size": 8}, 0, None),
    "whole rate": ({"learning_rate_multiplier": 2}, 0, None),
    "small rate": ({"n_epochs": 3, "batch_size": 16, "learning_rate_multiplier": 1.8e-05}, 3, None),
    "final": ({"final_epochs": 5, "final_learning_rate_multiplier": 0.1}, 0, None),
    "a job's model as base": ({}, 0, "3289870acbeb90bd27b82800c767da4e"),
    "not in the key": ({"suffix": "other", "poll_s": 3.0, "data": "selected", "start": "warm"}, 0, None),
}
"""Settings, seed and the base's identity of each training."""


class Vendor:
    """Accepts every job and remembers the orders."""

    def __init__(self) -> None:
        self.orders: list[FineTuneRequest] = []

    async def submit(self, request: FineTuneRequest) -> JobTicket:
        self.orders.append(request)
        return JobTicket(job_id="job", run_key=request.run_key)

    async def find(self, request: FineTuneRequest) -> JobTicket | None:
        return None

    async def poll(self, ticket: JobTicket) -> JobState:
        return JobState(status="succeeded", raw_status="succeeded", model="ft:tiny")

    async def events(self, ticket: JobTicket, after: str | None) -> Sequence[JobEvent]:
        return ()

    async def cancel(self, ticket: JobTicket) -> None:
        raise AssertionError


def run_keys() -> dict[str, object]:
    """What a vendor knows a training by."""
    vendor, found = Vendor(), dict[str, object]()
    for name, (changes, seed, identity) in TRAININGS.items():
        trainer = Trainer(
            provider=Provider(name="p", identity="p", finetuner=vendor),
            base='tiny\'s "model"',
            clock=RealClock(),
            seed=seed,
            base_identity=identity,
        )
        settings = TrainSettings(**changes)
        with tempfile.TemporaryDirectory() as folder, RunStore.open(Path(folder), "key") as store:
            asyncio.run(fine_tune(trainer, store, "warm_up", TrainingFile(LINE * 12), settings.final))
        found[name] = vendor.orders[-1].run_key
    return found


def config_keys() -> dict[str, object]:
    """What makes two configs the same run."""
    found: dict[str, object] = {}
    texts = {
        **FINISHED,
        "at a server": AT_SERVER,
        "with limits": FINISHED["paper"] + "\n[limits]\nrpm = 5\nmax_usd = 3.5\n[log]\nproject = 'x'\n",
        "warm": FINISHED["calibrated"].replace("[roles]", '[roles]\nwarm = "ft:mine"'),
    }
    for name, text in texts.items():
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder).resolve()
            key = config_key(load_config(write_project(place, text)))
            found[name] = key.replace(str(place), PLACE)
    return found


async def _never(request: object) -> Any:
    raise AssertionError


def request_keys() -> dict[str, object]:
    """What the journal knows a request by, and the names of a batch's lines."""
    chat, options, embed = ChatKind(_never), OptionKind(_never), EmbedKind(_never, 3)
    asks = {
        "chat": ChatRequest(model="m", prompt=TURNS, max_tokens=5),
        "scored": ChatRequest(model="m", prompt=TURNS, max_tokens=5, logprobs=True, top_logprobs=20),
        "sampled": ChatRequest(
            model="ft:m", prompt=TURNS, max_tokens=512, temperature=0.7, top_p=0.9, seed=7, stop=("\n", "END"), n=3
        ),
        "prefilled": ChatRequest(model="m", prompt=Prompt(TURNS.messages, prefill="Answer:"), max_tokens=1),
    }
    found: dict[str, object] = {name: chat.key("https://host/v1", ask).hex() for name, ask in asks.items()}
    reads = {
        "option read": OptionRequest(model="m", prompt=TURNS, labels=("A", "B")),
        "option read, prefilled": OptionRequest(
            model="m", prompt=Prompt(TURNS.messages, prefill="Answer:"), labels=(" yes", " no")
        ),
    }
    found |= {name: options.key("https://host/v1", read).hex() for name, read in reads.items()}
    found["embedding"] = embed.key("https://host/v1", EmbedRequest(model="m", texts=("Why? 漢",))).hex()
    found["batch line"] = BatchLine(chat.key("https://host/v1", asks["chat"]), 2, "ask").custom_id
    found["seed of a later part"] = chat.part([asks["sampled"]], 2, 1).seed
    return found


def cassette_keys() -> dict[str, object]:
    """What a recording knows an exchange by."""
    json_type = {"Content-Type": "application/json"}
    form = (
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{}\n\r\n--b--\r\n'
    )
    sent: dict[str, tuple[str, str, bytes | None, dict[str, str]]] = {
        "get": ("GET", "https://host/v1/models?limit=2&after=x", None, {}),
        "json": ("POST", "https://host/v1/chat/completions", b'{"b": 1, "a": [1.5, "x"]}', json_type),
        "a secret": ("POST", "https://h/openai/v1/x", b'{"k": "sk-aaaaaaaaaaaaaaaaaaaaaaaa"}', json_type),
        "text": ("POST", "http://h/plain", b"plain", {"content-type": "text/plain"}),
        "multipart": ("POST", "http://h/v1/files", form, {"content-type": "multipart/form-data; boundary=b"}),
    }
    return {name: canonical_request(*request, Scrubber())[0] for name, request in sent.items()}


def content_keys() -> dict[str, object]:
    """Ids of examples, hashes of prompts and tasks, seeds and orders: what follows from content alone."""
    found: dict[str, object] = {f"task {name}": load_task(name).identity for name in task_names()}
    with tempfile.TemporaryDirectory() as folder:
        write_project(Path(folder), "")
        found["task of a file"] = load_task(str(Path(folder) / "task.toml")).identity
    found |= {
        "example": content_id("Why? 漢", ()),
        "example with options": content_id("Why?", ("red", "Ärger")),
        "prompt": prompt_hash(TURNS),
        "prefilled prompt": prompt_hash(Prompt(TURNS.messages, prefill="Answer:")),
        "seed of a request": request_seed(3, "warm-0shot", "q1"),
        "order of a split": order_of(3, "q1").hex(),
    }
    return found


def stored_names() -> dict[str, object]:
    """What a run's folder is made of: artifacts, their columns and their documents' keys."""
    found: dict[str, object] = {}
    for mode in ("paper", "listed"):
        with tempfile.TemporaryDirectory() as folder:
            place = run(write_project(Path(folder).resolve(), FINISHED[mode])).folder
            for path in sorted(place.rglob("*")):
                name = f"{mode}: {path.relative_to(place)}"
                if path.suffix == ".parquet":
                    found[name] = [f"{field.name} {field.type}" for field in pq.read_schema(path)]
                elif path.suffix == ".json" and path.parent != place:
                    document = json.loads(path.read_text("utf-8"))
                    found[name] = sorted(document) if len(document) < 15 and "gold" not in path.name else "by id"
                elif path.is_file() and "sqlite" not in path.name:
                    found[name] = "file"
            rows = pq.read_table(place / "collaborate/evidence.parquet", columns=["annotator_id"])
            found[f"{mode}: annotators"] = sorted(set(rows["annotator_id"].to_pylist()))
    return found


KINDS = {
    "run keys": run_keys,
    "config keys": config_keys,
    "request keys": request_keys,
    "cassette keys": cassette_keys,
    "content keys": content_keys,
    "stored names": stored_names,
}

if __name__ == "__main__":
    table = {kind: compute() for kind, compute in KINDS.items()}
    json.dump(table, sys.stdout, ensure_ascii=False, indent=1, sort_keys=True)
    sys.stdout.write("\n")
