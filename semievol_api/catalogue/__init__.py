"""What is known of vendors and models: prices, limits, fine-tuning, ends; each fact with its date and source.

    catalogue = known_catalogue()
    catalogue.facts("openai", "gpt-4o-mini").shutdown_date

Knows nothing of runs or of how a vendor is asked.
"""

from semievol_api.catalogue.availability import (
    MIN_LIFE_DAYS,
    Verdict,
    availability,
    refuse_ended,
    utc_day,
)
from semievol_api.catalogue.facts import (
    Catalogue,
    ModelFacts,
    Origin,
    Prices,
    VendorFacts,
    load_catalogue,
)
from semievol_api.catalogue.known_limits import KnownLimits, with_bases, with_limits
from semievol_api.catalogue.refresh import Change, Refreshed, data_folder, known_catalogue, refresh, reset

__all__ = [
    "MIN_LIFE_DAYS",
    "Catalogue",
    "Change",
    "KnownLimits",
    "ModelFacts",
    "Origin",
    "Prices",
    "Refreshed",
    "VendorFacts",
    "Verdict",
    "availability",
    "data_folder",
    "known_catalogue",
    "load_catalogue",
    "refresh",
    "refuse_ended",
    "reset",
    "utc_day",
    "with_bases",
    "with_limits",
]
