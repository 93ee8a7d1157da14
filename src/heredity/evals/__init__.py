"""Tasks and metrics: what a model can do, beside what it can be made to do."""
