"""One training, bought once: training files, submission and waiting, the cap on its cost, jobs over all runs.

Knows nothing of how labels were chosen.
"""
