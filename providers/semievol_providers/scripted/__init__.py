"""Provider `scripted`: deterministic answers without any model, for tests and for learning the code.

Its models know one trick: a question names its answer (`... cue: <option text>`), and a model sees the cue with
a skill in [0, 1] that a fine-tuning job raises. Everything follows from hashes of the request, so runs repeat
byte for byte. Jobs live in memory, or in a folder (`state = "..."`) to outlive the process.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from semievol_api.capabilities import Provider, ProviderSettings
from semievol_providers.scripted.provider import Manners, ScriptedChat, ScriptedEmbedder, ScriptedJobs


class _ScriptedSettings(BaseModel):
    """`[providers.NAME]` of kind `scripted`.

    `ignore_logprobs` plays a vendor that leaves log-probabilities out, `refuse_logprobs` one that answers 400,
    `alternatives = false` one that shows the chosen tokens only, `schemas` one that holds answers to a JSON schema.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    skill: float = 0.6
    identity: str = "scripted"
    state: str | None = None
    latency_s: float = 0.0
    ignore_logprobs: bool = False
    refuse_logprobs: bool = False
    alternatives: bool = True
    schemas: bool = False
    can_read_options: bool = True
    can_train: bool = True


def connect(settings: ProviderSettings) -> Provider:
    """The table of a provider that answers from a script."""
    chosen = settings.read(_ScriptedSettings)
    jobs = ScriptedJobs(chosen.state, settings.base_folder)
    manners = Manners(
        ignores_logprobs=chosen.ignore_logprobs,
        refuses_logprobs=chosen.refuse_logprobs,
        shows_alternatives=chosen.alternatives,
        takes_schemas=chosen.schemas,
    )
    chat = ScriptedChat(chosen.skill, jobs, chosen.latency_s, manners)
    reads = chosen.can_read_options and not (chosen.ignore_logprobs or chosen.refuse_logprobs)
    return Provider(
        name=settings.name,
        identity=chosen.identity,
        chat=chat,
        scored=chat,
        option_reader=chat if reads else None,
        embedder=ScriptedEmbedder(),
        finetuner=jobs if chosen.can_train else None,
    )
