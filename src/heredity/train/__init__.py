"""Training: data, models, objectives, and one loop for all of them.

loop.py         the loop: steps, optimizers, checkpoints, metrics, progress
distributed.py  the processes that torchrun starts, their collectives, and weights in shards (FSDP2)
kernels.py      attention, norms, rotary positions and gates that are faster on a CPU
forecast.py     the memory, layout and time of a pre-training, by its recipe
rehearsal.py    its FLOPs, and one sharded step on fake tensors, so that failures show up before the run
data/           examples, packed documents, masked text
models/         causal language models and LoRA, encoders, dual encoders, shapes
objectives/     losses: causal, distill, preference; others are in recipes/pretrain/

Promises: the same data, settings and machine give the same bits, also after kill -9. Importing heredity does
not import torch.
Leaves to others: which models take part and what is recorded (recipes/, lineage/).
"""
