"""Public sets that a user has a copy of. Each public file here is one kind of `heredity probes import KIND
FILE`.

A file has `SOURCE` (what it is, and where its format was looked up), `BY_FILE` (whether the rows are named
after the file rather than the kind), `OPTIONS` (what may stand behind the `?`) and

    rows(source: Source) -> Iterator[Row | Skip]

Promises: nothing of these sets ships with heredity; a row is asked as it stands.
Leaves to others: what becomes of a row (_import.py), and the licence of the set, which is its owner's to
keep.
"""
