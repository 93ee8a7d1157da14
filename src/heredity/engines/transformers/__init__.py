"""Any causal language model that transformers loads: the engine of architectures that `torch` lacks."""
