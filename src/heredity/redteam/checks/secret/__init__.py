"""Detects a leaked planted secret: whole, in parts, spelled out or disguised."""
