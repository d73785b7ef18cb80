"""Many requests at once: dispatch, pacing, retry, journal, budget, batch mode.

`RequestEngine` is what stages use; `Ask` goes in, `Answer` comes out. Knows nothing of stages and vendors.
"""

from __future__ import annotations

from semievol_api.engine.budget import Ledger as Ledger
from semievol_api.engine.budget import StageBill as StageBill
from semievol_api.engine.engine import Fleet as Fleet
from semievol_api.engine.engine import RequestEngine as RequestEngine
from semievol_api.engine.engine import spent_in as spent_in
from semievol_api.engine.journal import Journal as Journal
from semievol_api.engine.requests import Answer as Answer
from semievol_api.engine.requests import Ask as Ask
from semievol_api.engine.requests import Progress as Progress

__all__ = ["Answer", "Ask", "Fleet", "Journal", "Ledger", "Progress", "RequestEngine", "StageBill", "spent_in"]
