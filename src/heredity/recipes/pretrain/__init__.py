"""Pre-train models on text or captioned images: from random weights, or from a base.

recipe.py          the settings, a base that is trained further, and the work of a run for `heredity plan`;
                   loads no torch
objectives/        what a recipe needs to know of an objective, one file each; loads no torch
training.py        what all runs share; the forecast of memory and time
causal.py masked.py contrastive.py    the run of each objective: data, network, loss, files and notes
"""
