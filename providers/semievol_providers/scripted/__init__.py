"""Provider `scripted`."""
