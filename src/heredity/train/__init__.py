"""How weights learn: data, what is learned, which weights may change, and ONE loop for all of it.

dialogues.py    tuning data from the files people have
documents.py    a conversation as tokens, and which of them are learned
steps.py        which examples a step learns from: a function of seed and step alone
network.py      a model that can learn, over packed documents, each seeing only itself
attention.py    causal attention within each of those documents
trainable.py    which of its weights may change: all, or low-rank adapters (LoRA)
objectives/     what is learned, one file each: causal distill preference
optimizer.py    AdamW and Muon on fp32 masters; schedules
loop.py         the loop: steps, checkpoints, metrics, progress
checkpoint.py   a training's state in one safetensors file, whole or not there

Promises: the same data, settings and machine give the same bits, also after kill -9; nothing is asked of a
network; torch is imported by these files alone, never by importing heredity.
Leaves to others: which models come in and what is recorded (recipes/, lineage.py).
"""

import heredity.engines as _engines  # noqa: F401 (first of all: it sets how OpenMP waits, which torch reads)
