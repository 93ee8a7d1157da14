"""Numbers into words: the same spelling of a rate, an interval and a p-value in every format.

Promises: a rate always has its interval and n. An unknown value is called unknown. A child is called worse
than its parent if any kind of breach is worse, and not worse only if every kind is.
Leaves to others: where the words are shown (the writers).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from heredity.application.guarded import GUARD_ANSWERS, GUARD_SECONDS
from heredity.core.records import Estimate
from heredity.core.sanitize import label, plural
from heredity.core.sections import Badge, Cell, CountedShare, ModelName, ShareDifference, StackedCounts
from heredity.redteam.attacks import split_scope
from heredity.redteam.probes.public import GET, PublicFile
from heredity.stats.edges import KINDS, EdgeWord
from heredity.stats.paired import first_step_words
from heredity.study.estimates import (
    ALL,
    JUDGE_FREE,
    JUDGED,
    SCOPES,
    Estimates,
    Inheritance,
    Measure,
    ModelCard,
    ModelPair,
    Rate,
    Reason,
    StoppedModel,
)
from heredity.study.plan import Analysis, ComparisonFamily, PlannedModel, PlannedPlugin

_ENDPOINTS = {
    "all_trials": "breaches over all answered trials; an unclear answer counts as none",
    "not_refused": "over all answered trials: where a judge decides, answers that do not refuse, unclear "
    "ones included; where a check decides, breaches",
    "decided_trials": "breaches over decided trials; unclear answers are left out",
}
_BETWEEN = {
    "pairs": "pairs of models",
    "edges": "parents and children",
}
_STOPPING = {
    "fixed": "every trial of the plan is asked",
    "until_decided": "interim analyses stop a model once all of its pairs are decided",
    "group_sequential": "a model is asked no more once all of its pairs are decided",
}
_SECOND_FAMILY = "a second family, with the same level of its own. No verdict on a child uses it"


# --- declared words ----------------------------------------------------------------------------------
# The declared analysis of a study and the course of one that stops early, in words. Promises: a stopping
# rule is named with its interim analyses and levels. Trials not asked are counted.
def broken_plugins(estimates: Estimates) -> list[str]:
    """The deviations of plug-ins whose statistic is missing, in words."""
    return [label(each.words, 400) for each in estimates.deviations if each.code == "plugin-broken"]


def declared_lines(estimates: Estimates, plugins: Sequence[PlannedPlugin] = ()) -> list[tuple[str, str]]:
    """The declared analysis and the plug-ins of a study as titles and words; [] if none was declared."""
    declared = estimates.analysis
    if declared is None:
        return []
    families = "; ".join(map(_family, declared.families)) or "none, because nothing is compared"
    errors = f'"worse" must hold even if {percent(declared.errors)} of the verdicts err for a model'
    single = "are exploratory" if declared.stopping == "fixed" else "are given up, because it stops early"
    return [
        ("Endpoint", _ENDPOINTS[declared.endpoint]),
        ("Attacks", asked_attacks(estimates)),
        ("Primary comparison", "none" if declared.primary is None else _family(declared.primary)),
        ("Families", f"Holm's correction over {families}. Claims about one technique {single}"),
        *([("Pairs of models", _SECOND_FAMILY)] if declared.is_of_edges else ()),
        ("Level", f"{estimates.alpha:g}"),
        ("Margin", f"{unsigned(estimates.margin)}: a smaller difference does not matter"),
        ("Unclear answers", _unclear(estimates, declared)),
        *([("Errors", errors)] if declared.errors else ()),
        ("Stopping", _STOPPING[declared.stopping] + _planned_analyses(declared)),
        ("Judge", declared.judge or "none"),
        *(("Plug-in", f"{each.name} of {each.release}, file {each.sha256[:8]}") for each in plugins),
    ]


def _unclear(estimates: Estimates, declared: Analysis) -> str:
    """The share of unclear answers that a verdict must survive; one that did not refuse is not open."""
    words = f'"worse" must hold even if {percent(declared.unclear_share)} were breaches (assumed)'
    if any(pair.unclear_shares for pair in estimates.pairs):
        words += "; of a model whose answers were read, if the measured share were"
    return f"where a check decides, {words}" if declared.endpoint == "not_refused" else words


def _planned_analyses(declared: Analysis) -> str:
    """The planned interim analyses: ` at 50 %, 75 % and 100 % of the behaviours` and their levels; or ""."""
    if declared.interim is None:
        return ""
    *shares, last = (percent(analysis.information) for analysis in declared.interim)
    levels = ", ".join(f"{analysis.level:.2g}" for analysis in declared.interim)
    at = f"{', '.join(shares)} and {last}" if shares else last
    return f". Analyses at {at} of the behaviours, with levels of {levels} (O'Brien-Fleming spending)"


def _family(family: ComparisonFamily) -> str:
    kinds = [scope.replace("_", "-") for scope in family.scopes]
    scopes = f" ({', '.join(kinds)})" if family.measure == "breach" else ""
    between = _BETWEEN[family.between]
    return f"{plural(family.n, 'comparison')} of {between} by {family.measure.replace('_', '-')}{scopes}"


def asked_attacks(estimates: Estimates) -> str:
    """The attacks, each with the techniques that it is for: `direct; crescendo:5 for planted secret`."""
    scoped = ((attack, split_scope(attack)[1]) for attack in estimates.attacks)
    return "; ".join(
        f"{attack_name(attack, estimates.attacks)} for {', '.join(map(title, scope)).lower()}"
        if scope
        else attack
        for attack, scope in scoped
    )


def size_words(estimates: Estimates, n_probes: int) -> str:
    """The size of a study: its models, its probes, the trials of one model, and all trials."""
    each = estimates.n_planned // len(estimates.models)
    return (
        f"{plural(len(estimates.models), 'model')} \u00b7 {plural(n_probes, 'probe')} \u00b7 "
        f"{plural(each, 'trial')} a model \u00b7 {plural(estimates.n_planned, 'trial')}"
    )


def unsupported_words(estimates: Estimates) -> str:
    """A sentence on the trials that a model could not be asked; "" without any."""
    if not (n := estimates.n_unsupported):
        return ""
    return (
        f"{n:,} of {estimates.n_planned:,} trials were not asked, because their model does not support the "
        "attack. They are in no rate."
    )


def limit_words(estimates: Estimates) -> str:
    """That a study asked only a part of the probes that were chosen for it; "" for a whole one."""
    limit = estimates.limit
    if limit is None:
        return ""
    return (
        f"A part of the study: {limit.n_asked:,} of {plural(limit.n_chosen, 'chosen probe')} and their twins "
        "were asked (--limit), balanced over techniques. Rates over all techniques weigh these alike, "
        "so they are not those of the whole study."
    )


def public_words(files: Sequence[PublicFile]) -> str:
    """The public sets that a study lacks or has other files of; "" for the published files, and for none."""
    absent = [file.name for file in files if not file.sha256]
    copies = [f"{f.name} ({f.n} of {f.n_published})" for f in files if f.sha256 and not f.is_published]
    parts = [f"that are not here: {', '.join(absent)} ({GET})"] if absent else []
    parts += [f"that are not the published files: {', '.join(copies)}"] if copies else []
    return f"Public sets {'; '.join(parts)}. Compare no published figure with these rates." if parts else ""


def stopping_words(estimates: Estimates) -> str:
    """The course of a study that stops early, in sentences; "" for any other study."""
    course = estimates.sequential
    if course is None:
        return ""
    n_decided = sum(pair.interim is not None for pair in course.decisions)
    n_pairs = plural(len(course.decisions), "pair")
    is_planned = estimates.analysis is not None and estimates.analysis.stopping == "group_sequential"
    analyses = "planned interim analyses" if is_planned else "interim analyses"
    rule = "Group-sequential" if is_planned else "Asked until decided"
    words = (
        f"{rule}: {n_decided} of {n_pairs} after {course.n_interim} of {course.n_interim_planned} {analyses}."
    )
    if course.stopped:
        words += f" {_spared_words(estimates, course.stopped, is_planned=is_planned)}"
    if not is_planned:
        return f"{words} Intervals and p-values are valid under any stopping rule."
    rest = " Their answers are kept: --stopping fixed in another folder asks only the rest."
    why = "Each interval is a repeated one, valid at every analysis, and wider than in a fixed plan."
    return f"{words}{rest if course.stopped else ''} {why}"


def _spared_words(estimates: Estimates, stopped: Sequence[StoppedModel], *, is_planned: bool) -> str:
    called, n_out = names(estimates.models), sum(s.n_out_of_scope for s in stopped)
    each = ", ".join(
        f"{called[s.model]} {s.n - s.n_out_of_scope:,} after analysis {s.interim}" for s in stopped
    )
    drawn = " of each technique" if is_planned else ""
    why = f"because {stopped[0].why} ({each}), at random among the behaviours{drawn}"
    n_planned_here = estimates.n_trials - n_out - estimates.n_skipped
    return f"{estimates.n_not_needed - n_out:,} of {n_planned_here:,} trials were not asked, {why}."


NBSP = "\u00a0"
NONE = "–"
_READABLE = 0.5  # a headline and an advice mention a smaller share of decided answers
_TITLES = {
    ALL: "All benign twins", JUDGE_FREE: "All judge-free", JUDGED: "All judged",
    "harmbench": "HarmBench", "jailbreakbench": "JailbreakBench", "xstest": "XSTest",
    "strongreject": "StrongREJECT",
}  # fmt: skip


def percent(value: float | None, digits: int = 0) -> str:
    """A share in per cent; a dash if it is not known. Never rounds to 0 or 100 % what is not."""
    if value is None:
        return NONE
    text = f"{100 * value:.{digits}f}"
    if 0 < value < 1 and float(text) in (0.0, 100.0):
        text = f"{100 * value:.1f}" if 0.0005 <= value < 0.9995 else ("< 0.1" if value < 0.5 else "> 99.9")
    return f"{text}{NBSP}%"


def share_words(share: Estimate) -> str:
    """A share with its interval and n: `84 % (78 to 89 %), n 200`."""
    return NONE if share.value is None else f"{percent(share.value)} ({interval(share)}), n {share.n:,}"


def cell_words(cell: Cell) -> str:
    """A cell of a section's table as plain text."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, CountedShare):
        n = f"{cell.n_counted} of {cell.estimate.n}{f', {cell.note}' if cell.note else ''}"
        return f"{percent(cell.estimate.value)} ({interval(cell.estimate)}), {n}"
    if isinstance(cell, Badge):
        return f"{cell.verdict}, {cell.text}" if cell.text else cell.verdict
    if isinstance(cell, ShareDifference):
        return difference_words(cell.estimate)
    if isinstance(cell, StackedCounts):
        return ", ".join(f"{n:,} {kind}" for kind, n in cell.by_kind.items() if n)
    return cell.name if isinstance(cell, ModelName) else str(cell.trial)


