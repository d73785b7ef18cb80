"""Provider `litellm`: chat and embeddings at everything that litellm can reach; never imported unless chosen.

    provider.py     connect: settings in, capability table out
    settings.py     the keys of [providers.NAME]
    calls.py        litellm's functions as abilities; the only module that imports litellm
    errors.py       litellm's errors as ours
    prices.py       litellm's own price table, read from its file, offline

No fine-tuning: litellm drops `method`, `metadata` and every field that it does not know from such a job, and has no
events, so that a training could neither be worded nor be found again. Knows nothing of stages, budgets or retries.
"""

from semievol_providers.litellm.provider import connect

__all__ = ["connect"]
