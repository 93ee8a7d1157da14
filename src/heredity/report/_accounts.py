"""What remote models' services told of a study's runs, in sentences.

Promises: a service that answered under more than one name or version is said so; so is every parameter that
was not sent. No number here is part of an estimate.
Leaves to others: gathering it (engines/remote.py, ledger.py, tally.py).
"""

from __future__ import annotations

from typing import Any

from heredity.estimates import Estimates

_SHOWN = 6  # versions of one model; more are counted


def lines(estimates: Estimates) -> list[str]:
    """One line a remote model, in the study's order; [] where there is none."""
    accounts = estimates.circumstances.accounts
    return [f"{card.name}: {_said(told)}." for card in estimates.models if (told := accounts.get(card.id))]


def _said(told: dict[str, Any]) -> str:
    served = list(map(str, told.get("served", [])))
    parts = []
    if len(served) == 1:
        parts.append(f"the service says that it answered as {served[0]}")
    elif served:
        more = f" and {len(served) - _SHOWN} more" if len(served) > _SHOWN else ""
        names = ", then ".join(served[:_SHOWN]) + more
        parts.append(f"what answered CHANGED during the study, as the service says: {names}")
    else:
        parts.append("the service does not say what answered")
    if not_sent := told.get("not_sent"):
        parts.append(f"not sent, as this API or model takes no such thing: {', '.join(map(str, not_sent))}")
    parts += _counts(told)
    return "; ".join(parts)


def _counts(told: dict[str, Any]) -> list[str]:
    found = []
    if "n_prompt_tokens" in told:
        cached = told.get("n_cached_prompt_tokens", 0)
        found.append(
            f"{told['n_prompt_tokens']:,} prompt tokens ({cached:,} from the service's own cache) and"
            f" {told.get('n_answer_tokens', 0):,} of answers"
        )
    if told.get("n_usage_estimated"):
        found.append(f"estimated for {told['n_usage_estimated']:,} answers, as the service did not count")
    if told.get("cost"):
        found.append(f"cost {told['cost']:,.4f} by the prices given")
    n_filtered = sum(n for name, n in told.items() if name.startswith("n_filtered"))
    if n_filtered:
        found.append(f"{n_filtered:,} answers stopped by the service's own filter, counted as refusals")
    return found
