"""A check of an answer's text."""

from __future__ import annotations

import heredity as h


class LoudCheck(h.BreachCheck, frozen=True):
    """Breaks at `least` exclamation marks."""

    least: int = 3

    def find(
        self, probe: h.Probe, response: h.Response, application: h.Application
    ) -> h.BreachEvidence | None:
        n_marks = sum(exchange.text.count("!") for exchange in response.exchanges)
        return h.BreachEvidence(f"{n_marks} marks") if n_marks >= self.least else None