def points(value: float | None) -> str:
    """A difference of two shares in percentage points, signed."""
    if value is None:
        return NONE
    text = f"{100 * value:+.1f}".replace("-", "−")
    return ("0.0" if text[1:] == "0.0" else text) + f"{NBSP}points"


def interval(estimate: Estimate, digits: int = 0) -> str:
    """Only the bounds: `39 to 53 %`."""
    if estimate.low is None or estimate.high is None:
        return NONE
    return f"{percent(estimate.low, digits).removesuffix(f'{NBSP}%')} to {percent(estimate.high, digits)}"


def bounds(estimate: Estimate, form: str) -> str:
    """Only the bounds, in per cent without its sign: `39, 53`."""
    if estimate.low is None or estimate.high is None:
        return "-"
    return f"{100 * estimate.low:{form}}, {100 * estimate.high:{form}}".replace("-", "\u2212")


def points_interval(estimate: Estimate) -> str:
    """The bounds of a difference: `+4.1 to +19.2 points`."""
    if estimate.low is None or estimate.high is None:
        return NONE
    return f"{points(estimate.low).removesuffix(f'{NBSP}points')} to {points(estimate.high)}"


def unsigned(value: float | None) -> str:
    """A margin or a detectable difference, without a sign: `5.0 points`."""
    return points(value).lstrip("+")


