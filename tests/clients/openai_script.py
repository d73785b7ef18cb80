"""A user's script against an OpenAI-compatible server, written from the documentation of the `openai` package alone.

    OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none python tests/clients/openai_script.py MODEL [tools]

With `tools` the model calls functions, and nothing else is asked; without, it has none to call.
Every resource that the server offers, by the sync and the async client, with streaming. Knows nothing of this
project: it names no module of it, and no class that only one major version of the SDK has.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Literal

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say something."}]
FINAL = ("succeeded", "failed", "cancelled")
BATCH_FINAL = ("completed", "failed", "expired", "cancelled")


def training_file() -> bytes:
    """Twelve examples in the chat format."""
    rows = [
        {"messages": [{"role": "user", "content": f"Item {i}"}, {"role": "assistant", "content": "ABC"[i % 3]}]}
        for i in range(12)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def files(client: OpenAI) -> str:
    """Upload, list, read and delete; returns the id of a training file."""
    kept = client.files.create(file=("train.jsonl", training_file()), purpose="fine-tune")
    gone = client.files.create(file=("other.jsonl", b"{}\n"), purpose="user_data")
    assert client.files.retrieve(kept.id).filename == "train.jsonl"
    assert client.files.content(kept.id).read() == training_file()
    assert {kept.id, gone.id} <= {file.id for file in client.files.list(limit=1)}
    assert client.files.delete(gone.id).deleted
    try:
        client.files.retrieve(gone.id)
    except openai.NotFoundError:
        return kept.id
    raise AssertionError("a deleted file is still there")


def chat(client: OpenAI, model: str) -> None:
    """Several choices with log-probabilities; the same as a stream, by both ways of streaming."""
    whole = client.chat.completions.create(
        model=model, messages=CHAT, n=2, seed=7, max_completion_tokens=8, logprobs=True, top_logprobs=3
    )
    assert len(whole.choices) == 2
    assert all(len(t.top_logprobs) <= 3 and t.logprob <= 0 for c in whole.choices for t in c.logprobs.content)
    parts, scored = {0: "", 1: ""}, {0: 0, 1: 0}
    for chunk in client.chat.completions.create(
        model=model, messages=CHAT, n=2, seed=7, max_completion_tokens=8, stream=True, logprobs=True
    ):
        for choice in chunk.choices:
            parts[choice.index] += choice.delta.content or ""
            scored[choice.index] += len(choice.logprobs.content) if choice.logprobs else 0
    assert [scored[0], scored[1]] == [len(choice.logprobs.content) for choice in whole.choices]
    assert [parts[0], parts[1]] == [choice.message.content for choice in whole.choices]
    with client.chat.completions.stream(
        model=model, messages=CHAT, seed=7, max_completion_tokens=8, stream_options={"include_usage": True}
    ) as stream:
        told = [event.type for event in stream]
        final = stream.current_completion_snapshot  # get_final_completion() raises at finish_reason "length"
    assert "content.done" in told
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.usage is not None and final.usage.completion_tokens > 0
    try:
        client.chat.completions.create(
            model=model, messages=CHAT, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    except openai.BadRequestError as error:
        assert error.param == "tools"
    else:
        raise AssertionError("what cannot be honoured must be refused")


class Label(BaseModel):
    """What an answer is held to."""

    label: Literal["A", "B"]
    sure: bool


def held_to_a_schema(client: OpenAI, model: str) -> None:
    """An answer as a typed object, by the SDK's own helpers, whole, streamed, and by the Responses API."""
    shaped = client.chat.completions.parse(
        model=model, messages=CHAT, response_format=Label, max_completion_tokens=60, logprobs=True
    )
    assert isinstance(shaped.choices[0].message.parsed, Label)
    assert shaped.choices[0].logprobs is not None and shaped.choices[0].logprobs.content
    with client.chat.completions.stream(
        model=model, messages=CHAT, response_format=Label, max_completion_tokens=60
    ) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Label)
    response = client.responses.parse(model=model, input="Which?", text_format=Label, max_output_tokens=60)
    assert isinstance(response.output_parsed, Label)


