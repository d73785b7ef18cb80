"""Provider `vllm`: one vLLM engine in this process for a whole run, and the PEFT trainer beside it.

    from semievol_providers.vllm import connect

Importing imports neither vLLM nor torch. Knows nothing of the method.
"""

from semievol_providers.vllm.provider import connect

__all__ = ["connect"]
