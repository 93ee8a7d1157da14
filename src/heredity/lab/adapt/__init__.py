"""Compare the ways to adapt a model to one task: quality, cost, breaches and over-refusal, side by side.

    task = read_task(Path("examples/adapt/support.toml"))
    found = adapt(task, Store(), Path("runs/support"))

Promises: the questions, the ways, the budget and the margin are recorded before anything is made. Every way
is asked the same questions and the same probes, paired with the untouched model. The same command resumes.
Leaves to others: how a model is trained (recipes/), and how it is asked and judged (study/).
"""
