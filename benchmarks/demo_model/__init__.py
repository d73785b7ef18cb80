"""How the demo's data and model were made: `python -m benchmarks.demo_model --data FOLDER`.

Needs the extra `demo-build`. Nothing in the package imports it; it knows nothing of the package's pipeline.
"""
