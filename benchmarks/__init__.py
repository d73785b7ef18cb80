"""The project's benchmarks: `python -m benchmarks.NAME --json [--check] [--quick]`."""
