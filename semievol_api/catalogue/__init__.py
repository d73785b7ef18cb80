"""What is known of vendors and models: prices, limits, fine-tuning, ends; each fact with its date and source.

    catalogue = load_catalogue()
    catalogue.facts("openai", "gpt-4o-mini").shutdown_date

Knows nothing of runs or of how a vendor is asked.
"""

from semievol_api.catalogue.availability import Verdict, availability, refuse_ended
from semievol_api.catalogue.facts import Catalogue, ModelFacts, Prices, load_catalogue
from semievol_api.catalogue.known_limits import KnownLimits, with_bases, with_limits

__all__ = [
    "Catalogue",
    "KnownLimits",
    "ModelFacts",
    "Prices",
    "Verdict",
    "availability",
    "load_catalogue",
    "refuse_ended",
    "with_bases",
    "with_limits",
]
