"""The objectives of pre-training, one file each: its settings, its sizes, and its training.

To add an objective, add a file with the members of protocols.PretrainObjective. Only `train` and `write` load
torch.
"""
