"""Provider `local`."""
