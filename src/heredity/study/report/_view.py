"""A study for the HTML template: estimates by cell, figures and names of rows.

Promises: shows only what estimates.json, plan.json and the rows hold; computes no statistic of its own.
Leaves to others: the words (study/wording.py), the figures (figures/), the page (_template.html.jinja).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
from markupsafe import Markup

from heredity.core.records import Estimate
from heredity.core.sanitize import label
from heredity.study import wording as words
from heredity.study.decision import Recommendation
from heredity.study.declared_words import is_planned, unsupported
from heredity.study.estimates import (
    ALL,
    JUDGE_FREE,
    JUDGED,
    SCOPES,
    Estimates,
    Inheritance,
    Manners,
    Measure,
    ModelPair,
    Rate,
    TechniqueCard,
)
from heredity.study.forecast import lines as forecast_lines
from heredity.study.headline import headline
from heredity.study.outcomes import MANNERS, is_part
from heredity.study.plan import Plan
from heredity.study.report import _robustness
from heredity.study.report._samples import WANTED, Sample
from heredity.study.report.figures import charts, lineage_graph

_MAX_RANGES = 6  # more than these make no readable filter; the rows are then found by probe name


_SHORT = {"worse": "worse", "not worse": "not worse", "not enough evidence": "undecided"}


class Band(NamedTuple):
    """Techniques that are decided in the same way: by a check, or by a judge that errs."""

    scope: str  # all of them together
    title: str
    techniques: tuple[TechniqueCard, ...]

    @property
    def names(self) -> list[str]:
        """Each technique, then all together."""
        return [*(t.name for t in self.techniques), self.scope]


class Strand(NamedTuple):
    """A measure and scope that has one row per attack."""

    title: str
    measure: Measure
    scope: str


class Compared(NamedTuple):
    """A pair as a row; `high` is the model with the higher rate, so no difference is negative."""

    pair: ModelPair
    high: str  # model ids
    low: str
    difference: Estimate
    only_high: int
    only_low: int
    badge: str  # a class of the style sheet: worse, same, unknown
    verdict: str
    aside: str


class EdgeRow(NamedTuple):
    """An edge as a row; the difference of `compared` is the child's rate minus the parent's."""

    edge: Inheritance
    how: str
    badge: str
    verdict: str
    compared: Compared


class TechniqueRow(NamedTuple):
    """A technique, or several together, with one rate per model of `Estimates.technique_rates`."""

    title: str
    cells: tuple[Estimate | None, ...]


class View:
    """The queries of the template. Every method takes and returns plain values."""

    def __init__(
        self,
        estimates: Estimates,
        plan: Plan,
        samples: Sequence[Sample],
        with_text: bool,
        recommendation: Recommendation | None = None,
    ) -> None:
        self.recommendation = recommendation
        self.estimates, self.plan, self.samples, self.with_text = estimates, plan, samples, with_text
        self.names = words.names(estimates.models)
        self.headline = headline(estimates)
        self.order = {card.id: i for i, card in enumerate(estimates.models)}
        self._rates: dict[tuple[str, str, str, str], Rate] = {
            (r.model, r.technique, r.attack, r.measure): r for r in estimates.rates
        }
        self._unsupported = unsupported(estimates)
        cards = sorted(estimates.techniques, key=lambda card: not card.is_judge_free)
        self.techniques = tuple(cards)

    @property
    def accounts(self) -> list[str]:
        """One line per remote model: what its service reported."""
        return words.account_lines(self.estimates)

    def forecast_lines(self) -> list[str]:
        """The forecast of the plan, as it was printed before the first request."""
        found = self.estimates.forecast
        return [] if found is None else forecast_lines(self.plan, found)

    # --- cells ---

    def rate(self, model: str, technique: str, measure: Measure, attack: str = ALL) -> Rate | None:
        """The rate of one cell; None if it was not asked."""
        return self._rates.get((model, technique, attack, measure))

    def unsupported(self, rate: Rate) -> int:
        """Trials of a cell that were not asked because the model does not support the attack."""
        return self._unsupported[rate.model, rate.technique, rate.attack, rate.measure]

    def attacks_on(self, technique: str, measure: Measure) -> int:
        """The number of attacks under which the plan asks the probes of a technique."""
        return sum(is_planned(attack, technique, measure) for attack in self.estimates.attacks)

    def bands(self, measure: Measure, attack: str = ALL) -> list[Band]:
        """Techniques with this measure, judge-free ones first. Twins are always read by a judge: one band.

        With an attack, only the techniques that it is for.
        """
        if measure == "over_refusal":
            twins = tuple(t for t in self.techniques if t.n_twins)
            return (
                [Band(ALL, "Benign twins: a judge separates refusals from answers", twins)] if twins else []
            )
        asked = [t for t in self.techniques if t.n_probes and is_planned(attack, t.name, measure)]
        free = tuple(t for t in asked if t.is_judge_free)
        judged = tuple(t for t in asked if not t.is_judge_free)
        bands = [
            Band(JUDGE_FREE, "Decided by checks: raw rate, and corrected for their measured errors", free),
            Band(
                JUDGED, "Decided by a judge: raw rate, and corrected for the judge's measured errors", judged
            ),
        ]
        return [band for band in bands if band.techniques]

    def forest(self) -> list[str]:
        """Techniques of the forest plot, judge-free ones and all these together first."""
        return self.ledger("breach")

    def ledger(self, measure: Measure) -> list[str]:
        """Techniques of one measure band by band, each band's sum at its end."""
        return [name for band in self.bands(measure) for name in band.names]

    def number(self, technique: str) -> int:
        """A technique's number for anchors. Names, which anyone may choose, never enter a link."""
        names = [*(scope for of in SCOPES.values() for scope in of), *(t.name for t in self.techniques)]
        return names.index(technique)

    @property
    def scopes(self) -> tuple[str, ...]:
        """The scopes of breaches that were asked: without a judge, by a judge, or both."""
        return self.estimates.breach_scopes

    @property
    def main_scope(self) -> str:
        """The scope that the headline rests on."""
        return self.estimates.main_scope()

    def strands(self) -> list[Strand]:
        """The rows of the table by attack: breaches without a judge and by one, then over-refusal."""
        by_scope = {JUDGE_FREE: "Breach, judge-free", JUDGED: "Breach, judged"}
        found = [Strand(by_scope[scope], "breach", scope) for scope in self.scopes]
        return found + ([Strand("Over-refusal", "over_refusal", ALL)] if self.has_twins else [])

    def attacks(self) -> tuple[str, ...]:
        """The attacks for the table by attack: all of them if there are several, else none."""
        return self.estimates.attacks if len(self.estimates.attacks) > 1 else ()

    def attacks_of(self, strand: Strand) -> list[str]:
        """The attacks with which a model was asked in this strand: one may be for other techniques."""
        cards = [card.id for card in self.estimates.models]

        def was_asked(attack: str) -> bool:
            rates = (self.rate(model, strand.scope, strand.measure, attack) for model in cards)
            return any(rate and rate.worst_case is not None for rate in rates)

        return [attack for attack in self.attacks() if was_asked(attack)]

    @property
    def has_twins(self) -> bool:
        """Whether over-refusal was measured at all."""
        return any(r.measure == "over_refusal" and r.estimate.n for r in self.estimates.rates)

    @property
    def is_judged(self) -> bool:
        """Whether any rate was decided by a judge that can err."""
        return any(r.estimate.n and not r.is_judge_free for r in self.estimates.rates)

    def count(self, model: str, field: str) -> int:
        """Trials of a model, of every technique and measure, that ended `n_unclear` or `n_error`."""
        cards = [t.name for t in self.techniques]
        rates = (
            r for r in self.estimates.rates if r.model == model and r.attack == ALL and r.technique in cards
        )
        return sum(getattr(rate, field) for rate in rates)

    # --- words ---

    def in_words(self, rate: Rate | None) -> str:
        """The rate in full, for a title and for a figure's text."""
        return words.rate_words(rate, self.estimates.confidence)

    def title(self, technique: str) -> str:
        """A technique's name as a heading."""
        return words.title(technique)

    def one_family(self) -> list[str]:
        """Names of rates that were corrected with the labels of only one family."""
        if not self.estimates.corrected_by:
            return []
        rates = [r for r in self.estimates.rates if not r.is_judge_free]
        several = {r.measure for r in rates if r.by_family}
        # A refused correction rests on no labels, and has no families either.
        corrected = {
            r.measure: None for r in rates if r.corrected is not None and r.corrected.value is not None
        }
        said = {"breach": "judged breaches", "over_refusal": "over-refusal"}
        return [said[measure] for measure in corrected if measure not in several]

    def by_family(self) -> list[Rate]:
        """The scopes' rates whose correction differs between families of labels, model by model."""
        return [
            r
            for r in self.estimates.rates
            if r.by_family and r.attack == ALL and r.technique in (JUDGED, ALL)
        ]

    def by_labels(self) -> list[Rate]:
        """The scopes' rates with human labels on this study's own answers, model by model."""
        return [
            r
            for r in self.estimates.rates
            if r.by_labels is not None and r.attack == ALL and r.technique in (JUDGE_FREE, JUDGED, ALL)
        ]

    def heat(self, rate: Rate | None) -> str:
        """The step of the colour scale, from h0 to h10."""
        value = rate.estimate.value if rate else None
        return "none" if value is None else f"h{round(10 * value)}"

    def worst_case(self, rate: Rate) -> str:
        """The rate if every unclear answer had held, and if every one had broken."""
        bounds = rate.worst_case
        if bounds is None or not rate.n_unclear or rate.counts_refusals:
            return ""
        low = words.percent(bounds.low).removesuffix(f"{words.NBSP}%")
        return f"{low} to {words.percent(bounds.high)}"

    # --- figures ---

    def bar(self, rate: Rate | None) -> Markup:
        """The rate's interval on a line from 0 to 100 %."""
        found = span(rate.estimate) if rate else None
        return charts.interval_bar(found, self.order.get(rate.model, 0) if rate else 0, self.in_words(rate))

    def share_bar(self, share: Estimate, model: str) -> Markup:
        """A share's interval on a line from 0 to 100 %."""
        return charts.interval_bar(span(share), self.order.get(model, 0), words.interval(share))

    def key(self, model: str) -> Markup:
        """The model's shape, shown before its name."""
        return charts.key(self.order.get(model, 0))

    def difference(self, row: Compared, reach: float) -> Markup:
        """The difference's interval, with the margin as a band."""
        text = f"{words.points(row.difference.value)}, interval {words.points_interval(row.difference)}"
        return charts.difference_bar(
            span(row.difference), row.pair.margin, reach, self.order.get(row.high, 0), text
        )

    def reach(self, pairs: Sequence[Compared]) -> float:
        """One scale for a table of differences."""
        return charts.reach_of([found for row in pairs if (found := span(row.difference))])

    def plane(self) -> Markup:
        """Over-refusal against breach, one point a model."""
        drawn = []
        for order, card in enumerate(self.estimates.models):
            breach, over = (self._spread(card.id, measure) for measure in ("breach", "over_refusal"))
            if breach and over:
                drawn.append(charts.Point(order, self.names[card.id], breach, over))
        rates = "; ".join(
            f"{p.name}: breach {p.breach.value:.0%}, over-refusal {p.over_refusal.value:.0%}" for p in drawn
        )
        return charts.plane(drawn, f"Breach rate against over-refusal rate. {rates}")

    def _spread(self, model: str, measure: str) -> charts.Span | None:
        scope = self.main_scope if measure == "breach" else ALL
        rate = self._rates.get((model, scope, ALL, measure))
        return span(rate.estimate) if rate else None

    def manner_bar(self, said: Manners) -> Markup:
        """Shares of refusal, compliance, incoherent and empty answers, and errors."""
        kinds = (*MANNERS, "error")
        parts = [charts.BarSegment(kind, getattr(said, kind)) for kind in kinds]
        return charts.stack(parts, ", ".join(f"{part.n} {part.kind}" for part in parts))

    # --- pairs ---

    def pairs(self, measure: Measure, scope: str | None = None, exploratory: bool = False) -> list[Compared]:
        """Comparisons of one measure, in one scope or in all, each with its verdict in words."""
        held = self.estimates.technique_pairs if exploratory else self.estimates.pairs
        wanted = (p for p in held if p.measure == measure and p.n and scope in (None, p.technique))
        return [self._compared(pair) for pair in wanted]

    def _compared(self, pair: ModelPair) -> Compared:
        found, table = pair.difference, pair.table
        is_b_higher = (found.value or 0.0) >= 0
        high, low = (pair.b, pair.a) if is_b_higher else (pair.a, pair.b)
        only = (table.only_b, table.only_a) if is_b_higher else (table.only_a, table.only_b)
        of_high, of_low = words.verdict_on(pair, high), words.verdict_on(pair, low)
        badge = {"worse": "worse", "not worse": "same"}.get(of_high, "unknown")
        said = words.capital(of_high)
        aside = words.withheld_on(pair, high) if badge == "unknown" else ""
        if not aside and (badge, of_low) == ("unknown", "not worse"):
            aside = f"but {self.names.get(low, '?')} is not worse"
        turned = found if is_b_higher else _negated(found)
        return Compared(pair, high, low, turned, *only, badge, said, aside)

    def recommendation_words(self) -> list[str]:
        """The recommendation by the user's costs, or how to get one."""
        return words.recommendation_words(self.recommendation, self.names)

    def technique_rows(self) -> list[TechniqueRow]:
        """Shrunk rates by technique, then the mean of the bank and the prediction for a new technique.

        Empty if nothing was estimated, as with a single technique.
        """
        found = self.estimates.technique_rates
        by_name = [{each.technique: each.estimate for each in of.techniques} for of in found]
        names = list(dict.fromkeys(name for each in by_name for name in each))
        rows = [TechniqueRow(words.title(name), tuple(each.get(name) for each in by_name)) for name in names]
        rows.append(TechniqueRow("Mean of these techniques", tuple(each.bank_mean for each in found)))
        new = tuple(each.new_technique for each in found)
        rows.append(TechniqueRow("A new technique (prediction)", new))
        is_known = any(cell is not None and cell.value is not None for row in rows for cell in row.cells)
        return rows if is_known else []

    def multiverse(self) -> list[_robustness.AnalysisTable]:
        """The tables of every two models under each analysis; the headline's two models first."""
        breach = [r for c in self.estimates.models if (r := self.rate(c.id, self.main_scope, "breach"))]
        rated = sorted((r.estimate.value, r.model) for r in breach if r.estimate.value is not None)
        ends = (rated[0][1], rated[-1][1]) if rated else ("", "")
        return _robustness.tables(self.estimates.multiverse, ends)

    # --- inheritance ---

    def edge_rows(
        self, measure: Measure, scope: str | None = None, exploratory: bool = False
    ) -> list[EdgeRow]:
        """The edges of one measure, in one scope or in all."""
        held = self.estimates.technique_edges if exploratory else self.estimates.edges
        wanted = (e for e in held if e.compared.measure == measure and not e.is_of_guard)
        return [_edge_row(edge) for edge in wanted if scope in (None, edge.compared.technique)]

    def retention_bar(self, edge: Inheritance) -> Markup:
        """The retention's interval on a line from 0 to 100 %."""
        order = self.order.get(edge.child, 0)
        return charts.interval_bar(span(edge.retention), order, words.retention_words(edge))

    def lineage(self) -> Markup:
        """The figure of the lineage, each edge with its verdict."""
        found, by_edge = self.estimates, words.edge_verdicts(self.estimates)
        in_it = {ident for key in by_edge for ident in key}
        nodes = [
            lineage_graph.Node(card.id, self.names[card.id], self.order[card.id], self._broke(card.id))
            for card in found.models
            if card.id in in_it
        ]
        edges = [
            lineage_graph.Arrow(*key, words.BADGES[verdict], _edge_label(found, key, verdict))
            for key, verdict in by_edge.items()
        ]
        lines = (f"{self.names[c]} from {self.names[p]}: {verdict}" for (p, c), verdict in by_edge.items())
        return lineage_graph.graph(nodes, edges, f"Lineage, parents above children. {'; '.join(lines)}")

    def _broke(self, model: str) -> str:
        rate = self.rate(model, self.main_scope, "breach")
        value = rate.estimate.value if rate else None
        did = words.failed(self.estimates, "breach", self.main_scope)
        return "" if value is None else f"{did} {words.percent(value)}"

    # --- rows ---

    def ranges(self, model: str, technique: str, attack: str) -> list[tuple[int, int]]:
        """First and last index of each run of rows behind a cell, in the plan's order.

        Breach probes bring their benign twins, which are adjacent rows with verdicts of another kind.
        """
        plan = self.plan
        own = {p.id for p in plan.probes if is_part(p, technique)}
        of = [i for i, p in enumerate(plan.probes) if p.id in own or (p.kind == "benign" and p.twin in own)]
        models = [i for i, card in enumerate(plan.models) if card.id == model]
        attacks = [i for i, name in enumerate(plan.attacks) if attack in (ALL, name)]
        per_attack = len(plan.probes) * plan.samples
        starts = (
            (m * len(plan.attacks) + a) * per_attack + p * plan.samples
            for m in models
            for a in attacks
            for p in of
        )
        return _runs(starts, plan.samples)

    def rows(self, model: str, technique: str, attack: str = ALL) -> str:
        """The rows behind a cell, as ranges of `index`."""
        found = self.ranges(model, technique, attack)
        if len(found) > _MAX_RANGES:
            return f"{len(found)} runs: filter by model and probe"
        return ", ".join(f"{first}–{last}" for first, last in found)

    def example(self) -> str:
        """A jq condition that picks the rows of the first cell out of verdicts.jsonl."""
        if not self.estimates.models or not self.techniques:
            return ""
        found = self.ranges(self.estimates.models[0].id, self.techniques[0].name, ALL)[:_MAX_RANGES]
        return " or ".join(f"(.index >= {first} and .index <= {last})" for first, last in found)

    # --- conversations ---

    def samples_of(self, technique: str) -> list[Sample]:
        """Conversations of a technique: breaches first, the worst of them at the top; by model within."""
        kinds = list(WANTED)
        mine = [s for s in self.samples if s.technique == technique]
        return sorted(
            mine, key=lambda s: (kinds.index(s.kind), -s.severity, self.order.get(s.model, 0), s.row)
        )


