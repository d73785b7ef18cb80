"""What a question looks like to a model, and what its answer means."""
