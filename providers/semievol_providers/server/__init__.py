"""Provider `server`."""
