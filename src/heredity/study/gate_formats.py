"""A gate's outcome for machines: JSON, JUnit, and what GitHub shows of a job.

    json      every rule with its numbers
    junit     a case a rule; a rule without enough evidence is a failure, because the gate does not pass
    github    an annotation at the application's line for each rule that fails, and a summary in Markdown

Promises: names and words of a study, which may come from anyone, become no command, markup or element.
Leaves to others: the rules (gate.py), and writing to a file or the terminal (cli/).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from xml.sax.saxutils import quoteattr

import msgspec

from heredity.core.sanitize import label, plural
from heredity.study.declared_words import n_answered, n_planned
from heredity.study.estimates import Estimates
from heredity.study.gate import ERRORS, PASS, UNDECIDED, GateRule, Outcome
from heredity.study.report import junit, markdown
from heredity.study.sources import SourcePlace
from heredity.study.wording import percent, points

_LEVELS = {UNDECIDED: "warning"}  # of an annotation; a rule that fails is an error
_MARKS = {"pass": "✅", "remark": "", "not enough evidence": "❔"}  # beside the verdict in words
_MOST = 10  # annotations of a step that GitHub shows


def as_dict(outcome: Outcome, found: Estimates, limits: Mapping[str, object]) -> dict[str, object]:
    """The outcome as a JSON object. limits: the options that the gate was called with."""
    rules = [rule for rule in outcome.rules if rule.rule != "remark"]
    return {
        "code": outcome.code,
        "verdict": outcome.verdict,
        "study": found.study,
        "application": {"name": found.application.name, "digest": found.application.digest},
        "confidence": found.confidence,
        "limits": dict(limits),
        "n_planned": n_planned(found),
        "n_answered": n_answered(found),
        "n_errors": found.n_errors,
        "n_unclear": found.n_unclear,
        "rules": [msgspec.to_builtins(rule) for rule in rules],
        "remarks": [rule.words for rule in outcome.rules if rule.rule == "remark"],
        "words": outcome.words,
    }


def as_junit(outcome: Outcome, found: Estimates) -> str:
    """The outcome as a JUnit test suite."""
    rules = [rule for rule in outcome.rules if rule.rule != "remark"]
    n_errors = sum(rule.code == ERRORS for rule in rules)
    n_failures = sum(rule.code not in (PASS, ERRORS) for rule in rules)
    counts = f'tests="{len(rules)}" failures="{n_failures}" errors="{n_errors}" skipped="0"'
    head = f'name="heredity gate" {counts}'
    at, host = found.circumstances.at, found.circumstances.host
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f"<testsuites {head}>",
        f'  <testsuite id="0" {head} timestamp={_attribute(at)} hostname={_attribute(host)}>',
        *(line for rule in rules for line in _case(rule)),
        "  </testsuite>",
        "</testsuites>",
    ]
    return "\n".join(lines)


def _case(rule: GateRule) -> Iterator[str]:
    name = _attribute(rule.rule if rule.scope is None else f"{rule.rule} ({rule.scope})")
    group = _attribute(f"gate.{rule.model or 'study'}")
    said = f"message={_attribute(rule.words)} type={_attribute(rule.verdict)}"
    yield f'    <testcase classname={group} name={name} time="0">'
    if rule.code != PASS:
        yield f"      <{'error' if rule.code == ERRORS else 'failure'} {said}/>"
    yield "    </testcase>"


def _attribute(text: str) -> str:
    return quoteattr(junit.legal(text))


def as_annotations(outcome: Outcome, place: SourcePlace | None) -> list[str]:
    """A line for each rule that does not pass, as GitHub's runner reads it. place: of the application."""
    where = "" if place is None else f"file={_property(place.path)},line={place.line},"
    failed = [rule for rule in outcome.rules if rule.code != PASS]
    return [
        f"::{_LEVELS.get(rule.code, 'error')} {where}title={_property(f'heredity gate: {rule.verdict}')}::"
        f"{_data(label(rule.words, 2000))}"
        for rule in failed[:_MOST]
    ]


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(label(text, 300)).replace(":", "%3A").replace(",", "%2C")


def as_summary(outcome: Outcome, found: Estimates) -> str:
    """The outcome as a page of Markdown: a row a rule, and the remarks."""
    lines = [f"### heredity gate: {outcome.title}\n"]
    name = markdown.plain(found.application.name)
    lines.append(f"Study in {name}: {plural(n_answered(found), 'answered trial')}.\n")
    lines += ["| | model | rule | found | limit | n |", "|---|---|---|---|---|---|"]
    lines += [_row(rule) for rule in outcome.rules if rule.rule != "remark"]
    lines.append("")
    lines += [f"- {markdown.plain(rule.words, 1000)}" for rule in outcome.rules]
    return "\n".join(lines) + "\n"


def _row(rule: GateRule) -> str:
    verdict = f"{_MARKS.get(rule.verdict, '❌')} {rule.verdict}".strip()
    kind = rule.scope or "all"
    scope = "" if kind == "all" else f" ({kind.replace('_', '-')})"
    name = rule.rule.replace("_", "-")
    cells = [verdict, markdown.plain(rule.model or "all"), f"{name}{scope}", _found(rule), _limit(rule)]
    return f"| {' | '.join([*cells, str(rule.n or 0)])} |"


def _found(rule: GateRule) -> str:
    if rule.rule == "margin":
        return f"{points(rule.difference)} ({points(rule.low)} to {points(rule.high)})"
    if rule.rule in ("max_breach", "max_over_refusal"):
        return f"{percent(rule.rate, 1)} ({percent(rule.low, 1)} to {percent(rule.high, 1)})"
    return str(rule.n_error if rule.rule == "errors" else rule.more_trials)


def _limit(rule: GateRule) -> str:
    if rule.rule == "margin":
        return points(rule.margin)
    if rule.rule in ("max_breach", "max_over_refusal"):
        return percent(rule.limit, 1)
    return f"{rule.limit or 0:g}"
