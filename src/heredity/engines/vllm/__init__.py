"""A vLLM server that heredity starts and asks."""
