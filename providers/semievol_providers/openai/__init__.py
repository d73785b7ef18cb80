"""Provider `openai`."""
