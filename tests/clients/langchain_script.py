"""A user's script that reaches an OpenAI-compatible server through `langchain-openai`.

    OPENAI_API_KEY=none python tests/clients/langchain_script.py URL MODEL

Knows nothing of this project.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Literal

from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel


class Label(BaseModel):
    """What an answer is held to."""

    label: Literal["A", "B"]
    sure: bool


def run(url: str, model: str) -> None:
    """Chat, streams with log-probabilities, typed answers by both APIs, history, embeddings, many at once."""
    there: dict[str, Any] = {"base_url": url, "model": model, "max_retries": 0, "temperature": 0}
    chat = ChatOpenAI(**there, max_completion_tokens=8, logprobs=True, top_logprobs=2, seed=7)
    whole = chat.invoke([("system", "Be brief."), ("human", "Say something.")])
    tokens = whole.response_metadata["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == whole.content and len(tokens[0]["top_logprobs"]) == 2
    assert whole.usage_metadata is not None and whole.usage_metadata["output_tokens"] > 0
    text, scored = "", 0
    for part in chat.stream([("system", "Be brief."), ("human", "Say something.")]):
        text += str(part.content)
        scored += len((part.response_metadata.get("logprobs") or {}).get("content") or [])
    assert text == whole.content and scored == len(tokens)
    assert chat.invoke([("human", "Say something."), whole, ("human", "And now?")]).content is not None
    for api in ({}, {"use_responses_api": True}):
        typed = ChatOpenAI(**there, **api, max_completion_tokens=60).with_structured_output(Label, method="json_schema")
        assert isinstance(typed.invoke("Which?"), Label)
    found = OpenAIEmbeddings(base_url=url, model=model, check_embedding_ctx_length=False).embed_documents(
        ["one", "two"]
    )
    assert len(found) == 2 and found[0] != found[1]

    async def many() -> None:
        answers = await ChatOpenAI(**there, max_completion_tokens=4).abatch([f"Item {i}" for i in range(8)])
        assert len(answers) == 8

    asyncio.run(many())


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2])
    sys.stdout.write("langchain-openai: all of it works\n")
