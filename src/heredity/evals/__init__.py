"""Tasks and metrics: the capability of a model, measured by prompting."""
