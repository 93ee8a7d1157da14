"""Models behind an API: one engine, one file per API."""
