"""Models that were made seconds ago: a server that does not know one yet is asked again for some minutes.

Knows nothing of jobs or of what the models answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from semievol_api.capabilities import ChatRequest, OptionReply, OptionRequest, Provider, Reply
from semievol_api.cassettes.clock import Clock
from semievol_api.errors import RefusedError

PATIENCE_S = 300.0
"""How long after a training a server may not know its model."""
_PAUSE_S = 5.0
_BY_HAND = frozenset({"DeploymentNotFound", "model_not_deployed"})
"""Codes of servers at which a model answers once somebody has deployed it: waiting does not help."""
_RequestT = TypeVar("_RequestT", ChatRequest, OptionRequest)
_ReplyT = TypeVar("_ReplyT", Reply, OptionReply)


@dataclass(frozen=True, slots=True)
class _Patient(Generic[_RequestT, _ReplyT]):
    """Asks, and asks again while the model is young and not found."""

    inner: Callable[[_RequestT], Awaitable[_ReplyT]]
    made_s: Mapping[str, float]
    clock: Clock

    async def complete(self, request: _RequestT) -> _ReplyT:
        """As the provider answers.

        Raises:
            RefusedError: as the provider does; a model that is not found, only some minutes after its training.
        """
        while True:
            try:
                return await self.inner(request)
            except RefusedError as error:
                made_s = self.made_s.get(request.model)
                may_come = error.status == 404 and error.code not in _BY_HAND
                if not may_come or made_s is None or self.clock.now_s() - made_s > PATIENCE_S:
                    raise
            await self.clock.sleep(_PAUSE_S)

    async def read(self, request: _RequestT) -> _ReplyT:
        """The same for option reads."""
        return await self.complete(request)


def patient_with(provider: Provider, made_s: Mapping[str, float], clock: Clock) -> Provider:
    """The provider, which waits until its server knows the models of `made_s` (name to the clock's seconds)."""
    if not made_s or provider.deployer is not None:
        return provider
    chat, scored, reader = provider.chat, provider.scored, provider.option_reader
    return replace(
        provider,
        chat=_Patient(chat.complete, made_s, clock) if chat else None,
        scored=_Patient(scored.complete, made_s, clock) if scored else None,
        option_reader=_Patient(reader.read, made_s, clock) if reader else None,
    )
