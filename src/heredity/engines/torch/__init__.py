"""The fast engine: batched decoding with a shared prefix and batch-invariant answers."""
