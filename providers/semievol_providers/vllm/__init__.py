"""Provider `vllm`."""
