"""A user's script that reaches an OpenAI-compatible server through litellm's `api_base`.

    LITELLM_LOCAL_MODEL_COST_MAP=True python tests/clients/litellm_script.py URL MODEL

Knows nothing of this project.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import litellm

CHAT = [{"role": "user", "content": "Say something."}]


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
    parts = litellm.completion(model=name, messages=CHAT, seed=7, max_tokens=6, stream=True, **there)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
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


async def _many(name: str, there: dict[str, Any]) -> None:
    asks = [litellm.acompletion(model=name, messages=CHAT, seed=i, max_tokens=4, **there) for i in range(8)]
    answers = await asyncio.gather(*asks)
    assert all(answer.usage.completion_tokens > 0 for answer in answers)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2])
    sys.stdout.write("litellm: all of it works\n")
