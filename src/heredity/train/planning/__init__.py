"""The cost of a pre-training, estimated from its recipe before any text exists.

cost_models.py  what a run computes: parameters, FLOPs and bytes of each architecture by part
forecast.py     devices (gpus.toml), the best layout over them, and what it takes: steps and time
rehearsal.py    one sharded step on fake tensors, so that failures show up here

Promises: numbers in, numbers out; only rehearsal.py and measuring a CPU need torch.
Leaves to others: the recipe, and the refusal before a real run (recipes/pretrain/).
"""
