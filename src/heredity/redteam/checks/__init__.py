"""Deterministic checks: each decides from the answer alone whether a probe broke the model."""
