"""What a person sees in the terminal: bars, tables, prompts. Knows nothing of what a run computes."""
