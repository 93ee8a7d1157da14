"""The base of every other package; imports nothing of ours."""