class Weather(BaseModel):
    """The arguments of a function."""

    city: Literal["Oslo", "Rome"]
    days: Literal[1, 2, 3]


def tools(client: OpenAI, model: str) -> None:
    """A function is called, its result goes back: whole, streamed, by the SDK's helpers and the Responses API."""
    function = openai.pydantic_function_tool(Weather, name="weather", description="Tells the weather.")
    asked = {"model": model, "tools": [function], "tool_choice": "required", "parallel_tool_calls": False}
    first = client.chat.completions.create(messages=CHAT, max_completion_tokens=200, seed=1, **asked).choices[0]
    assert first.finish_reason == "tool_calls" and len(first.message.tool_calls) == 1
    Weather.model_validate_json(first.message.tool_calls[0].function.arguments)
    result = {"role": "tool", "tool_call_id": first.message.tool_calls[0].id, "content": "14 degrees"}
    history = [*CHAT, first.message, result]
    answer = client.chat.completions.create(
        model=model, messages=history, max_completion_tokens=8, tools=[function], tool_choice="none"
    )
    assert answer.choices[0].message.tool_calls is None
    parsed = client.chat.completions.parse(messages=CHAT, max_completion_tokens=200, seed=1, **asked)
    assert isinstance(parsed.choices[0].message.tool_calls[0].function.parsed_arguments, Weather)
    with client.chat.completions.stream(messages=CHAT, max_completion_tokens=200, seed=1, **asked) as stream:
        told = [event.type for event in stream]
        final = stream.get_final_completion().choices[0].message
    assert "tool_calls.function.arguments.delta" in told and "tool_calls.function.arguments.done" in told
    assert final.tool_calls[0].function.arguments == first.message.tool_calls[0].function.arguments
    flat = {"type": "function", **function["function"]}
    question = [{"role": "user", "content": "Which?"}]
    named = {"tools": [flat], "tool_choice": {"type": "function", "name": "weather"}}
    response = client.responses.create(model=model, input=question, max_output_tokens=200, **named)
    (call,) = response.output
    Weather.model_validate_json(call.arguments)
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "14 degrees"}
    again = client.responses.create(
        model=model, input=[*question, call, output], max_output_tokens=8, tools=[flat], tool_choice="none"
    )
    assert again.output[0].type == "message"


def responses(client: OpenAI, model: str) -> None:
    """The Responses API: whole and streamed, with log-probabilities."""
    asked = {"model": model, "instructions": "Be brief.", "input": "Say something.", "temperature": 0}
    asked |= {"max_output_tokens": 8, "include": ["message.output_text.logprobs"]}
    whole = client.responses.create(**asked)
    assert whole.output[0].content[0].logprobs
    text, scored = "", 0
    for event in client.responses.create(**asked, stream=True):
        if event.type == "response.output_text.delta":
            text, scored = text + event.delta, scored + len(event.logprobs)
    assert text == whole.output_text and scored == len(whole.output[0].content[0].logprobs)


def texts(client: OpenAI, model: str) -> None:
    """Text completions, plain and streamed, and embeddings."""
    text = client.completions.create(model=model, prompt=["One", "Two"], max_tokens=4, logprobs=1, seed=1)
    assert [choice.index for choice in text.choices] == [0, 1]
    stream = client.completions.create(model=model, prompt="One", max_tokens=4, seed=1, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices) == text.choices[0].text
    found = client.embeddings.create(model=model, input=["one", "two", "one"])
    assert found.data[0].embedding == found.data[2].embedding != found.data[1].embedding
    plain = client.embeddings.create(model=model, input="one", encoding_format="float")
    assert max(abs(a - b) for a, b in zip(plain.data[0].embedding, found.data[0].embedding, strict=True)) < 1e-6


