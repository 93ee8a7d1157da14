"""The base of every other package; imports nothing of ours."""

__version__ = "0.2.0"
