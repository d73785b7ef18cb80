"""Many requests at once: pacing, retry, journal, budget."""
