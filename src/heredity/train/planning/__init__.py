"""The cost of a pre-training, estimated from its recipe before any text exists.

workload.py     what a run computes: shape, tokens, batch, dtype and optimizer
cost_models/    parameters, FLOPs and activation bytes by part, one file per architecture
memory.py       bytes per device by part
gpus.py         what a device can do, with its source (gpus.toml)
sharding.py     how weights can be sharded over devices, and the time of communication
forecast.py     the best layout, and what it takes: steps and time
rehearsal.py    one sharded step on fake tensors, so that failures show up here

Promises: numbers in, numbers out; only rehearsal.py and measuring a CPU need torch.
Leaves to others: the recipe, and the refusal before a real run (recipes/pretrain/).
"""
