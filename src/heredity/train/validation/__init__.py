"""Evaluations on held-out data during training."""
