"""The sections of a study: the numbers of its estimates, those of its findings, and what was declared.

Promises: every format renders these sections and knows no statistic. A rate has its interval and n, and a
comparison its verdict, its difference with interval, its p-value and its counts.
Leaves to others: the numbers (estimates.py), words (wording.py), and the looks (study/report/, view/, cli/).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from heredity.core.sanitize import label, plural
from heredity.core.sections import (
    Badge,
    Cell,
    CountedShare,
    HeatMap,
    ModelName,
    Section,
    ShareDifference,
    TextTable,
    Tree,
    TreeEdge,
    TreeNote,
)
from heredity.lineage.types import CONTROLS
from heredity.redteam.probes.public import FILES
from heredity.study import importers
from heredity.study.advice import REQUESTS, amount, cost_words, recommendation, recommendation_words
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
    unsupported,
)
from heredity.study.findings import unasked
from heredity.study.findings.edge_verdicts import QUESTIONS, edge_verdicts
from heredity.study.findings.protocols import RecordedStudy, sections
from heredity.study.forecast import forecast_lines
from heredity.study.importers import agentdojo
from heredity.study.plan import ForecastRow
from heredity.study.wording import (
    BADGES,
    NBSP,
    NONE,
    asked_attacks,
    attack_name,
    counted,
    declared_lines,
    detectable_words,
    difference_words,
    failed,
    find,
    interval,
    names,
    p_words,
    percent,
    points,
    recipe_words,
    retention_words,
    scope_name,
    scope_or_title,
    title,
    uncorrected_words,
    unsigned,
    withheld_on,
)

_INHERITED = (
    "Retention is the share of the trials that the parent held, or of the twins that it answered, which the "
    "child held too: kept / (kept + lost). Gained: held by the child only. Never: held by neither. The "
    "difference is the child's rate minus the parent's, and p is corrected over the edges only. In the "
    "figure a box is filled by the breach rate, and a bar is the retention."
)
_PAIRED = (
    "Paired: both models on the same probes, in {where}. A verdict is worse, not worse (within a margin of "
    "{margin}, the shaded band) or not enough evidence. The last column has the smallest difference that "
    "this number of trials would have shown. Rates are as judged, not corrected: errors bring the two closer "
    "together, and may differ between models."
)
_EXPLORATORY = "One technique at a time (exploratory: fewer trials each, and corrected among themselves)"
_TWINS = (
    "Benign twins of the probes, asked in the same run: how often each model refused what it should have "
    "answered. A model that refuses everything has no breach, and no use."
)
_DECISION = "Which model to take"
_DRAWS = (
    "Intervals and probabilities are from draws of whole behaviours, the same for every model. They do not "
    "cover how well these probes stand for your attacks."
)
_EDGE = "of\nchild\nparent\nby\nverdict\nretention\nthe same trials\ndifference\np, Holm\nwould have shown"
_PAIR = "of\nhigher\nlower\nverdict\ndifference\nthe same trials\np\np, Holm\nwould have shown"


def study_sections(study: RecordedStudy, folder: Path | None = None) -> list[Section]:
    """Every section of a study, in the order of a page. folder: with what estimates.json does not have."""
    study = study._replace(estimates=study.estimates.own)
    estimates = study.estimates
    made = [
        *public_sets(estimates),
        *_rates(study),
        *_inherited(estimates),
        *_compared(estimates),
        *sections(study),
    ]
    if folder is not None:
        if estimates.is_recorded and (tables := importers.judge_tables(folder, estimates)):
            made.append(Section("beside", "Other judges on the same answers", importers.CLAIM, tuple(tables)))
        if estimates.is_recorded and (tables := agentdojo.tables(folder)):
            made.append(Section("agents", tables[0].title, agentdojo.CLAIM, tuple(tables)))
        made.append(decision(folder, names(estimates.models)))
    return [*made, *_declared(study)]


def _tables(title: str, head: str, rows: list[list[Cell]], by_technique: list[list[Cell]]) -> list[TextTable]:
    """The rows, and those of one technique each as a detail."""
    parts, columns = ((rows, ""), (by_technique, _EXPLORATORY)), head.splitlines()
    return [TextTable(title, columns, part, summary) for part, summary in parts if part]


def _of(estimates: Estimates, pair: ModelPair) -> str:
    return scope_or_title(estimates, pair.technique) if pair.measure == "breach" else "over-refusal"


def _counts(**by_kind: int) -> str:
    """Four counts on two lines."""
    first, second, third, fourth = (f"{kind}{NBSP}{n}" for kind, n in by_kind.items())
    return f"{first}, {second}\n{third}, {fourth}"


def public_sets(estimates: Estimates) -> Iterator[Section]:
    """Every model on each public set by attack, and its refusals of benign requests; nothing without sets."""
    called, sets = names(estimates.models), list(dict.fromkeys(file.technique for file in estimates.public))
    asked: list[tuple[Measure, str]] = [("breach", attack) for attack in estimates.attacks]
    rows: list[list[Cell]] = []
    for card in estimates.models:
        for measure, attack in (*asked, ("over_refusal", ALL)) if sets else ():
            rates = [find(estimates, card.id, each, attack, measure) for each in sets]
            what = attack_name(attack, estimates.attacks) if measure == "breach" else "benign, refused"
            cells = (CountedShare(r.estimate, r.n_counted) if r and r.estimate.n else NONE for r in rates)
            if any(rate and rate.estimate.n for rate in rates):
                rows.append([ModelName(card.id, called[card.id]), what, *cells])
    if rows:
        heading, head = "The public sets, as heredity's judge decides", ["model", "asked", *map(title, sets)]
        there = {file.name for file in estimates.public if file.n}
        papers = "; ".join(f"{title(f.name)}: arXiv {f.paper}, {f.licence}" for f in FILES if f.name in there)
        yield Section("public", heading, papers, (TextTable(heading, head, rows),), is_main=True)


# --- rates --------------------------------------------------------------------------------------------


class Band(NamedTuple):
    """Techniques that are decided in the same way: by a check, or by a judge that errs."""

    scope: str  # all of them together
    title: str
    techniques: tuple[TechniqueCard, ...]


def bands(estimates: Estimates, measure: Measure, attack: str = ALL) -> list[Band]:
    """Techniques with this measure, judge-free ones first. Twins are always read by a judge: one band.

    With an attack, only the techniques that it is for.
    """
    cards = sorted(estimates.techniques, key=lambda card: not card.is_judge_free)
    if measure == "over_refusal":
        parts = [(ALL, "Benign twins: a judge decides", [t for t in cards if t.n_twins])]
    else:
        asked = [t for t in cards if t.n_probes and is_planned(attack, t.name, measure)]
        parts = [
            (JUDGE_FREE, "Decided by checks", [t for t in asked if t.is_judge_free]),
            (JUDGED, "Decided by a judge", [t for t in asked if not t.is_judge_free]),
        ]
    return [Band(scope, words, tuple(of)) for scope, words, of in parts if of]


def ledger(estimates: Estimates, measure: Measure) -> list[str]:
    """Techniques of one measure band by band, each band's sum at its end."""
    parts = bands(estimates, measure)
    return [name for band in parts for name in (*(t.name for t in band.techniques), band.scope)]


