"""Measurements that back the documentation: each module runs as `python -m benchmarks.NAME`."""