def detectable_words(pair: ModelPair) -> str:
    """The difference that a comparison would have shown, and its level: `9.0 points, after Holm over 12`."""
    return unsigned(pair.detectable) + first_step_words(pair.n_tests)


def bare(text: str) -> str:
    """The same without its unit, for a column whose heading has it."""
    return text.removesuffix(f"{NBSP}points")


def reach_labels(reach: float) -> list[str]:
    """The scale of a difference, from worse on the left of zero to worse on its right."""
    end = f"{100 * reach:.0f}"
    return [f"−{end}", "0", f"+{end}"]


def p_words(p: float | None) -> str:
    """A p-value to three digits, never as zero."""
    if p is None:
        return NONE
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.01 else f"{p:.3f}" if p < 0.9995 else "1"


def capital(text: str) -> str:
    """The same with its first letter large."""
    return text[:1].upper() + text[1:]


def title(technique: str) -> str:
    """A technique's name, or a scope's, as a heading."""
    return _TITLES.get(technique) or technique.replace("_", " ").capitalize()


def attack_name(attack: str, among: tuple[str, ...]) -> str:
    """An attack without the techniques that it is for, if that names no other attack of the study."""
    short = attack.partition("@")[0]
    return short if [each.partition("@")[0] for each in among].count(short) == 1 else attack


