"""What children inherited, in sentences: the finding of a study whose primary comparisons are edges.

Promises: a child is called worse only if its own edge shows it. Edges without enough evidence are counted.
Leaves to others: numbers into words and the tables of edges (wording.py), and the headline (headline.py).
"""

from __future__ import annotations

from heredity.study.estimates import Estimates
from heredity.study.wording import edge_verdicts, names, plural, unsigned

_NAMED = 3  # children that a sentence names


def is_of_edges(found: Estimates) -> bool:
    """Whether the plan declared comparisons of parents and children as its primary ones."""
    declared = found.analysis
    return declared is not None and declared.primary is not None and declared.primary.between == "edges"


def edges_sentence(found: Estimates) -> str:
    """The verdicts on all edges in one sentence; "" if none has a verdict."""
    by_edge = edge_verdicts(found)
    if not by_edge:
        return ""
    called = names(found.models)
    worse = [
        f"{called[child]} than {called[parent]}" for (parent, child), v in by_edge.items() if v == "worse"
    ]
    verdicts = list(by_edge.values())
    n_same, n_open = verdicts.count("not worse"), verdicts.count("not enough evidence")
    more = f" and {len(worse) - _NAMED} more" if len(worse) > _NAMED else ""
    n_worse = len(worse) if worse else "none"
    parts = [
        f"In {n_worse} of {plural(len(by_edge), 'edge')} the child is worse than its parent"
        + (f" ({', '.join(worse[:_NAMED])}{more})" if worse else "")
    ]
    if n_same:
        parts.append(f"in {n_same} it is not worse, within {unsigned(found.margin)}")
    if n_open:
        parts.append(f"in {n_open} there is not enough evidence")
    return "; ".join(parts)
