"""An OpenAI-compatible server with fine-tuning for open models on one's own machine: `semievol serve`.

The API process imports no torch; the inference engine and every training run in processes of their own.
Knows nothing of the method, its stages or its files.
"""
