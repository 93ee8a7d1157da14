"""Training data as batches."""
