"""A study as one HTML file that works offline, prints, and can be shared.

Promises: no request and no script (the content policy forbids both), and only its own style. Text of models
is only ever text between tags. The same study gives the same page. The file is written atomically.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache, cached_property
from itertools import starmap
from pathlib import Path

import jinja2
from markupsafe import Markup

from heredity.core import __version__, files
from heredity.core.records import Estimate
from heredity.core.sanitize import label, plural, shown
from heredity.core.sections import Curves, ShareDifference, StackedCounts, TextTable, Tree
from heredity.study import advice, aggregate, figures, wording
from heredity.study.advice import MIN_N, Advice, advise
from heredity.study.estimates import (
    ALL,
    JUDGE_FREE,
    JUDGED,
    SCOPES,
    Estimates,
    Measure,
    Rate,
    TechniqueCard,
    is_planned,
)
from heredity.study.figures import CurvePoint, CurveSeries, curve, span_of
from heredity.study.findings.protocols import RecordedStudy
from heredity.study.headline import headline
from heredity.study.plan import Plan
from heredity.study.report import _rows
from heredity.study.report._rows import Sample, draw, pieces, ranges_words
from heredity.study.sections import Band, RateCells, bands, ledger, public_sets, study_sections
from heredity.study.turns import page_environment, role_word, turns, with_tokens

_FOLDER = Path(__file__).parent


_PLANE_FROM = 4  # models; with fewer, the heat map is easier to read


class View:
    """The queries of the template. Every method takes and returns plain values."""

    def __init__(
        self,
        estimates: Estimates,
        plan: Plan,
        samples: Sequence[Sample],
        with_text: bool,
        is_full: bool = False,
    ) -> None:
        self.estimates = estimates = estimates.own
        self.names = wording.names(estimates.models)
        self.order = {card.id: i for i, card in enumerate(estimates.models)}
        samples = [sample for sample in samples if sample.model in self.order]
        self.is_full, self._cells = is_full, RateCells(RecordedStudy(plan, estimates))
        self.rate, self.note = self._cells.rate, self._cells.note
        self.plan, self.samples, self.with_text = plan, samples, with_text
        self.headline = headline(estimates)
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

    # --- cells ---

    def attacks_on(self, technique: str, measure: Measure) -> int:
        """The number of attacks under which the plan asks the probes of a technique."""
        return sum(is_planned(attack, technique, measure) for attack in self.estimates.attacks)

    def number(self, technique: str) -> int:
        """A technique's number for anchors. Names, which anyone may choose, never enter a link."""
        return self._numbers[technique]

    @property
    def scopes(self) -> tuple[str, ...]:
        """The scopes of breaches that were asked: without a judge, by a judge, or both."""
        return self.estimates.breach_scopes

    def attacks(self) -> tuple[str, ...]:
        """The attacks that have a map of their own: all of them if there are several, else none."""
        return self.estimates.attacks if len(self.estimates.attacks) > 1 else ()

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
        return wording.rate_words(rate, self.estimates.confidence)

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
        return f"0 of {n:,}" + (f", each at most {wording.percent(max(highs))}" if highs else "")

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
        low = wording.percent(bounds.low).removesuffix(f"{wording.NBSP}%")
        return f"{low} to {wording.percent(bounds.high)}"

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
            breach, over = self._spread(card.id, "breach"), self._spread(card.id, "over_refusal")
            if breach and over:
                drawn.append(figures.Point(order, self.names[card.id], breach, over))
        rates = "; ".join(
            f"{p.name}: breach {p.breach.value:.0%}, over-refusal {p.over_refusal.value:.0%}" for p in drawn
        )
        return figures.plane(drawn, f"Breach rate against over-refusal rate. {rates}")

    def _spread(self, model: str, measure: Measure) -> figures.Span | None:
        scope = self.main_scope if measure == "breach" else ALL
        rate = self.rate(model, scope, measure)
        return figures.span_of(rate.estimate) if rate else None

    # --- sections ---

    def figure(self, table: TextTable) -> Markup:
        """The figure of a section's table."""
        if isinstance(table.figure, Tree):
            return self._tree(table.figure)
        lines, by_model = [], table.figure.by_model if isinstance(table.figure, Curves) else {}
        for model, order in self.order.items():
            shares = {k: share for k, each in by_model.get(model, {}).items() if (share := span_of(each))}
            if shares:
                lines.append(CurveSeries(order, tuple(starmap(CurvePoint, shares.items()))))
        return curve(lines, f"{table.title}; the table next to it has the numbers")

    def _tree(self, tree: Tree) -> Markup:
        nodes = [
            figures.Node(model, self.names[model], self.order[model], note, share)
            for model, (note, share) in tree.by_model.items()
        ]
        edges = [figures.DrawnEdge(*edge) for edge in tree.edges]
        lines = (f"{self.names[e.child]} from {self.names[e.parent]}: {e.lines[1]}" for e in tree.edges)
        return figures.graph(nodes, edges, f"Lineage, parents left of children. {'; '.join(lines)}")

    def reach(self, table: TextTable) -> float:
        """One scale for the differences of a table; 0 without any."""
        cells = [cell for row in table.rows for cell in row if isinstance(cell, ShareDifference)]
        spans = [span for cell in cells if (span := span_of(cell.estimate))]
        return figures.reach_of(spans) if cells else 0.0

    def difference(self, cell: ShareDifference, reach: float) -> Markup:
        """The difference's interval, with the margin as a band."""
        order, text = self.order[cell.model], wording.difference_words(cell.estimate)
        return figures.difference_bar(span_of(cell.estimate), cell.margin, reach, order, text)

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


