"""Ask the provider for one piece until there is a reply: first the budget, then the gate, then the wire.

A 429 costs no attempt: the gate pauses everyone, and the piece goes
again. What another attempt may mend is tried again with growing, random waits; the rest is not. Knows nothing of
tasks, queues or the journal.
"""

from __future__ import annotations

import asyncio
import errno
from functools import partial

from semievol_api.config import Limits
from semievol_api.engine.budget import Budget, Spend, price
from semievol_api.engine.gate import Gate, Pass
from semievol_api.engine.leases import Leases
from semievol_api.engine.retrying import after_failure
from semievol_api.engine.work import AnyPiece
from semievol_api.errors import RateLimitError, RefusedError, TransientError
from semievol_api.transport.clock import Clock
from semievol_api.transport.deadlines import Deadlines

PATIENCE_S = 900.0
"""How long a server may answer nothing but 429 before the stage is stopped."""
_NEVER_SENT = {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EMFILE, errno.ENFILE}


class Load:
    """What a carrier has in its hands, and whether it is on the wire."""

    __slots__ = ("piece", "sent")

    def __init__(self) -> None:
        self.piece: AnyPiece | None = None
        self.sent = False


class Asker:
    """Asks for all carriers of an engine."""

    def __init__(self, limits: Limits, budget: Budget, clock: Clock, leases: Leases | None = None) -> None:
        self._leases = leases
        self._limits = limits
        self._budget = budget
        self._clock = clock
        self._deadlines = Deadlines()

    def close(self) -> None:
        """No request is broken off any more."""
        self._deadlines.close()

    async def send(self, gate: Gate, load: Load, piece: AnyPiece) -> None:
        """Come back when the piece has its reply. The first attempt goes without tenacity's overhead.

        Raises:
            RefusedError, TransientError: there will be none, for a reason that lies in this piece.
            BudgetError, JournalError, RateLimitError: nothing more can be sent.
        """
        if self._budget.capped:
            piece.need = _most(piece)
        try:
            await self._attempt(gate, load, piece)
        except TransientError as error:
            again = partial(self._attempt, gate, load, piece)
            await after_failure(error, again, self._limits.max_attempts, self._clock)

    async def _attempt(self, gate: Gate, load: Load, piece: AnyPiece) -> None:
        """One attempt, and as many 429s as the server likes."""
        while True:
            if self._budget.capped:
                await self._budget.reserve(piece.need)
            passed: Pass | None = None
            billed = True
            try:
                if self._leases is not None:
                    await self._leases.pace(piece.tokens)
                passed = gate.enter_now(piece.tokens) or await gate.enter(piece.tokens)
                await self._ask(gate, passed, load, piece)
                return
            except RateLimitError as error:
                billed = False
                piece.owner.tally.rate_limited += 1
                if passed is None or gate.pause(passed, error.retry_after_s) > PATIENCE_S:
                    raise
            except (TransientError, RefusedError) as error:
                billed = _may_be_billed(error)
                raise
            finally:
                if piece.reply is None:
                    self._charge(piece, lost=billed and passed is not None)

    async def _ask(self, gate: Gate, passed: Pass, load: Load, piece: AnyPiece) -> None:
        owner = piece.owner
        owner.tally.attempts += 1
        deadline = self._deadlines.begin(self._limits.timeout_s)
        load.sent = True
        try:
            reply = await owner.kind.call(piece.request)
            piece.take(reply)
        except asyncio.CancelledError:
            if not self._deadlines.passed(deadline):
                raise
            gate.failed()
            raise TransientError(f"There was no answer within {self._limits.timeout_s:g} s.") from None
        except TransientError:
            gate.failed()
            raise
        else:
            gate.replied(passed, reply.pace)
        finally:
            self._deadlines.end(deadline)
            load.sent = False
            gate.leave()
        owner.arrived(piece, reply.usage)

    def settle(self, piece: AnyPiece) -> None:
        """A piece is paid and stored: its reservation becomes its price."""
        if self._budget.capped:
            self._budget.settle(piece.need, piece.actual)

    def _charge(self, piece: AnyPiece, *, lost: bool) -> None:
        """What becomes of a reservation whose reply did not come."""
        if lost:
            most = _most(piece)
            piece.owner.tally.lost_usd += most.usd
            piece.owner.tally.lost_tokens += most.tokens
        if self._budget.capped:
            (self._budget.lose if lost else self._budget.release)(piece.need)


def _most(piece: AnyPiece) -> Spend:
    """An upper bound of what a piece can cost."""
    limits = piece.owner.provider.limits.get(piece.owner.kind.model(piece.request))
    return Spend(price(piece.bound, limits), piece.bound.prompt + piece.bound.completion)


def _may_be_billed(error: RefusedError | TransientError) -> bool:
    """False where the server answered with an error, or was never reached."""
    if isinstance(error, RefusedError) or (error.status is not None and error.status >= 400):
        return False
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause.errno >= 0 and cause.errno not in _NEVER_SENT  # negative: the host's name is unknown
        cause = cause.__cause__
    return True