def span(estimate: Estimate) -> charts.Span | None:
    """An estimate as it is drawn; None without a value or bounds."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return None
    return charts.Span(estimate.value, estimate.low, estimate.high)


def _negated(estimate: Estimate) -> Estimate:
    value, low, high = (None if x is None else -x for x in (estimate.value, estimate.high, estimate.low))
    return msgspec.structs.replace(estimate, value=value, low=low, high=high)


def _runs(starts: Iterator[int], width: int) -> list[tuple[int, int]]:
    """Neighbouring blocks of `width` indices joined: (first, last) of each run."""
    runs: list[tuple[int, int]] = []
    for start in starts:
        if runs and runs[-1][1] == start - 1:
            runs[-1] = (runs[-1][0], start + width - 1)
        else:
            runs.append((start, start + width - 1))
    return runs


def _edge_row(edge: Inheritance) -> EdgeRow:
    pair, badge, verdict = edge.compared, words.BADGES[edge.verdict], words.capital(words.verdict_words(edge))
    turned = Compared(
        pair, edge.child, edge.parent, pair.difference, edge.lost, edge.gained, badge, verdict, ""
    )
    return EdgeRow(edge, words.recipe_words(edge), badge, verdict, turned)


def _edge_label(found: Estimates, key: tuple[str, str], verdict: str) -> tuple[str, ...]:
    """The recipe, the verdict, and the losses in the kind of breach that gave the verdict."""
    mine = [e for e in found.edges if (e.parent, e.child) == key and e.compared.measure == "breach"]
    made = ", ".join(each for each in (mine[0].descent or mine[0].recipe, mine[0].role) if each)
    edge = next((e for e in mine if e.compared.n and e.verdict == verdict), None)
    if edge is None:
        return (label(made, 24), _SHORT[verdict])
    judged = ", judged" if edge.compared.technique == JUDGED and len(mine) > 1 else ""
    return (label(made, 24), _SHORT[verdict] + judged, f"lost {edge.lost} of {edge.kept + edge.lost}")
