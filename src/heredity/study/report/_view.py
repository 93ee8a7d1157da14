"""A study for HTML and Markdown: estimates by cell, figures and names of rows.

Promises: shows only what estimates.json, plan.json and the rows hold; computes no statistic of its own.
Leaves to others: the words (wording.py), the figures (figures.py), the page (_template.html.jinja).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from markupsafe import Markup

from heredity.core.records import Estimate
from heredity.core.sanitize import label, plural
from heredity.study import figures
from heredity.study import wording as words
from heredity.study.advice import MIN_N, Advice, Recommendation, advise
from heredity.study.estimates import (
    ALL,
    JUDGE_FREE,
    JUDGED,
    SCOPES,
    Estimates,
    Inheritance,
    Measure,
    ModelPair,
    Rate,
    TechniqueCard,
    is_planned,
    negated,
    unsupported,
)
from heredity.study.findings import unasked
from heredity.study.findings.edge_verdicts import QUESTIONS, EdgeVerdict, edge_verdicts
from heredity.study.forecast import forecast_lines
from heredity.study.headline import headline, unprompted_words
from heredity.study.plan import Plan
from heredity.study.report import _rows
from heredity.study.report._rows import Sample


# --- pairs -------------------------------------------------------------------------------------------
# Comparisons for the HTML template: pairs of models, edges of the lineage, and other analyses. Promises:
# shows only what estimates.json holds; a difference is turned so that it is never negative.
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


def _edge_row(edge: Inheritance) -> EdgeRow:
    pair, badge, verdict = edge.compared, words.BADGES[edge.verdict], words.capital(edge.verdict)
    turned = Compared(
        pair, edge.child, edge.parent, pair.difference, edge.lost, edge.gained, badge, verdict, ""
    )
    return EdgeRow(edge, words.recipe_words(edge), badge, verdict, turned)


def _edge_label(estimates: Estimates, verdict: EdgeVerdict) -> tuple[str, ...]:
    """The recipe, the verdict, and the number that it is about."""
    key = verdict.parent, verdict.child
    mine = next((e for e in estimates.edges if (e.parent, e.child) == key), None)
    made = ", ".join(each for each in ((mine and mine.descent) or verdict.recipe, verdict.role) if each)
    lines = label(made, 24), verdict.word
    if (main := verdict.main) is None:
        return lines
    return (*lines, f"{QUESTIONS[main.question]} {words.points(main.estimate.value)}")


_PLANE_FROM = 4  # models; with fewer, the heat map is easier to read


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


class View:
    """The queries of the template. Every method takes and returns plain values."""

    def __init__(
        self,
        estimates: Estimates,
        plan: Plan,
        samples: Sequence[Sample],
        with_text: bool,
        recommendation: Recommendation | None = None,
        is_full: bool = False,
    ) -> None:
        self.estimates = estimates
        self.names = words.names(estimates.models)
        self.order = {card.id: i for i, card in enumerate(estimates.models)}
        self._rates: dict[tuple[str, str, str, str], Rate] = {
            (r.model, r.technique, r.attack, r.measure): r for r in estimates.rates
        }
        self.recommendation, self.is_full = recommendation, is_full
        self.plan, self.samples, self.with_text = plan, samples, with_text
        self.headline = headline(estimates)
        self._unsupported = unsupported(estimates)
        scopes = (scope for of in SCOPES.values() for scope in of)
        self._numbers = {
            name: i for i, name in enumerate([*scopes, *(card.name for card in self.estimates.techniques)])
        }
        cards = sorted(estimates.techniques, key=lambda card: not card.is_judge_free)
        self.techniques = tuple(cards)
        self.talks = _rows.by_technique(samples, self.order)
        self.quotes = _rows.by_order(samples, plan)

    # --- the first screen ---

    @cached_property
    def advice(self) -> Advice:
        """The advice in one sentence."""
        return advise(self.estimates, self.plan)

    @cached_property
    def quote(self) -> _rows.Quote | None:
        """One breach in a few lines."""
        return _rows.quote(self.samples, self.advice, self.plan)

    @property
    def unprompted(self) -> dict[str, list[str]]:
        """By model: what it did that no probe asked for, in words."""
        lines: dict[str, list[str]] = {}
        for model, did in unprompted_words(self.estimates):
            lines.setdefault(model, []).append(did)
        for model, share in unasked.rates_in_words(self.estimates).items():
            if model in lines:
                lines[model].append(f"together in {share}")
        return lines

    def base_words(self, rate: Rate) -> str:
        """How often the check of a technique is broken on twins, unasked; "" if it never was."""
        probes = (p for p in self.plan.probes if (p.technique, p.kind) == (rate.technique, "breach"))
        asked = (rate.model, "benign", *{probe.check.kind for probe in probes})
        row = self._unasked.get(asked) if rate.measure == "breach" else None
        if row is None:
            return ""
        return f"unasked on twins {words.percent(row.estimate.value)} ({row.n_broke} of {row.estimate.n})"

    @cached_property
    def _unasked(self) -> dict[tuple[str, ...], unasked.UnaskedHarm]:
        return {(row.model, row.kind, row.check): row for row in unasked.rates(self.estimates)}

    def forecast_lines(self) -> list[str]:
        """The forecast of the plan, as it was printed before the first request."""
        forecast = self.estimates.forecast
        return [] if forecast is None else forecast_lines(self.plan, forecast)

    # --- cells ---

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

    def ledger(self, measure: Measure) -> list[str]:
        """Techniques of one measure band by band, each band's sum at its end."""
        return [name for band in self.bands(measure) for name in band.names]

    def number(self, technique: str) -> int:
        """A technique's number for anchors. Names, which anyone may choose, never enter a link."""
        return self._numbers[technique]

    @property
    def scopes(self) -> tuple[str, ...]:
        """The scopes of breaches that were asked: without a judge, by a judge, or both."""
        return self.estimates.breach_scopes

    def strands(self) -> list[Strand]:
        """The rows of the table by attack: breaches without a judge and by one, then over-refusal."""
        by_scope = {JUDGE_FREE: "Breach, judge-free", JUDGED: "Breach, judged"}
        strands = [Strand(by_scope[scope], "breach", scope) for scope in self.scopes]
        return strands + ([Strand("Over-refusal", "over_refusal", ALL)] if self.has_twins else [])

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
        """True if benign twins were asked."""
        return any(r.measure == "over_refusal" and r.estimate.n for r in self.estimates.rates)

    @property
    def is_judged(self) -> bool:
        """Whether any rate was decided by a judge that can err."""
        return any(r.estimate.n and not r.is_judge_free for r in self.estimates.rates)

    # --- words ---

    def in_words(self, rate: Rate | None) -> str:
        """The rate in full, for a title and for a figure's text."""
        return words.rate_words(rate, self.estimates.confidence)

    @property
    def talk_order(self) -> list[TechniqueCard]:
        """The techniques with conversations: first those of the clearest and gravest breaches."""
        places = list(self.quotes)
        cards = [card for card in self.techniques if card.name in self.talks]
        return sorted(cards, key=lambda c: places.index(c.name) if c.name in places else len(places))

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
        kinds = {"breach": "judged breaches", "over_refusal": "over-refusal"}
        return [kinds[measure] for measure in corrected if measure not in several]

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

    def judge_lines(self) -> list[str]:
        """By task of the judges: the accuracy on the sets of labels, with the sizes of the sets."""
        tasks: dict[str, list[Estimate]] = {}
        for judge in self.estimates.judges:
            if judge.accuracy.value is not None:
                tasks.setdefault(label(judge.task, 60), []).append(judge.accuracy)
        return [f"{task}: {_accuracies(accuracies)}" for task, accuracies in tasks.items()]

    def heat(self, rate: Rate | None) -> str:
        """The step of the colour scale, from h0 to h10; "faint" if n is too small for a colour."""
        value = rate.estimate.value if rate else None
        if rate is None or value is None:
            return "none"
        return "faint" if rate.estimate.n < MIN_N else f"h{round(10 * value)}"

    def zeros(self, band: Band, measure: Measure, attack: str = ALL) -> list[TechniqueCard]:
        """The techniques of a band in which no model broke or refused a twin; none if it is one technique."""
        zeros = [card for card in band.techniques if self._is_zero(card.name, measure, attack)]
        return zeros if len(zeros) > 1 else []

    def _is_zero(self, technique: str, measure: Measure, attack: str) -> bool:
        rates = (self.rate(card.id, technique, measure, attack) for card in self.estimates.models)
        return all(rate.estimate.n and not rate.n_counted for rate in rates if rate)

    def sum_of(self, model: str, cards: Sequence[TechniqueCard], measure: Measure, attack: str = ALL) -> str:
        """The trials of several techniques without a breach, and the highest upper bound of any of them."""
        rates = [r for card in cards if (r := self.rate(model, card.name, measure, attack))]
        highs = [rate.estimate.high for rate in rates if rate.estimate.high is not None]
        n = sum(rate.estimate.n for rate in rates)
        return f"0 of {n:,}" + (f", each at most {words.percent(max(highs))}" if highs else "")

    def n_worse(self, rate: Rate) -> int:
        """How many models this one is worse than, in the cell's technique or scope."""
        return self._worse.get((rate.model, rate.technique, rate.measure), 0) if rate.attack == ALL else 0

    @property
    def has_worse(self) -> bool:
        """Whether any cell of the heat map may be marked as worse."""
        return any(measure == "breach" for _, _, measure in self._worse)

    @cached_property
    def _worse(self) -> dict[tuple[str, str, Measure], int]:
        counts: dict[tuple[str, str, Measure], int] = {}
        for pair in self.estimates.pairs + self.estimates.technique_pairs:
            for model in (pair.a, pair.b):
                if pair.n and pair.verdict_on(model) == "worse":
                    key = (model, pair.technique, pair.measure)
                    counts[key] = counts.get(key, 0) + 1
        return counts

    def link(self, rate: Rate) -> str:
        """The anchor of a cell's conversations; that of its counts if none was drawn."""
        number, place = self.number(rate.technique), self.order.get(rate.model, 0)
        mine = [t for g in self.talks.get(rate.technique, ()) if g.model == rate.model for t in g.talks]
        if rate.measure == "breach" and any(
            talk.sample.kind in ("broke", "held", "unclear") for talk in mine
        ):
            return f"#talk-{number}-{place}"
        refused = [talk.sample.row for talk in mine if talk.sample.kind == "refused"]
        if rate.measure == "over_refusal" and refused:
            return f"#trial-{refused[0]}"
        return f"#row-{rate.measure}-{number}-{place}"

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
        interval = figures.span_of(rate.estimate) if rate else None
        return figures.interval_bar(
            interval, self.order.get(rate.model, 0) if rate else 0, self.in_words(rate)
        )

    def cell_bar(self, rate: Rate) -> Markup:
        """The rate's interval on a thin line inside its cell."""
        interval = figures.span_of(rate.estimate)
        return Markup("") if interval is None else figures.cell_bar(interval)

    def key(self, model: str) -> Markup:
        """The model's shape, shown before its name."""
        return figures.key(self.order.get(model, 0))

    @property
    def has_plane(self) -> bool:
        """Whether there are models enough for a figure of over-refusal against breach."""
        return len(self.estimates.models) >= _PLANE_FROM

    def plane(self) -> Markup:
        """Over-refusal against breach, one point a model."""
        drawn = []
        for order, card in enumerate(self.estimates.models):
            breach, over = (self._spread(card.id, measure) for measure in ("breach", "over_refusal"))
            if breach and over:
                drawn.append(figures.Point(order, self.names[card.id], breach, over))
        rates = "; ".join(
            f"{p.name}: breach {p.breach.value:.0%}, over-refusal {p.over_refusal.value:.0%}" for p in drawn
        )
        return figures.plane(drawn, f"Breach rate against over-refusal rate. {rates}")

    def _spread(self, model: str, measure: str) -> figures.Span | None:
        scope = self.main_scope if measure == "breach" else ALL
        rate = self._rates.get((model, scope, ALL, measure))
        return figures.span_of(rate.estimate) if rate else None

    # --- rows ---

    def example(self) -> str:
        """A jq condition that picks the rows of the first cell out of verdicts.jsonl."""
        if not self.estimates.models or not self.techniques:
            return ""
        return _rows.jq_condition(self.plan, self.estimates.models[0].id, self.techniques[0].name)

    @property
    def main_scope(self) -> str:
        """The scope that the headline rests on."""
        return self.estimates.main_scope()

    def rate(self, model: str, technique: str, measure: Measure, attack: str = ALL) -> Rate | None:
        """The rate of one cell; None if it was not asked."""
        return self._rates.get((model, technique, attack, measure))

    # --- pairs ---

    def pairs(self, measure: Measure, scope: str | None = None, exploratory: bool = False) -> list[Compared]:
        """Comparisons of one measure, in one scope or in all, each with its verdict in words."""
        held = self.estimates.technique_pairs if exploratory else self.estimates.pairs
        wanted = (p for p in held if p.measure == measure and p.n and scope in (None, p.technique))
        return [self._compared(pair) for pair in wanted]

    def _compared(self, pair: ModelPair) -> Compared:
        difference, table = pair.difference, pair.table
        is_b_higher = (difference.value or 0.0) >= 0
        high, low = (pair.b, pair.a) if is_b_higher else (pair.a, pair.b)
        only = (table.only_b, table.only_a) if is_b_higher else (table.only_a, table.only_b)
        of_high, of_low = pair.verdict_on(high), pair.verdict_on(low)
        badge = {"worse": "worse", "not worse": "same"}.get(of_high, "unknown")
        verdict = words.capital(of_high)
        aside = words.withheld_on(pair, high) if badge == "unknown" else ""
        if not aside and (badge, of_low) == ("unknown", "not worse"):
            aside = f"but {self.names.get(low, '?')} is not worse"
        turned = difference if is_b_higher else negated(difference)
        return Compared(pair, high, low, turned, *only, badge, verdict, aside)

    def difference(self, row: Compared, reach: float) -> Markup:
        """The difference's interval, with the margin as a band."""
        text = f"{words.points(row.difference.value)}, interval {words.points_interval(row.difference)}"
        return figures.difference_bar(
            figures.span_of(row.difference), row.pair.margin, reach, self.order.get(row.high, 0), text
        )

    def reach(self, pairs: Sequence[Compared]) -> float:
        """One scale for a table of differences."""
        return figures.reach_of([interval for row in pairs if (interval := figures.span_of(row.difference))])

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
        return figures.interval_bar(figures.span_of(edge.retention), order, words.retention_words(edge))

    def lineage(self) -> Markup:
        """The figure of the lineage, each edge with its verdict."""
        estimates, by_edge = self.estimates, edge_verdicts(self.estimates)
        in_it = {ident for key in by_edge for ident in key}
        nodes = [self._node(card.id) for card in estimates.models if card.id in in_it]
        edges = [
            figures.DrawnEdge(
                *key,
                words.BADGES[row.kind],
                _edge_label(estimates, row),
                self._retained(key),
            )
            for key, row in by_edge.items()
        ]
        lines = (f"{self.names[c]} from {self.names[p]}: {row.word}" for (p, c), row in by_edge.items())
        return figures.graph(nodes, edges, f"Lineage, parents left of children. {'; '.join(lines)}")

    def _retained(self, key: tuple[str, str]) -> float | None:
        """The share that the child kept of what the parent held, in the main scope."""
        mine = (
            edge.retention.value
            for edge in self.estimates.edges
            if (edge.parent, edge.child) == key and edge.compared.technique == self.main_scope
        )
        return next(mine, None)

    def _node(self, model: str) -> figures.Node:
        rate = self.rate(model, self.main_scope, "breach")
        value = rate.estimate.value if rate else None
        did = words.failed(self.estimates, "breach", self.main_scope)
        note = "" if value is None else f"{did} {words.percent(value)}"
        return figures.Node(model, self.names[model], self.order[model], note, value)


def _accuracies(estimates: Sequence[Estimate]) -> str:
    """`78 to 95 % right on 4 sets of 60 to 450 labels`."""
    shares, sizes = sorted(each.value or 0.0 for each in estimates), sorted(each.n for each in estimates)
    if len(estimates) == 1:
        return f"{words.percent(shares[0])} right on {plural(sizes[0], 'label')}"
    low = words.percent(shares[0]).removesuffix(f"{words.NBSP}%")
    size = f"{sizes[0]:,} to {sizes[-1]:,}" if sizes[0] != sizes[-1] else f"{sizes[0]:,}"
    return f"{low} to {words.percent(shares[-1])} right, on {len(estimates)} sets of {size} labels"
