"""Which models exist, and where each came from."""
