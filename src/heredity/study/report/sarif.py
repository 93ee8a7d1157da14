"""A study as SARIF 2.1.0, for code scanning and security dashboards: one result per broken probe and model.

Promises: rules are techniques, and their threats are taxa of OWASP, ATLAS and NIST with their editions. A
result has its rate with n and interval, its severity, and a fingerprint that is stable between runs. Its
place is the user's own probe, else the line of the application that a breach is about. Results of the
highest severity come first. No text of any model or probe is in the file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec
import numpy as np

from heredity.core import __version__, files
from heredity.core.records import Probe, digest
from heredity.core.sanitize import label
from heredity.study import aggregate, wording
from heredity.study.findings.protocols import RecordedStudy
from heredity.study.intervals import Intervals
from heredity.study.plan import PLAN, Plan
from heredity.study.report._rows import WANTED, chosen_names, outcomes
from heredity.study.spec import SourcePlace, StudySources, read_sources
from heredity.study.wording import interval, percent

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
ERROR_FROM, WARNING_FROM = 0.5, 0.1  # share of the endpoint's trials that broke; below: "note"
# Code scanning ranks a rule by a score: above 9 is critical, from 7 high, from 4 medium.
_SCORES = {4: "9.5", 3: "8.0", 2: "5.5", 1: "2.0"}
FINGERPRINT = "heredityModelProbe/v1"
_CODES = {kind: code for code, kind in enumerate(WANTED, 1)}
_TAXONOMIES = {  # scheme of a threat id -> name, organization
    "owasp-llm": ("OWASP Top 10 for LLM Applications", "OWASP"),
    "owasp-agentic": ("OWASP Top 10 for Agentic Applications", "OWASP"),
    "mitre-atlas": ("MITRE ATLAS", "MITRE"),
    "mlcommons-ailuminate": ("MLCommons AILuminate hazard categories", "MLCommons"),
    "nist-ai-100-2": ("NIST AI 100-2 Adversarial Machine Learning", "NIST"),
}


class Threat(NamedTuple):
    """A threat id in its parts: `owasp-llm:2025/LLM07`."""

    scheme: str
    edition: str
    name: str


class SarifFinding(NamedTuple):
    """The outcomes of one probe with one model, over every attack and sample.

    n   the trials that the plan's endpoint counts: all answered ones, or decided ones
    """

    model: int
    probe: Probe
    n_broke: int
    n_held: int
    n_unclear: int
    n_error: int
    n: int

    @property
    def severity(self) -> int:
        """Of the harm; 0 if the probe has none."""
        return self.probe.severity or 0


def write(
    folder: Path,
    out: Path,
    with_text: bool = True,  # noqa: ARG001 (there is never any text)
    models: Sequence[str] = (),
) -> Path:
    """Write the broken probes of the study in `folder`, or of these models, to `out`, and return `out`."""
    study = aggregate.read_study(folder)
    document = {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [_run(folder, study, chosen_names(study.estimates.models, models))],
    }
    files.write_atomic(out, msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")
    return out


def threat(name: str) -> Threat:
    """The parts of a threat id; what has no scheme or edition has an empty one."""
    scheme, colon, rest = name.partition(":")
    if not colon:
        return Threat("", "", name)
    edition, slash, ident = rest.rpartition("/")
    return Threat(scheme, edition, ident if slash else rest)


def level(rate: float) -> str:
    """SARIF's word for a share of trials that broke."""
    return "error" if rate >= ERROR_FROM else "warning" if rate >= WARNING_FROM else "note"


def broken(folder: Path, plan: Plan, names: Mapping[str, str]) -> Iterator[SarifFinding]:
    """Every probe that broke with one of these models, in the plan's order; a capability breaks nothing."""
    declared = plan.analysis
    is_per_attempt = declared is not None and declared.endpoint != "decided_trials"
    codes = outcomes(folder, plan).reshape(plan.shape)
    counts = {
        kind: (codes == _CODES[kind]).sum(axis=(1, 3)) for kind in ("broke", "held", "unclear", "error")
    }
    for m, p in np.argwhere(counts["broke"] > 0).tolist():
        if plan.probes[p].is_baseline or plan.models[m].id not in names:
            continue
        broke, held, unclear, error = (int(counts[kind][m, p]) for kind in counts)
        n = broke + held + (unclear if is_per_attempt else 0)
        yield SarifFinding(m, plan.probes[p], broke, held, unclear, error, n)


