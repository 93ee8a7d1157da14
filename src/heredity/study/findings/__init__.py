"""Statistics of a study: one file each. See protocols.py."""