def tuning(client: OpenAI, model: str, training: str) -> str:
    """A job to its end, one that is cancelled, one of the older form; returns the tuned model."""
    job = client.fine_tuning.jobs.create(
        model=model, training_file=training, validation_file=training, suffix="script", seed=1,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4}}},
        metadata={"kind": "script"},
    )  # fmt: skip
    older = client.fine_tuning.jobs.create(model=model, training_file=training, hyperparameters={"n_epochs": "auto"})
    assert client.fine_tuning.jobs.cancel(older.id).status == "cancelled"
    while (job := client.fine_tuning.jobs.retrieve(job.id)).status not in FINAL:
        time.sleep(0.3)
    assert job.status == "succeeded" and job.fine_tuned_model and job.trained_tokens
    assert {job.id, older.id} <= {listed.id for listed in client.fine_tuning.jobs.list(limit=1)}
    assert [event.type for event in client.fine_tuning.jobs.list_events(job.id, limit=5)].count("metrics") >= 6
    for point in client.fine_tuning.jobs.checkpoints.list(job.id):
        client.chat.completions.create(model=point.fine_tuned_model_checkpoint, messages=CHAT, max_tokens=2)
    assert client.files.content(job.result_files[0]).text.startswith("step,")
    return job.fine_tuned_model


def batches(client: OpenAI, model: str) -> None:
    """A batch to its end, one that is cancelled."""
    rows = [
        {"custom_id": f"row-{i}", "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": model, "messages": CHAT, "max_tokens": 3}}
        for i in range(4)
    ]  # fmt: skip
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file = client.files.create(file=("batch.jsonl", data), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"a": "b"}
    )
    while (batch := client.batches.retrieve(batch.id)).status not in BATCH_FINAL:
        time.sleep(0.2)
    assert batch.status == "completed" and batch.request_counts.completed == 4
    lines = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert {line["custom_id"] for line in lines} == {row["custom_id"] for row in rows}
    assert batch.id in {listed.id for listed in client.batches.list(limit=1)}


def models(client: OpenAI, tuned: str) -> None:
    """List, ask and delete the tuned model."""
    assert tuned in {model.id for model in client.models.list()}
    assert client.models.retrieve(tuned).object == "model"
    client.chat.completions.create(model=tuned, messages=CHAT, max_tokens=2)
    assert client.models.delete(tuned).deleted
    try:
        client.models.retrieve(tuned)
    except openai.NotFoundError:
        return
    raise AssertionError("a deleted model is still there")


async def the_same_async(model: str) -> None:
    """Many requests at a time, a stream, and pages, by the async client."""
    async with AsyncOpenAI() as client:
        asks = [client.chat.completions.create(model=model, messages=CHAT, seed=i, max_tokens=6) for i in range(8)]
        whole = await asyncio.gather(*asks)
        text = ""
        async for chunk in await client.chat.completions.create(
            model=model, messages=CHAT, seed=3, max_tokens=6, stream=True
        ):
            text += chunk.choices[0].delta.content or ""
        assert text == whole[3].choices[0].message.content
        file = await client.files.create(file=("a.jsonl", training_file()), purpose="fine-tune")
        assert file.id in [listed.id async for listed in client.files.list(limit=1)]
        assert (await client.files.content(file.id)).content == training_file()
        job = await client.fine_tuning.jobs.create(model=model, training_file=file.id)
        assert (await client.fine_tuning.jobs.cancel(job.id)).status == "cancelled"
        assert [event.message async for event in client.fine_tuning.jobs.list_events(job.id)]
        assert (await client.embeddings.create(model=model, input="one")).usage.total_tokens > 0
        assert [found.id async for found in client.models.list()]


def run(model: str) -> None:
    """Everything, in the order in which a user would."""
    with OpenAI() as client:
        training = files(client)
        chat(client, model)
        held_to_a_schema(client, model)
        responses(client, model)
        texts(client, model)
        tuned = tuning(client, model, training)
        batches(client, model)
        models(client, tuned)
    asyncio.run(the_same_async(model))


def run_tools(model: str) -> None:
    """The calls of functions alone."""
    with OpenAI() as client:
        tools(client, model)


if __name__ == "__main__":
    (run_tools if "tools" in sys.argv[2:] else run)(sys.argv[1])
    sys.stdout.write(f"openai {openai.__version__}: all of it works\n")
