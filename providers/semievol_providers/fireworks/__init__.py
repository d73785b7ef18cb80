"""Provider `fireworks`: chat over the OpenAI protocol, Fireworks' own jobs and deployments through its SDK.

Knows nothing of runs.
"""

from semievol_providers.fireworks.provider import connect

__all__ = ["connect"]
