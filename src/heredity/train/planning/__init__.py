"""What a pre-training takes, reckoned from its recipe alone, before a byte of text is there.

work.py         what is to be done: shape, tokens, batch, how it is multiplied and stepped
anatomies/      parameters, FLOPs and kept bytes by part, one file a kind of model
memory.py       bytes a device by part
gpus.py         what a device can do and costs, with its source (gpus.toml)
sharding.py     how weights may lie on many devices, and how long they talk
pace.py         how long this machine takes for a token
forecast.py     which of these is best, and what it takes: steps, time, energy, money
rehearsal.py    one sharded step on fake tensors, so that what fails, fails here

Promises: numbers in, numbers out; only rehearsal.py and a measured CPU need torch.
Leaves to others: the recipe (recipes/pretrain.py), the refusal before a real run (recipes/_foreseen.py).
"""
