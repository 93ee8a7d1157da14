"""Reports of a study: an open folder, one writer a format.

A writer is a file here with one function, `write(folder, out, with_text=True) -> Path`: it reads the study's
folder, writes one file whole or not at all, and returns its path. Without text, nothing that a model or a
probe said is in the file. `gate` is no writer: it says whether a study lets its models through.
"""
