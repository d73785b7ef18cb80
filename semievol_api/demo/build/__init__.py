"""How the demo's model and data were built: `python -m semievol_api.demo.build --data FOLDER`."""