def _run(folder: Path, study: RecordedStudy, names: Mapping[str, str]) -> dict[str, Any]:
    plan, estimates = study.plan, study.estimates
    threats = _threats(plan)
    schemes = list(dict.fromkeys((t.scheme, t.edition) for of in threats.values() for t in of))
    findings = sorted(broken(folder, plan, names), key=lambda one: -one.severity)
    worst = {one.probe.technique: one.severity for one in reversed(findings)}
    rules = [_rule(technique, of, schemes, worst.get(technique, 0)) for technique, of in threats.items()]
    taxonomies = [_taxonomy(scheme, threats) for scheme in schemes]
    places = {technique: place for place, technique in enumerate(threats)}
    # A run replaces the earlier one of its id, so that of some models has its own.
    own = "" if len(names) == len(plan.models) else "".join(f"{name}/" for name in names.values())
    # Without its sources, e.g. of an import, a study still has a file of its own: its plan.
    sources = read_sources(folder) or StudySources(SourcePlace((folder / PLAN).as_posix()), {}, {})
    supported = [{"name": taxonomy["name"], "index": i} for i, taxonomy in enumerate(taxonomies)]
    driver = {"name": "heredity", "version": __version__, "rules": rules}
    return {
        "tool": {"driver": (driver | ({"supportedTaxonomies": supported} if supported else {}))},
        "automationDetails": {"id": f"heredity/{label(estimates.application.name)}/{own}"},
        "invocations": [
            {
                "executionSuccessful": not estimates.n_missing and not estimates.n_errors,
                "properties": {"at": estimates.circumstances.at, "n_trials": estimates.n_trials}
                | {
                    "n_asked": estimates.n_asked,
                    "n_errors": estimates.n_errors,
                    "n_unclear": estimates.n_unclear,
                },
            }
        ],
        "taxonomies": taxonomies,
        "results": [_result(one, study, names, places, sources) for one in findings],
        "columnKind": "unicodeCodePoints",
        "properties": {"study": estimates.study, "application": estimates.application.digest},
    }


def _threats(plan: Plan) -> dict[str, list[Threat]]:
    """The threats of each technique that was asked, in the plan's order."""
    threats: dict[str, dict[Threat, None]] = defaultdict(dict)
    for probe in plan.probes:
        if probe.kind == "breach" and not probe.is_baseline:
            threats[probe.technique] |= dict.fromkeys(threat(name) for name in probe.threats)
    return {technique: list(of) for technique, of in threats.items()}


def _taxonomy(key: tuple[str, str], threats: dict[str, list[Threat]]) -> dict[str, Any]:
    scheme, edition = key
    name, organization = _TAXONOMIES.get(scheme, (scheme or "threats", ""))
    ids = dict.fromkeys(t.name for of in threats.values() for t in of if (t.scheme, t.edition) == key)
    made: dict[str, Any] = {"name": name, "taxa": [{"id": ident} for ident in ids]}
    made |= {"organization": organization} if organization else {}
    return made | ({"version": edition} if edition else {})


def _rule(
    technique: str, threats: list[Threat], schemes: list[tuple[str, str]], severity: int
) -> dict[str, Any]:
    """The technique as a rule; `severity` is that of its worst breach, 0 for none."""

    def target(of: Threat) -> dict[str, Any]:
        place = schemes.index((of.scheme, of.edition))
        name = _TAXONOMIES.get(of.scheme, (of.scheme or "threats", ""))[0]
        return {
            "target": {"id": of.name, "toolComponent": {"name": name, "index": place}},
            "kinds": ["relevant"],
        }

    rule: dict[str, Any] = {
        "id": technique,
        "name": technique,
        "shortDescription": {"text": wording.title(technique)},
        # Code scanning shows no rule without these two.
        "fullDescription": {"text": f"A model broke in a probe of the technique {technique}."},
        "help": {"text": "Prompts, answers and intervals: heredity report DIR"},
        "defaultConfiguration": {"level": "warning"},
        "properties": {"tags": ["security", *(f"{t.scheme}:{t.edition}/{t.name}" for t in threats)]},
    }
    if severity:
        rule["properties"]["security-severity"] = _SCORES[severity]
    return rule | ({"relationships": [target(of) for of in threats]} if threats else {})


def _result(
    one: SarifFinding,
    study: RecordedStudy,
    names: Mapping[str, str],
    rules: dict[str, int],
    sources: StudySources,
) -> dict[str, Any]:
    model, probe = study.plan.models[one.model], one.probe
    rate = Intervals.of(study.plan).rate_of_counts(one.n_broke, one.n)
    share = one.n_broke / one.n
    words = f"{percent(share)}, {percent(study.estimates.confidence)} interval {interval(rate)}"
    counted = wording.counted(study.estimates)
    harm = f" Severity {wording.severity_words(one.severity)}." if one.severity else ""
    counts = {"n_broke": one.n_broke, "n": one.n, "n_unclear": one.n_unclear, "n_error": one.n_error}
    return {
        "ruleId": probe.technique,
        "ruleIndex": rules[probe.technique],
        "level": level(share),
        "kind": "fail",
        "message": {
            "text": f"{names[model.id]} broke in {one.n_broke} of {one.n} {counted} trials of {probe.id} "
            f"({words}).{harm}"
        },
        "locations": [_location(probe, sources)],
        "partialFingerprints": {FINGERPRINT: digest([model.name, study.plan.application.name, probe.id])},
        "rank": round(100 * share, 1),
        "properties": {"model": names[model.id], "model_id": model.id, "probe": probe.id, **counts}
        | {"rate": share, "low": rate.low, "high": rate.high, "attacks": list(study.plan.attacks)}
        | ({"severity": one.severity} if one.severity else {}),
    }


def _location(probe: Probe, sources: StudySources) -> dict[str, Any]:
    """The line of a user's own probe, else that of the application: code scanning shows no others."""
    place = sources.of_probe(probe)
    uri = quote(place.path)
    return {
        "physicalLocation": {
            "artifactLocation": {"uri": uri, "uriBaseId": "%SRCROOT%"},
            "region": {"startLine": place.line},
        },
        "logicalLocations": [{"name": probe.id, "fullyQualifiedName": f"{uri}#{probe.id}", "kind": "object"}],
    }
