"""Fetch a model: from the catalogue, the model hub, or this disk."""
