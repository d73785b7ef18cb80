"""Confidence and selection rules: pure numpy, no I/O."""
