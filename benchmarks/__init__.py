"""Measurements: `python -m benchmarks.NAME --json` prints figures, `--check` exits 1 where a promise falls short."""
