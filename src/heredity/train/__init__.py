"""Training: data, models, objectives, and one loop for all of them.

loop.py         the loop: steps, checkpoints, metrics, progress
optimizer.py    AdamW and Muon on fp32 master weights; learning-rate schedules
checkpoint.py   the state of a run in safetensors, in one file or in shards
distributed.py  the processes that torchrun starts, and their collectives
sharded.py      weights sharded over processes (FSDP2)
perplexity.py   bits per byte of held-out text
resources.py    memory, throughput, and the limits of the machine
data/           examples, packed documents, masked text, teacher log-probabilities
models/         causal language models, encoders, dual encoders, LoRA, shapes
objectives/     losses: causal, distill, preference; others are in recipes/pretrain/
kernels/        attention, norms, rotary positions and gates that are faster on a CPU
planning/       what a pre-training needs; nothing outside of it imports it

Promises: the same data, settings and machine give the same bits, also after kill -9. Importing heredity does
not import torch.
Leaves to others: which models take part and what is recorded (recipes/, lineage/).
"""
