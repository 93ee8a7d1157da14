"""The pages: to add one, add a `Page` (site.py) to the PAGES of a file, or a file."""