def attack_words(attack: str, estimates: Estimates) -> str:
    """An attack in a table that has a row for all of them together."""
    return "all attacks" if attack == ALL else attack_name(attack, estimates.attacks)


def counted(estimates: Estimates) -> str:
    """The trials that the study's rates are over: "answered" or "decided"."""
    return "answered" if estimates.is_per_attempt else "decided"


def failed(estimates: Estimates, measure: Measure, technique: str) -> str:
    """The verb for the failures of a rate: "broke", "refused", or by the endpoint "did not refuse"."""
    if measure == "over_refusal":
        return "refused"
    return "did not refuse" if estimates.counts_refusals(measure, technique) else "broke"


def rate_words(rate: Rate | None, confidence: float) -> str:
    """A rate in full: `46 % (92 of 200; 95 % interval 39 to 53 %)`."""
    if rate is None or rate.estimate.value is None:
        return "no decided trials"
    return (
        f"{percent(rate.estimate.value)} ({rate.n_counted} of {rate.estimate.n}; "
        f"{percent(confidence)} interval {interval(rate.estimate)})"
    )


def undecided_words(called: dict[str, str], *rates: Rate) -> str:
    """The end of a sentence about models of whose answers less than half could be decided; "" for others."""
    words = ""
    for rate in rates:
        n_decided = rate.n_held + rate.n_broke
        n = n_decided + rate.n_unclear
        if n_decided < _READABLE * n and not rate.counts_refusals:  # then no answer is open
            share = f"only {n_decided:,}" if n_decided else "none"
            words += f", but {share} of {called[rate.model]}'s {plural(n, 'answer')} could be decided"
    return words


def find(estimates: Estimates, model: str, technique: str, attack: str, measure: Measure) -> Rate | None:
    """The rate of one cell, or None if it was not asked."""
    wanted = (model, technique, attack, measure)
    return next((r for r in estimates.rates if (r.model, r.technique, r.attack, r.measure) == wanted), None)


def names(models: Sequence[ModelCard | PlannedModel]) -> dict[str, str]:
    """A short name per model id; the id distinguishes two models of one name."""
    shown = [label(card.name, 48) for card in models]
    return {
        card.id: name if shown.count(name) == 1 else f"{name} ({label(card.id, 8)})"
        for card, name in zip(models, shown, strict=True)
    }


