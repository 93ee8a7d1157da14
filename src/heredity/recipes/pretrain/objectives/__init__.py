"""The objectives of pre-training, one file each: its settings, its sizes, and what trains it.

To add an objective, add a file that defines what protocols.py asks for. Only `train` and `write` load torch.
"""
