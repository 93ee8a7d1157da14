"""Trainable models and their architectures."""
