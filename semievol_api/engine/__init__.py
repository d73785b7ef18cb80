"""Many requests at once: dispatch, pacing, retry, journal, budget, batch mode.

`RequestEngine` is what stages use; `Ask` goes in, `Answer` comes out. Knows nothing of stages and vendors.
"""

from __future__ import annotations

from semievol_api.engine.asks import Answer, Ask, Progress
from semievol_api.engine.engine import Fleet, RequestEngine, spent_in
from semievol_api.engine.journal import Journal
from semievol_api.engine.ledger import Ledger, StageBill

__all__ = ["Answer", "Ask", "Fleet", "Journal", "Ledger", "Progress", "RequestEngine", "StageBill", "spent_in"]
