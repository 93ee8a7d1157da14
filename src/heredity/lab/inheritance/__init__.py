"""Studies of inheritance: grow a lineage, measure every edge of it, and write one page.

    plan = read_plan(Path("examples/inheritance.toml"))
    found = inherit(plan, Store(), Path("runs/inheritance"))

Promises: the questions, the edges, the margin and the expected verdicts are recorded before the first answer.
A child that cannot be made is named with the reason. The same command resumes after a stop at any point.
Leaves to others: how a child is made (recipes/), and the numbers of each study (study/).
"""
