"""Measurements that back the numbers in the documentation: `python -m benchmarks.NAME --json`."""
