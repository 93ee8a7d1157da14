"""How good a judge is: counts on human labels, and the shipped table."""