class RateCells:
    """The cells of tables of rates, with what belongs to each rate in words."""

    def __init__(self, study: RecordedStudy) -> None:
        self._plan, self._gaps = study.plan, unsupported(study.estimates)
        self._rates = {(r.model, r.technique, r.attack, r.measure): r for r in study.estimates.rates}
        self._twins: dict[tuple[str, ...], unasked.UnaskedHarm] = {
            (row.model, row.check): row for row in unasked.rates(study.estimates) if row.kind == "benign"
        }

    def rate(self, model: str, technique: str, measure: Measure, attack: str = ALL) -> Rate | None:
        """The rate of one cell; None if it was not asked."""
        return self._rates.get((model, technique, attack, measure))

    def cell(self, model: str, technique: str, measure: Measure, attack: str = ALL) -> Cell:
        """The cell of a table."""
        rate = self.rate(model, technique, measure, attack)
        return "not asked" if rate is None else CountedShare(rate.estimate, rate.n_counted, self.note(rate))

    def note(self, rate: Rate) -> str:
        """The correction, breaches of the same check on twins, and the trials that are in no rate."""
        notes, corrected = list[str](), rate.corrected
        if corrected is not None:
            value = f"corrected {percent(corrected.value)} ({interval(corrected)})"
            notes.append(uncorrected_words(corrected) if corrected.value is None else value)
        probes = (p for p in self._plan.probes if (p.technique, p.kind) == (rate.technique, "breach"))
        kinds = {probe.check.kind for probe in probes}
        if rate.measure == "breach" and (row := self._twins.get((rate.model, *kinds))):
            share = f"{percent(row.estimate.value)} ({row.n_broke} of {row.estimate.n})"
            notes.append(f"unasked on twins {share}")
        n_gaps = self._gaps[rate.model, rate.technique, rate.attack, rate.measure]
        kept = (rate.n_unclear, "unclear"), (rate.n_attempted, "attempted"), (n_gaps, "not supported")
        counts = [f"{n} {what}" for n, what in kept if n]
        counts += [plural(rate.n_error, "error")] if rate.n_error else []
        return "; ".join(filter(None, (*notes, ", ".join(counts))))


