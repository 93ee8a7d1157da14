"""A study's rates and comparisons as flat JSON: one object per row, for a spreadsheet, a data frame or jq.

Promises: names and ids, no nesting, no text of any model or probe; the same study gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from heredity.core import files
from heredity.core.records import Estimate, Record
from heredity.study import advice, aggregate, wording
from heredity.study.advice import CostedModel
from heredity.study.estimates import SCHEMA, Deviation, Inheritance, ModelPair, Rate
from heredity.study.findings.protocols import FindingModule, attempt, every_finding

_MODELS = ("model", "a", "b", "against", "parent", "child")  # fields with a model's id


def write(folder: Path, out: Path, with_text: bool = True) -> Path:  # noqa: ARG001 (there is never any text)
    """Write the flat tables of the study in `folder` to `out`, and return `out`."""
    study = aggregate.read_study(folder)
    called = wording.names(study.estimates.models)
    document = {
        "schema": SCHEMA,
        "study": study.estimates.study,
        "application": study.estimates.application.digest,
        "confidence": study.estimates.confidence,
        "rates": [_rate(rate, called) for rate in study.estimates.rates],
        "pairs": [_pair(pair, called) for pair in study.estimates.pairs + study.estimates.technique_pairs],
        "edges": [_edge(edge, called) for edge in study.estimates.edges + study.estimates.technique_edges],
    }
    faults: dict[str, str] = {}

    def flat(finding: FindingModule) -> list[dict[str, object]]:
        return _finding(study.estimates.rows(finding.NAME, finding.Row), called)

    made = {each.NAME: attempt(faults, name, flat, each) for name, each in every_finding().items()}
    document["findings"] = {name: rows for name, rows in made.items() if rows}
    document["plugins"] = [msgspec.structs.asdict(each) for each in study.plan.every_plugin]
    broken = (Deviation("plugin-broken", words) for words in faults.values())
    document["deviations"] = list(dict.fromkeys([*study.estimates.deviations, *broken]))
    if (recommendation := advice.recommendation(folder)) is not None:
        document["recommendation"] = {
            "costs": msgspec.structs.asdict(recommendation.costs),
            "is_clear": recommendation.is_clear,
            "models": [_costed(row, called) for row in recommendation.models],
        }
    files.write_atomic(out, msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")
    return out


def _rate(rate: Rate, called: dict[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = {"model": called.get(rate.model, ""), "model_id": rate.model}
    counts = ("n_held", "n_broke", "n_unclear", "n_error", "n_skipped", "n_attempted")
    for field in ("technique", "attack", "measure", "is_judge_free", *counts):
        row[field] = getattr(rate, field)
    if not isinstance(rate.n_not_refused, msgspec.UnsetType):
        row["n_not_refused"] = rate.n_not_refused
    row |= _flat("", rate.estimate) | _flat("conditional_", rate.conditional)
    row |= _flat("corrected_", rate.corrected)
    row |= _flat("by_labels_", rate.by_labels)
    ends = [r.corrected.value for r in rate.by_family if r.corrected.value is not None]
    row |= {"by_family_low": min(ends, default=None), "by_family_high": max(ends, default=None)}
    bounds = rate.worst_case
    return row | {"if_unclear_held": bounds and bounds.low, "if_unclear_broke": bounds and bounds.high}


def _pair(pair: ModelPair, called: dict[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "a": called.get(pair.a, ""),
        "b": called.get(pair.b, ""),
        "a_id": pair.a,
        "b_id": pair.b,
    }
    row |= {"measure": pair.measure, "technique": pair.technique}
    row |= {field: getattr(pair.table, field) for field in ("both", "only_a", "only_b", "neither")}
    row |= _flat("difference_", pair.difference)
    fields = ("p_value", "p_holm", "test", "margin", "detectable", "verdict_ab", "verdict_ba")
    for field in (*fields, "reason_ab", "reason_ba", "tipping_share", "n_tests"):
        row[field] = getattr(pair, field)
    return row


def _edge(edge: Inheritance, called: dict[str, str]) -> dict[str, Any]:
    """An edge as a row: like a pair, with `parent` and `child` instead of `a` and `b`."""
    pair = _pair(edge.compared, called)
    row: dict[str, Any] = {"parent": pair.pop("a"), "child": pair.pop("b")}
    row |= {"parent_id": pair.pop("a_id"), "child_id": pair.pop("b_id")}
    row |= {field: getattr(edge, field) for field in ("recipe", "role", "kept", "lost", "gained", "never")}
    row |= _flat("retention_", edge.retention) | {"verdict": pair.pop("verdict_ab")}
    dropped = ("both", "only_a", "only_b", "neither", "verdict_ba")
    return row | {key: value for key, value in pair.items() if key not in dropped}


def _costed(row: CostedModel, called: dict[str, str]) -> dict[str, object]:
    """A model's expected cost as a row; a part by kind of failure has the prefix `cost_`."""
    flat: dict[str, object] = {"model": called.get(row.model, ""), "model_id": row.model}
    flat |= _flat("", row.cost) | {f"cost_{kind}": value for kind, value in row.parts.items()}
    return flat | {"p_best": row.p_best, "rank_low": row.rank_low, "rank_high": row.rank_high}


def _finding(rows: Sequence[Record], called: dict[str, str]) -> list[dict[str, object]]:
    """Rows of a finding without nesting, all with the same columns; a model has its name and its id.

    The fields of an estimate have its name as prefix, but those of `estimate` have none. Counts by name are
    columns `n_NAME`, as the errors of tools; a row without one has 0, and null in any other column.
    """
    flat = [_finding_row(row, called) for row in rows]
    columns = dict.fromkeys(name for row in flat for name in row)
    return [{name: row.get(name, 0 if name.startswith("n_") else None) for name in columns} for row in flat]


def _finding_row(row: Record, called: dict[str, str]) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in msgspec.structs.asdict(row).items():
        if name in _MODELS:
            flat |= {name: called.get(value, ""), f"{name}_id": value}
        elif isinstance(value, Estimate):
            flat |= _flat("" if name == "estimate" else f"{name}_", value)
        elif isinstance(value, Record):
            flat |= _finding_row(value, called)
        elif name == "children":
            flat |= {name: [called.get(child, "") for child in value], "child_ids": value}
        elif isinstance(value, dict):
            flat |= {f"n_{key.replace('-', '_')}": n for key, n in value.items()}
        elif value is not msgspec.UNSET:
            flat[name] = value
    return flat


def _flat(prefix: str, estimate: Estimate | None) -> dict[str, Any]:
    fields = Estimate.__struct_fields__
    return {f"{prefix}{field}": getattr(estimate, field) if estimate else None for field in fields}
