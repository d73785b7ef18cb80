"""Provider `litellm`."""