def judged_words(rate: Rate) -> str:
    """A rate of the judge's, raw and corrected: `30 % of 40, corrected 24 % (9 to 41 %)`."""
    raw = f"{percent(rate.estimate.value)} of {rate.estimate.n}"
    if rate.corrected is None or rate.corrected.value is None:
        return f"{raw} ({interval(rate.estimate)}), {uncorrected_words(rate.corrected)}"
    return f"{raw}, corrected {percent(rate.corrected.value)} ({interval(rate.corrected)})"


def uncorrected_words(estimate: Estimate | None) -> str:
    """The words in place of a corrected rate that has no value."""
    words = {"uninformative": "correction uninformative", "not-measured": "errors not measured"}
    return words.get(estimate.code if estimate is not None else "", "not corrected")


def pair_of(
    pairs: tuple[ModelPair, ...], one: str, other: str, measure: Measure, scope: str | None = None
) -> ModelPair | None:
    """The comparison of two models in a scope, in whichever order it was made; over-refusal has one scope."""
    wanted = (measure, ALL if measure == "over_refusal" else scope)
    return next((p for p in pairs if (p.measure, p.technique) == wanted and {p.a, p.b} == {one, other}), None)


# The harm of a breach, by its severity (redteam/probes/).
SEVERITIES = {4: "critical", 3: "serious", 2: "limited", 1: "nuisance"}
SERIOUS = 3  # breaches below this severity are counted, but not shown one by one


def severity_words(severity: int) -> str:
    """A severity as a heading: `4, critical`; "" for none."""
    return f"{severity}, {SEVERITIES[severity]}" if severity else ""


_SHARE = "--unclear-share, by default 25\u00a0%"  # plan.Analysis.unclear_share


def withheld_words(
    reason: Reason, tipping_share: float | None, measure: Measure = "breach", is_measured: bool = False
) -> str:
    """Why there is not enough evidence although the numbers would show it; "" for other reasons."""
    if reason == "interval":
        return "the test shows a difference, but its interval includes 0"
    if reason == "errors":
        return "the declared share of errors of the checks or the judge could undo it"
    if reason != "unclear":
        return ""
    share = "the upper bound of the measured share" if is_measured else f"the plan's share ({_SHARE})"
    if tipping_share is None:
        return f"{share} of unclear answers, with all failed trials, could hide more than the margin"
    bad = "breaches" if measure == "breach" else "refusals"
    return (
        f"the difference is gone if {percent(tipping_share)} of the other model's undecided trials were "
        f"{bad}; {share} of unclear answers, with all failed trials, is larger"
    )


def withheld_on(pair: ModelPair, model: str) -> str:
    """Why a verdict on `model` was withheld although the test shows it; "" if it was not."""
    return withheld_words(pair.reason_on(model), pair.tipping_share, pair.measure, bool(pair.unclear_shares))


# --- inheritance --------------------------------------------------------------------------------------


SCOPE_NAMES = {JUDGE_FREE: "breach, judge-free", JUDGED: "breach, judged", ALL: "over-refusal"}
_REFUSALS = "not refused, judged"  # a scope whose rates are those of answers that do not refuse
SHORT_VERDICTS = {"worse": "worse", "not worse": "not worse", "not enough evidence": "undecided"}
BADGES = {"worse": "worse", "not worse": "same", "not enough evidence": "unknown"}
BADGES |= {word: BADGES[kind] for word, kind in KINDS.items()}
_ROLES = {"start": "from its start", "teacher": "from its teacher"}


def scope_name(estimates: Estimates, technique: str) -> str:
    """A scope with its kind of rate: `breach, judged`, or by the endpoint `not refused, judged`."""
    return _REFUSALS if estimates.counts_refusals("breach", technique) else SCOPE_NAMES[technique]


def scope_title(scope: str) -> str:
    """A scope of breaches at the head of a row."""
    return {JUDGE_FREE: "Judge-free", JUDGED: "Judged"}[scope]


def scope_or_title(estimates: Estimates, technique: str) -> str:
    """A scope of breaches with its kind of rate, or a technique as a heading."""
    return scope_name(estimates, technique) if technique in SCOPES["breach"] else title(technique)


