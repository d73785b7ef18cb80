"""Provider `openai`: the OpenAI protocol at any `base_url` (OpenAI, Azure, Nebius, Crusoe, vLLM, our own server).

Chat completions and embeddings take a hot path of their own over aiohttp; files, fine-tuning jobs, batches and
models go through the official SDK, which is imported when the first of them is used. Where to look:

    provider.py             connect: settings in, capability table out
    settings.py             the keys of [providers.NAME]; presets.py and presets.toml know the vendors
    chat_body.py            a request as JSON; chat_answer.py reads the answer; chat.py sends the one for the other
    embeddings.py           texts to vectors
    option_reader.py        the distribution over answer labels, in one request
    sdk.py                  the SDK's client, raw answers and our errors
    files.py, finetuner.py, batches.py, models.py
    error_translation.py    the vendor's errors as ours; advice.py says what to do next

Knows nothing of stages, budgets, retries or journals.
"""

from semievol_providers.openai.provider import connect

__all__ = ["connect"]
