"""Grids of runs over the same pipeline."""
