"""Metrics, intervals and paired tests: pure numpy, no I/O."""
