"""Fast CPU paths for the layers of transformers' models."""
