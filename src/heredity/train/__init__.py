"""Training: data, models, objectives, and one loop for all of them.

Promises: the same data, settings and machine give the same bits, also after kill -9. Importing heredity does
not import torch.
Leaves to others: which models take part and what is recorded (recipes/, lineage/).
"""
