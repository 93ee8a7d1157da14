"""Models from random weights: one file an objective."""
