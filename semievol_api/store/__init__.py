"""A run's folder: artifacts by fingerprint (`run_store`), what they hold (`artifacts`), and figures on their way out.

Knows nothing of what the stages compute.
"""
