"""What a study found, looked up: a rate, two models compared, what a child inherited.

Promises: nothing is computed here; what the study does not have is an UnknownName with the nearest.
Leaves to others: every number (tally.py) and its record (estimates.py).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from heredity.core.errors import UnknownName, UsageError
from heredity.core.records import Model
from heredity.lineage.types import Grown
from heredity.redteam import attacks
from heredity.study import estimates as numbers
from heredity.study.estimates import ALL, Estimates, Inheritance, Measure, ModelCard, Pair, Rate, main_scope


@dataclass(frozen=True)
class Result:
    """What a study found: `estimates` in full, and a look-up for the questions asked most."""

    folder: Path
    estimates: Estimates

    def rate(
        self,
        model: str | Grown | Model,
        technique: str | None = None,
        attack: str = ALL,
        measure: Measure = "breach",
    ) -> Rate:
        """One cell, by default all judge-free breaches together (judged ones, where there are no others).

        `technique` is one of the study's, or "judge_free", "judged"; for over-refusal "all". Raises
        UnknownName where the study has none such."""
        technique = technique or main_scope(self.estimates, measure)
        if attack != ALL and attack not in self.estimates.attacks:
            with suppress(UsageError):  # what is no attack at all is told below
                attack = attacks.load(attack).spec  # "encoding" is "encoding:base64"
        key = (self._card(model).id, technique, attack, measure)
        for rate in self.estimates.rates:
            if (rate.model, rate.technique, rate.attack, rate.measure) == key:
                return rate
        known = [*{r.technique for r in self.estimates.rates}, *self.estimates.attacks]
        raise UnknownName(f"{measure} rate", f"{technique} under {attack}", known, code="unknown-rate")

    def pair(
        self,
        a: str | Grown | Model,
        b: str | Grown | Model,
        measure: Measure = "breach",
        scope: str | None = None,
    ) -> Pair:
        """`b` compared with `a` on the same trials, in either order: `difference` is the rate of `b` minus
        that of `a`. `scope` is as for `rate`. Raises UnknownName where the study has no such pair."""
        first, second = self._card(a), self._card(b)
        wanted = (measure, scope or main_scope(self.estimates, measure))
        for pair in (*self.estimates.pairs, *self.estimates.technique_pairs):
            if (pair.measure, pair.technique) != wanted:
                continue
            if (pair.a, pair.b) == (first.id, second.id):
                return pair
            if (pair.a, pair.b) == (second.id, first.id):
                return numbers.turned(pair)
        raise UnknownName("pair", f"{first.name} and {second.name}", [], code="unknown-pair")

    def edge(
        self,
        parent: str | Grown | Model,
        child: str | Grown | Model,
        measure: Measure = "breach",
        scope: str | None = None,
    ) -> Inheritance:
        """What `child` inherited from `parent`: `.retention`, what it lost and gained, and the verdict.
        `scope` is as for `rate`. Raises UnknownName where the study has no such edge."""
        above, below = self._card(parent), self._card(child)
        wanted = (above.id, below.id, measure, scope or main_scope(self.estimates, measure))
        for edge in (*self.estimates.edges, *self.estimates.technique_edges):
            if (edge.parent, edge.child, edge.compared.measure, edge.compared.technique) == wanted:
                return edge
        raise UnknownName("edge", f"{above.name} to {below.name}", [], code="unknown-edge")

    def _card(self, model: str | Grown | Model) -> ModelCard:
        record = model.record if isinstance(model, Grown) else model
        for card in self.estimates.models:
            if record in (card.name, card.id) or (isinstance(record, Model) and record.id == card.id):
                return card
        name = record if isinstance(record, str) else record.name
        raise UnknownName(
            "model of this study",
            name,
            [card.name for card in self.estimates.models],
            code="unknown-model-of-study",
        )