def _rates(study: RecordedStudy) -> Iterator[Section]:
    """Technique by model for breaches and for twins, then attack by model if there are several."""
    estimates, cells = study.estimates, RateCells(study)
    models = [card.id for card in estimates.models]
    head = [ModelName(model, name) for model, name in names(estimates.models).items()]
    tables = []
    measures: tuple[tuple[Measure, str, str], ...] = (
        ("breach", "Breach rate", _breach_claim(estimates)), ("over_refusal", "Over-refusal rate", _TWINS)
    )  # fmt: skip
    for measure, name, claim in measures:
        rows: list[list[Cell]] = [
            [title(technique), *(cells.cell(model, technique, measure) for model in models)]
            for technique in ledger(estimates, measure)
        ]
        if rows:
            tables.append(TextTable(name, [name, *head], rows, claim=claim, figure=HeatMap(measure)))
    by_attack: list[list[Cell]] = []
    for measure, scope in ((measure, scope) for measure, of in SCOPES.items() for scope in of):
        made = {
            attack: [cells.cell(model, scope, measure, attack) for model in models]
            for attack in estimates.attacks
            if any((r := cells.rate(model, scope, measure, attack)) and r.worst_case for model in models)
        }
        kind = "over-refusal" if scope == ALL else scope_name(estimates, scope)
        if len(made) > 1:  # the only one has the rates of the sum
            by_attack += [[f"{kind}, {attack_name(a, estimates.attacks)}", *row] for a, row in made.items()]
    if by_attack:
        claim = f"The same trials by the attack on the probes: {asked_attacks(estimates)}."
        tables.append(TextTable("By attack", ["rate, attack", *head], by_attack, claim=claim))
    yield Section("rates", "Breach rate, technique by model", "", tuple(tables), is_main=True)


def _breach_claim(estimates: Estimates) -> str:
    did = "broke"
    if estimates.counts_refusals("breach", JUDGED):
        did += "; where a judge decides, of answers that do not refuse, unclear ones included"
    claim = (
        f"The share of {counted(estimates)} trials in which the model {did}. Judge-free: a check decides, "
        "such as a search for the planted secret. Judged: a judge decides. Both err: a corrected rate allows "
        f"for the measured errors. Intervals are of {percent(estimates.confidence)}."
    )
    is_without = any(card.is_baseline for card in estimates.techniques)
    return claim + " A baseline measures a capability, and is in no sum." * is_without


# --- what was inherited -------------------------------------------------------------------------------


def _inherited(estimates: Estimates) -> Iterator[Section]:
    """The edges of the lineage, but for those to a model behind guards and to controls."""
    edges, details = (
        [each for each in of if not each.is_of_guard and each.role not in CONTROLS]
        for of in (estimates.edges, estimates.technique_edges)
    )
    if edges:
        heading, called = "What was inherited", names(estimates.models)
        by_technique = [_edge_row(estimates, e, called) for e in details if e.compared.measure == "breach"]
        first, *more = _tables(heading, _EDGE, [_edge_row(estimates, e, called) for e in edges], by_technique)
        tables = first._replace(figure=_tree(estimates)), *more
        sentences = tuple(_edge_sentence(estimates, edge, called) for edge in edges)
        yield Section("edges", heading, _INHERITED, tables, sentences, is_main=True)


