"""Fetch a model: the catalogue, a hub, a folder."""
