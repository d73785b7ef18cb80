"""Evidence on real tasks: fixed splits and seeds, methods that are compared on them, one JSON file per cell."""
