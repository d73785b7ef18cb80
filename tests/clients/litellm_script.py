"""A user's script that reaches an OpenAI-compatible server through litellm's `api_base`.

    LITELLM_LOCAL_MODEL_COST_MAP=True python tests/clients/litellm_script.py URL MODEL

Knows nothing of this project.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import litellm

CHAT = [{"role": "user", "content": "Say something."}]


def held_to_a_schema(model: str, name: str, there: dict[str, Any]) -> None:
    """A typed answer, and the Responses API."""
    schema = {"type": "object", "properties": {"label": {"enum": ["A", "B"]}}, "required": ["label"]}
    shape = {"name": "label", "schema": {**schema, "additionalProperties": False}, "strict": True}
    typed = litellm.completion(
        model=name, messages=CHAT, max_tokens=60, response_format={"type": "json_schema", "json_schema": shape},
        allowed_openai_params=["response_format"], **there,
    )  # fmt: skip
    assert json.loads(typed.choices[0].message.content)["label"] in ("A", "B")
    response = litellm.responses(model=name, input="Say something.", max_output_tokens=8, **there)
    assert response.output[0].content[0].type == "output_text"


def batch(model: str, there: dict[str, Any]) -> None:
    """A batch to its end."""
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
    line["body"] = {"model": model, "messages": CHAT, "max_tokens": 2}
    vendor: dict[str, Any] = {"custom_llm_provider": "openai", **there}
    file = litellm.create_file(file=("batch.jsonl", json.dumps(line).encode()), purpose="batch", **vendor)
    made = litellm.create_batch(
        completion_window="24h", endpoint="/v1/chat/completions", input_file_id=file.id, **vendor
    )
    while (made := litellm.retrieve_batch(batch_id=made.id, **vendor)).status not in ("completed", "failed"):
        time.sleep(0.2)
    assert made.request_counts.completed == 1
    assert b'"custom_id":"a"' in litellm.file_content(file_id=made.output_file_id, **vendor).content


def run(url: str, model: str) -> None:
    """Chat with log-probabilities, streams, text, embeddings, files, jobs and batches."""
    there: dict[str, Any] = {"api_base": url, "api_key": "none"}
    name = f"openai/{model}"
    whole = litellm.completion(
        model=name, messages=CHAT, n=2, seed=7, max_tokens=6, logprobs=True, top_logprobs=2,
        allowed_openai_params=["logprobs", "top_logprobs"], **there,
    )  # fmt: skip
    assert len(whole.choices) == 2
    assert whole.choices[0].logprobs.content[0].logprob <= 0
    text, scored = "", 0
    for part in litellm.completion(
        model=name, messages=CHAT, seed=7, max_tokens=6, stream=True, logprobs=True,
        allowed_openai_params=["logprobs"], **there,
    ):  # fmt: skip
        text += part.choices[0].delta.content or ""
        shown = getattr(part.choices[0], "logprobs", None)
        scored += len(shown.content) if shown else 0
    assert text == whole.choices[0].message.content
    assert scored == len(whole.choices[0].logprobs.content)
    held_to_a_schema(model, name, there)
    text = litellm.text_completion(model=f"text-completion-openai/{model}", prompt="One", max_tokens=4, **there)
    assert isinstance(text.choices[0].text, str)
    found = litellm.embedding(model=name, input=["one", "two"], **there)
    assert len(found.data) == 2
    asyncio.run(_many(name, there))
    rows = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n' * 12
    file = litellm.create_file(file=("train.jsonl", rows), purpose="fine-tune", custom_llm_provider="openai", **there)
    assert litellm.file_retrieve(file_id=file.id, custom_llm_provider="openai", **there).id == file.id
    job = litellm.create_fine_tuning_job(model=model, training_file=file.id, custom_llm_provider="openai", **there)
    assert (
        litellm.cancel_fine_tuning_job(fine_tuning_job_id=job.id, custom_llm_provider="openai", **there).status
        == "cancelled"
    )
    batch(model, there)


async def _many(name: str, there: dict[str, Any]) -> None:
    asks = [litellm.acompletion(model=name, messages=CHAT, seed=i, max_tokens=4, **there) for i in range(8)]
    answers = await asyncio.gather(*asks)
    assert all(answer.usage.completion_tokens > 0 for answer in answers)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2])
    sys.stdout.write("litellm: all of it works\n")