def _accuracies(estimates: Sequence[Estimate]) -> str:
    """`78 to 95 % right on 4 sets of 60 to 450 labels`."""
    shares, sizes = sorted(each.value or 0.0 for each in estimates), sorted(each.n for each in estimates)
    if len(estimates) == 1:
        return f"{wording.percent(shares[0])} right on {plural(sizes[0], 'label')}"
    low = wording.percent(shares[0]).removesuffix(f"{wording.NBSP}%")
    size = f"{sizes[0]:,} to {sizes[-1]:,}" if sizes[0] != sizes[-1] else f"{sizes[0]:,}"
    return f"{low} to {wording.percent(shares[-1])} right, on {len(estimates)} sets of {size} labels"


def _share_bar(estimate: Estimate) -> Markup:
    span = span_of(estimate)
    return Markup("") if span is None else figures.cell_bar(span)


def _counts_bar(counts: StackedCounts) -> Markup:
    """The counts as parts of one bar."""
    parts = [figures.BarSegment(*each) for each in counts.by_kind.items()]
    return figures.stack(parts, wording.cell_words(counts))


_FUNCTIONS = {  # words, counts and figures that the template uses by name
    "attack_name": wording.attack_name,
    "advice_rule": advice.RULE,
    "against_parents": advice.is_of_edges,
    "asked_attacks": wording.asked_attacks,
    "axis": figures.axis,
    "bands": bands,
    "ledger": ledger,
    "cell_words": wording.cell_words,
    "difference_words": wording.difference_words,
    "counted": wording.counted,
    "failed": wording.failed,
    "interval": wording.interval,
    "counts_bar": _counts_bar,
    "min_n": advice.MIN_N,
    "percent": wording.percent,
    "plural": plural,
    "reach_labels": wording.reach_labels,
    "share_bar": _share_bar,
    "severity_words": wording.severity_words,
    "size_words": wording.size_words,
    "role_word": role_word,
    "unsigned": wording.unsigned,
    "turns": turns,
    "version": __version__,
    "with_tokens": with_tokens,
    "account_lines": wording.account_lines,
    "badges": wording.BADGES,
    "marked": pieces,
    "ranges_words": ranges_words,
    "remedy": advice.remedy,
    "standings": advice.standings,
    "technique_title": wording.title,
    "threat_links": advice.threat_links,
}


def write(folder: Path, out: Path, with_text: bool = True, is_full: bool = False) -> Path:
    """Write the report of the study in `folder` to `out`, and return `out`.

    Without text: no prompt, probe or answer is in the page, only counts, ids and names. In a full page
    nothing is folded, so that all of it prints.
    Raises UsageError if the folder has no estimates yet, NotComparable if its parts do not belong together.
    """
    files.write_atomic(out, render(folder, with_text, is_full).encode())
    return out


def render(folder: Path, with_text: bool = True, is_full: bool = False) -> str:
    """The page itself."""
    study = aggregate.read_study(folder)
    names = [card.name for card in study.estimates.techniques]
    samples = draw(folder, study.plan, study.estimates.study, names, with_text)
    view = View(study.estimates, study.plan, samples, with_text, is_full)
    style = (_FOLDER / "_style.css").read_text(encoding="utf-8")
    # The policy names the sheet by its hash, so it must be exactly the text between the tags.
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return _template().render(
        view=view,
        public=list(public_sets(study.estimates)),
        sections=[each for each in study_sections(study, folder) if each.name != "public"],
        style=Markup(style),
        style_hash=digest,
    )


@cache
def _template() -> jinja2.Template:
    environment = page_environment(_FOLDER)
    environment.filters |= {"label": label, "shown": shown}
    environment.globals |= _FUNCTIONS
    return environment.get_template("_template.html.jinja")