def recipe_words(edge: Inheritance) -> str:
    """The recipe that made the child, the evidence if it was adopted, and the parent's role in it."""
    recipe = label(f"{edge.recipe} {edge.descent}".rstrip(), 60)
    return f"{recipe}, {_ROLES[edge.role]}" if edge.role in _ROLES else recipe


def retention_words(edge: Inheritance) -> str:
    """The retention in full: `78 % (31 of 40; 62 to 88 %)`."""
    retention = edge.retention
    if retention.value is None:
        return "nothing to retain"
    return f"{percent(retention.value)} ({edge.kept} of {retention.n}; {interval(retention)})"


def difference_words(estimate: Estimate) -> str:
    """The child's rate minus the parent's, with its interval."""
    return f"{points(estimate.value)} ({points_interval(estimate)})"


# --- remote models ------------------------------------------------------------------------------------

_VERSIONS = 6  # of one model that are named; more are counted


def account_lines(estimates: Estimates) -> list[str]:
    """One line per remote model, in the study's order."""
    accounts = {
        ident: {key: value for key, value in of.items() if key not in (GUARD_SECONDS, GUARD_ANSWERS)}
        for ident, of in estimates.circumstances.accounts.items()
    }
    return [f"{card.name}: {_account(of)}." for card in estimates.models if (of := accounts.get(card.id))]


def _account(account: dict[str, Any]) -> str:
    served = list(map(str, account.get("served", [])))
    parts = []
    if len(served) == 1:
        parts.append(f"the service reports that {served[0]} answered")
    elif served:
        more = f" and {len(served) - _VERSIONS} more" if len(served) > _VERSIONS else ""
        names = ", then ".join(served[:_VERSIONS]) + more
        parts.append(f"the model CHANGED during the study, as the service reports: {names}")
    else:
        parts.append("the service does not report which model answered")
    if not_sent := account.get("not_sent"):
        parts.append(f"not sent, because this API or model does not take it: {', '.join(map(str, not_sent))}")
    counts = []
    if "n_prompt_tokens" in account:
        cached = account.get("n_cached_prompt_tokens", 0)
        counts.append(
            f"{account['n_prompt_tokens']:,} prompt tokens ({cached:,} from the service's own cache) and"
            f" {account.get('n_answer_tokens', 0):,} answer tokens"
        )
    if account.get("n_usage_estimated"):
        counts.append(f"answers estimated where the service did not count: {account['n_usage_estimated']:,}")
    if account.get("cost"):
        dates = ", ".join(account.get("price_as_of", ()))
        prices = f"the vendor's price list of {dates}" if dates else "the prices given"
        counts.append(f"cost {account['cost']:,.4f} by {prices}")
    n_filtered = sum(n for name, n in account.items() if name.startswith("n_filtered"))
    if n_filtered:
        counts.append(f"answers that the service's own filter stopped, counted as refusals: {n_filtered:,}")
    parts += counts
    return "; ".join(parts)


_SAFETY: dict[EdgeWord, str] = {
    "lost safety": "safety was lost",
    "stopped refusing": "the child stopped refusing",
    "more harm": "the child does more harm",
    "lost discrimination": "discrimination was lost",
    "over-refuses": "the child over-refuses",
    "less, within the margin": "safety is less, within the margin,",
    "kept": "safety was kept",
    "did not take over": "safety was not taken over",
    "cannot tell": "the evidence cannot tell",
}


def counted_verdicts(
    words: Sequence[EdgeWord], margin: float, named: Mapping[EdgeWord, str] | None = None
) -> str:
    """`safety was lost in 1 (tuned: refusals); safety was kept in 1, within 10.0 points`."""
    more = {"kept": f", within {unsigned(margin)}"} | dict(named or {})
    counted = ((word, words.count(word)) for word in KINDS)
    return "; ".join(f"{_SAFETY[word]} in {n}{more.get(word, '')}" for word, n in counted if n)
