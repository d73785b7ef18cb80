"""How the demo's data and model were made: `python -m semievol_api.demo.build --data FOLDER`.

Needs the extra `demo-build`. Nothing in the package imports it; it knows nothing of the package's pipeline.
"""
