"""Models that need no download: named as "PREFIX:...", asked where they are. One file a prefix.

A file has `resolve(store, ref)`, which gives the recipe and its parents, and `WRAPS_MODEL`: whether what
follows the prefix names another model (lineage.types.Target).
"""