def _edge_row(estimates: Estimates, edge: Inheritance, called: dict[str, str]) -> list[Cell]:
    pair = edge.compared
    return [
        _of(estimates, pair), ModelName(edge.child, called[edge.child]),
        ModelName(edge.parent, called[edge.parent]), recipe_words(edge), Badge(edge.verdict, ""),
        CountedShare(edge.retention, edge.kept) if edge.retention.n else "nothing to retain",
        _counts(kept=edge.kept, lost=edge.lost, gained=edge.gained, never=edge.never),
        ShareDifference(pair.difference, pair.margin, edge.child, pair.test),
        p_words(pair.p_holm), unsigned(pair.detectable),
    ]  # fmt: skip


def _edge_sentence(estimates: Estimates, edge: Inheritance, called: dict[str, str]) -> str:
    pair = edge.compared
    could = f"would show {detectable_words(pair)}"
    return (
        f"{_of(estimates, pair)}: {called[edge.child]} of {called[edge.parent]}, {recipe_words(edge)}: "
        f"{edge.verdict}; still held {retention_words(edge)}, lost {edge.lost}, gained {edge.gained}; "
        f"difference {difference_words(pair.difference)}, p {p_words(pair.p_holm)} after Holm, "
        f"{'too few trials to show any' if pair.detectable is None else could}."
    )


def _tree(estimates: Estimates) -> Tree:
    """The lineage, each edge with its verdict."""
    scope, by_edge, notes = estimates.main_scope(), edge_verdicts(estimates), dict[str, TreeNote]()
    for card in estimates.models:
        if any(card.id in key for key in by_edge):
            rate = find(estimates, card.id, scope, ALL, "breach")
            value = rate.estimate.value if rate else None
            did = f"{failed(estimates, 'breach', scope)} {percent(value)}"
            notes[card.id] = TreeNote("" if value is None else did, value)
    mine = {(e.parent, e.child): e for e in reversed(estimates.edges)}
    main = {(e.parent, e.child): e.retention.value for e in estimates.edges if e.compared.technique == scope}
    edges = list[TreeEdge]()
    for key, row in by_edge.items():
        recipe = (mine[key].descent if key in mine else "") or row.recipe
        lines = [label(", ".join(filter(None, (recipe, row.role))), 24), row.word]
        if (number := row.main) is not None:
            lines.append(f"{QUESTIONS[number.question]} {points(number.estimate.value)}")
        edges.append(TreeEdge(*key, BADGES[row.kind], tuple(lines), main.get(key)))
    return Tree(notes, tuple(edges))


# --- models against each other ------------------------------------------------------------------------


def _compared(estimates: Estimates) -> Iterator[Section]:
    """Every two models on the same trials."""
    pairs, details = ([pair for pair in of if pair.n] for of in (estimates.pairs, estimates.technique_pairs))
    if pairs:
        heading, called = "Model against model", names(estimates.models)
        by_technique = [_pair_row(estimates, pair, called) for pair in details if pair.measure == "breach"]
        rows = [_pair_row(estimates, pair, called) for pair in pairs]
        where = "applications that are not known" if estimates.is_recorded else "the same application"
        claim = _PAIRED.format(where=where, margin=unsigned(estimates.margin))
        kin = {ident for edge in estimates.edges for ident in (edge.parent, edge.child)}
        others = (pair for pair in pairs if not {pair.a, pair.b} <= kin)
        sentences = tuple(_pair_sentence(estimates, pair, called) for pair in others)
        yield Section(
            "pairs", heading, claim, tuple(_tables(heading, _PAIR, rows, by_technique)), sentences, True
        )


def _pair_row(estimates: Estimates, pair: ModelPair, called: dict[str, str]) -> list[Cell]:
    if (pair.difference.value or 0.0) < 0:
        pair = pair.mirrored()  # no difference is negative
    counts, aside = pair.table, withheld_on(pair, pair.b)
    if not aside and (pair.verdict_ab, pair.verdict_ba) == ("not enough evidence", "not worse"):
        aside = f"but {called[pair.a]} is not worse"
    return [
        _of(estimates, pair), ModelName(pair.b, called[pair.b]), ModelName(pair.a, called[pair.a]),
        Badge(pair.verdict_ab, aside), ShareDifference(pair.difference, pair.margin, pair.b, pair.test),
        _counts(both=counts.both, higher=counts.only_b, lower=counts.only_a, neither=counts.neither),
        p_words(pair.p_value), p_words(pair.p_holm), unsigned(pair.detectable),
    ]  # fmt: skip


