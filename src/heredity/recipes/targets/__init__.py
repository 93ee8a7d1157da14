"""Models that need no download, named "PREFIX:...". lineage.store.TARGETS has the file of each prefix.

A file has `resolve(store, ref)`, which returns the recipe and its parents, and `WRAPS_MODEL`: whether the
prefix is followed by the name of another model (lineage.types.Target).
"""
