"""The pages, one file each: to add a page, add a file with the members of `Page` (site.py)."""
