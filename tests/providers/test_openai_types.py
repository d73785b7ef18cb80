"""What we send, read and serve, held to the openai package's own types."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from openai import types
from openai.types import fine_tuning
from openai.types.chat import ChatCompletion

from semievol_api.capabilities import ChatRequest, EmbedRequest, FineTuneRequest, TrainSpec
from semievol_api.records import Message, Prompt
from semievol_providers.openai import batches, chat, embeddings, finetuner, sdk
from semievol_providers.openai.sdk import installed_major
from semievol_providers.openai.settings import Dialect
from semievol_providers.server import batches as server_batches
from semievol_providers.server import completions, job_events, responses
from tests.openai_types import UnlikeTypesError, check_answer, check_request, fields_of

OF_VLLM = frozenset({"continue_final_message", "add_generation_prompt"})
ASK = ChatRequest(model="gpt-4o-mini", prompt=Prompt((Message("system", "s"), Message("user", "u"))), max_tokens=9)
FULL = replace(ASK, n=3, temperature=0.0, top_p=0.5, seed=7, stop=("\n",), logprobs=True, top_logprobs=20)
TOOLS = '[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]'
TOOL_TURNS = (
    Message("user", "u"),
    Message(
        "assistant",
        "",
        '{"tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}',
    ),
    Message("tool", "3", '{"tool_call_id": "1"}'),
)
TRAIN = FineTuneRequest(model="gpt-4o-mini", training_file=b"{}", run_key="k", spec=TrainSpec(n_epochs=2, seed=3))
JOB: Any = {
    "id": "ftjob-1",
    "object": "fine_tuning.job",
    "created_at": 1,
    "fine_tuned_model": None,
    "finished_at": None,
    "hyperparameters": {"n_epochs": 3, "batch_size": "auto", "learning_rate_multiplier": "auto"},
    "model": "m",
    "organization_id": "org",
    "result_files": [],
    "seed": 1,
    "status": "running",
    "trained_tokens": None,
    "training_file": "file-1",
    "validation_file": None,
}


def sent(name: str) -> tuple[str, Mapping[str, Any]]:
    """A body that we send, with its path."""
    dialect = Dialect()
    match name:
        case "chat" | "full chat":
            return "/chat/completions", chat.chat_body(ASK if name == "chat" else FULL, dialect)
        case "new name of max_tokens":
            return "/chat/completions", chat.chat_body(ASK, replace(dialect, max_tokens_field="max_completion_tokens"))
        case "schema":
            return "/chat/completions", chat.chat_body(replace(ASK, schema='{"type": "object"}'), dialect)
        case "tools":
            asked = replace(ASK, prompt=Prompt(TOOL_TURNS, tools=TOOLS))
            return "/chat/completions", chat.chat_body(asked, dialect)
        case "prefill":
            opened = replace(ASK, prompt=Prompt(ASK.prompt.messages, "Answer:"))
            return "/chat/completions", chat.chat_body(opened, replace(dialect, continue_final_message=True))
        case "embeddings":
            return "/embeddings", embeddings.embedding_body(EmbedRequest(model="e", texts=("a", "b")), dialect)
        case _:
            return "/fine_tuning/jobs", finetuner.job_arguments(TRAIN, "file-1", "file-2", dialect)


SENT = ["chat", "full chat", "new name of max_tokens", "schema", "tools", "prefill", "embeddings", "job"]


@pytest.mark.parametrize("name", SENT)
def test_what_we_send_is_typed_by_the_openai_package(name: str) -> None:
    path, body = sent(name)
    check_request(path, body, OF_VLLM)


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("chat", ("max_token",), 9),
        ("chat", ("messages", 0, "role"), "human"),
        ("chat", ("messages", 1, "text"), "u"),
        ("full chat", ("seed",), "7"),
        ("embeddings", ("encoding_format",), "hex"),
        ("job", ("method", "supervised", "hyperparameters", "learning_rate"), 0.1),
    ],
)
def test_a_misspelt_or_wrong_field_is_found(name: str, place: tuple[str | int, ...], value: object) -> None:
    path, body = sent(name)
    broken: Any = copy.deepcopy(dict(body))
    node = broken
    for step in place[:-1]:
        node = node[step]
    node[place[-1]] = value
    with pytest.raises(UnlikeTypesError):
        check_request(path, broken, OF_VLLM)


@pytest.mark.parametrize(
    ("ours", "theirs", "of_others"),
    [
        (chat.ChatAnswer, ChatCompletion, set()),
        (chat.UsageFields, types.CompletionUsage, set()),
        (embeddings.EmbeddingAnswer, types.CreateEmbeddingResponse, set()),
        (embeddings.Vector, types.Embedding, set()),
        (batches.Batch, types.Batch, set()),
        (batches.Counts, types.BatchRequestCounts, set()),
        (finetuner.Job, fine_tuning.FineTuningJob, {"suffix", "user_provided_suffix"}),
        (finetuner.Event, fine_tuning.FineTuningJobEvent, set()),
        (finetuner.RemoteFile, types.FileObject, set()),
        (sdk.ModelFacts, types.Model, {"deprecation"}),
    ],
)
def test_what_we_read_is_typed_by_the_openai_package_or_named_as_another_vendors(
    ours: type[msgspec.Struct], theirs: Any, of_others: set[str]
) -> None:
    assert set(ours.__struct_fields__) - set(theirs.model_fields) == of_others


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat/completions", completions.ChatBody),
        ("/completions", completions.TextBody),
        ("/embeddings", completions.EmbeddingBody),
        ("/batches", server_batches.BatchBody),
        ("/fine_tuning/jobs", job_events.JobBody),
        ("/responses", responses.ResponseBody),
    ],
)
def test_the_server_knows_every_field_that_the_package_can_send(path: str, body: type[msgspec.Struct]) -> None:
    ours = set(body.__struct_fields__)
    assert fields_of(path) - ours == set(), "a field that nobody looked at: honour it, or refuse it by name"
    if installed_major() >= 3:
        assert ours - fields_of(path) <= OF_VLLM


def test_an_answer_with_an_unknown_or_a_missing_field_is_found() -> None:
    check_answer("FineTuningJob", JOB)
    broken = (
        {"surprise": 1},
        {"hyperparameters": {"n_epochs": 3, "rank": 4}},
        {"status": "resting"},
        {"created_at": "1"},
    )
    for change in broken:
        with pytest.raises(UnlikeTypesError):
            check_answer("FineTuningJob", JOB | change)
    with pytest.raises(UnlikeTypesError, match="seed"):
        check_answer("FineTuningJob", {name: value for name, value in JOB.items() if name != "seed"})