def _pair_sentence(estimates: Estimates, pair: ModelPair, called: dict[str, str]) -> str:
    verdict, could = "better" if pair.verdict_ba == "worse" else pair.verdict_ab, ""
    if verdict == "not enough evidence":
        verdict = "not shown to be better or worse"
        if withheld := withheld_on(pair, pair.b) or withheld_on(pair, pair.a):
            could = f". The verdict is withheld: {withheld}"
        elif pair.detectable is not None:
            could = f"; they would have shown {detectable_words(pair)}"
    return (
        f"{_of(estimates, pair)}: {called[pair.b]} is {verdict} than {called[pair.a]}: "
        f"{difference_words(pair.difference)} on {plural(pair.n, 'shared trial')}, "
        f"p {p_words(pair.p_holm)} after Holm{could}."
    )


# --- the recommendation, and what was declared ----------------------------------------------------------


def decision(folder: Path, called: dict[str, str]) -> Section:
    """The recommendation by the user's costs, or how to get one."""
    made = recommendation(folder)
    lines = tuple(recommendation_words(made, called))
    if made is None or made.note:
        return Section("decision", _DECISION, " ".join(lines), ())
    rows: list[list[Cell]] = [
        [
            ModelName(row.model, called.get(row.model, "?")), cost_words(row),
            ", ".join(f"{part} {amount(value)}" for part, value in row.parts.items()), percent(row.p_best),
            str(row.rank_low) if row.rank_low == row.rank_high else f"{row.rank_low} to {row.rank_high}",
        ]
        for row in made.models
    ]  # fmt: skip
    head = ["model", f"cost per {REQUESTS:,} requests", "of it", "probability of being the best", "rank"]
    table = TextTable(_DECISION, head, rows, claim=" ".join(lines))
    return Section("decision", _DECISION, _DRAWS, (table,), lines)


def _declared(study: RecordedStudy) -> Iterator[Section]:
    """The declared analysis, what the plan could show, and every deviation."""
    estimates, heading = study.estimates, "Declared before the first answer"
    lines, tables = declared_lines(estimates, study.plan.every_plugin), []
    if lines:
        at = f"The plan was written at {label(estimates.declared_at, 40)}. " if estimates.declared_at else ""
        claim = f"{at}Its digest, {label(estimates.study, 40)}, covers this analysis."
        tables += [TextTable(heading, ["declared", "as"], lines, claim=claim), *_forecast(study)]
    if lines or estimates.deviations:
        rows = [(each.code, each.words) for each in estimates.deviations]
        none = [("none", "the study ran as it was declared")]
        tables.append(TextTable("Deviations", ["deviation", "in words"], rows or none))
        yield Section("declared", heading, "", tuple(tables))


def _forecast(study: RecordedStudy) -> Iterator[TextTable]:
    """The forecast of the plan, computed before the first request: alike techniques in one row."""
    forecast, declared = study.estimates.forecast, study.estimates.analysis
    if forecast is None or declared is None or declared.primary is None:
        return
    alike: dict[tuple[str, str, str, str, str], list[ForecastRow]] = {}
    for row in forecast.rows:
        if row.between == declared.primary.between:
            kind = row.measure if row.technique not in (ALL, JUDGE_FREE, JUDGED) else row.technique
            least = "no difference" if row.detectable is None else unsigned(row.detectable)
            margin = "none" if row.margin is None else unsigned(row.margin)
            numbers = kind, f"{row.n_clusters:,}", least, f"{row.not_worse:.2f}", margin
            alike.setdefault(numbers, []).append(row)
    made = []
    for numbers, of in alike.items():
        one = title(of[0].technique) if len(of) == 1 else f"Each of {len(of)} techniques"
        twins = ", twins" if of[0].measure == "over_refusal" and of[0].technique != ALL else ""
        made.append((one + twins, *numbers[1:]))
    power = f"margin with {percent(forecast.power)} power"
    head = ["compared", "behaviours", "worse by", "power of not worse", power]
    lines = (line for line in forecast_lines(study.plan, forecast) if not line.startswith(" "))
    yield TextTable("What this plan could show", head, made, claim=" ".join(lines))
