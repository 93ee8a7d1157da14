"""Pre-train models on text or captioned images: from random weights, or from a base.

recipe.py          the settings, and the work of a run for `heredity plan`; loads no torch
objectives/        what a recipe needs to know of an objective, one file each; loads no torch
training.py        what the runs of all objectives share
causal.py masked.py contrastive.py    the run of each objective: data, network, loss, files and notes
continued.py       a base that is trained further: its shape, and whether the corpus has its tokens
forecast.py        memory and time of a run, before it and measured
"""
