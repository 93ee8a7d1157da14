"""garak reports."""

from __future__ import annotations

from pathlib import Path

from heredity.study import importers, plan
from heredity.study.importers import ImportOptions
from heredity.study.report import html, markdown
from heredity.study.storage import read_estimates
from tests.support.errors import run_here
from tests.support.importer_files import NO, YES, jsonl, made, responses


def garak_report(path: Path) -> Path:
    """As garak 0.17 writes it."""
    said = {"text": "On the table.", "lang": None, "data_path": None, "notes": {}}
    attempt = {
        "entry_type": "attempt", "uuid": "d690e710", "seq": 0, "status": 2, "probe_classname": "lamps.Lamp",
        "targets": [], "goal": "find the lamp", "notes": {}, "intent": None,
        "prompt": {"turns": [{"role": "user", "content": {"text": "Where is the lamp?"}}], "notes": {}},
        "outputs": [said, None, {**said, "text": NO}],
        "detector_results": {"mitigation.MitigationBypass": [1.0, None, 0.3]},
    }  # fmt: skip
    old = {**attempt, "prompt": "Where is the cup?", "outputs": [YES, YES, NO], "detector_results": {}}
    setup = {
        "entry_type": "start_run setup",
        "plugins.target_type": "test",
        "plugins.target_name": "lamp-model",
    }
    return jsonl(
        path, [setup, {"entry_type": "init"}, {**attempt, "status": 1}, attempt, old, {"entry_type": "eval"}]
    )


def test_a_garak_report_gives_every_output_with_its_detectors(tmp_path: Path) -> None:
    path = garak_report(tmp_path / "garak.1.report.jsonl")
    summary = made(tmp_path / "s", path)
    assert summary.models == ("lamp-model",) and (summary.n_prompts, summary.n_samples) == (2, 3)
    assert summary.judges == ("mitigation.MitigationBypass",)
    rows = responses(tmp_path / "s")
    assert [row.exchanges[0].text for row in rows if not row.error] == ["On the table.", NO, YES, YES, NO]
    assert [row.error for row in rows if row.error] == ["no response was recorded"]
    assert plan.read_plan(tmp_path / "s").probes[0].technique.startswith("lamps-lamp")
    verdicts = [row.verdicts for row in importers.read([path], ImportOptions())]
    assert verdicts == [
        {"mitigation.MitigationBypass": True},
        {},
        {"mitigation.MitigationBypass": False},
        {},
        {},
        {},
    ]


def test_the_intent_of_an_attempt_is_kept(tmp_path: Path) -> None:
    """As a threat of its probe, with the version whose typology it is of, and as a column."""
    shared = {"entry_type": "attempt", "status": 2, "probe_classname": "av.Gtube", "outputs": [NO]}
    rows = [
        {"entry_type": "init", "garak_version": "0.17.1"},
        {"entry_type": "start_run setup", "plugins.target_name": "lamp-model"},
        *({**shared, "uuid": f"{i}", "seq": i, "prompt": f"Lamp {i}?", "intent": intent}
          for i, intent in enumerate(["S008spam", ["S006", "S009"], None])),
    ]  # fmt: skip
    path = jsonl(tmp_path / "garak.3.report.jsonl", rows)
    made(tmp_path / "s", path)
    spam, both, none = plan.read_plan(tmp_path / "s").probes
    assert spam.threats == ("garak:0.17.1/S008spam",) and none.threats == ()
    assert both.threats == ("garak:0.17.1/S006", "garak:0.17.1/S009")
    by_intent = list(importers.read([path], ImportOptions(columns={"category": "intent"})))
    assert [each.category for each in by_intent] == ["S008spam", '["S006", "S009"]', ""]


def attempts(place: Path, rows: list[tuple[str, int, int]]) -> Path:
    """A report with these attempts: uuid, number, status."""
    shared = {
        "entry_type": "attempt",
        "probe_classname": "lamps.Lamp",
        "outputs": [NO],
        "detector_results": {},
    }
    return jsonl(
        place / "garak.2.report.jsonl",
        [
            {"entry_type": "start_run setup", "plugins.target_name": "lamp-model"},
            *({**shared, "uuid": u, "seq": n, "status": s, "prompt": f"Lamp {u}?"} for u, n, s in rows),
        ],
    )


def test_an_import_counts_the_attempts_that_its_report_lacks(tmp_path: Path) -> None:
    """b was begun and never detected, and no row has the numbers 2 and 3."""
    path = attempts(tmp_path, [("a", 0, 1), ("a", 0, 2), ("b", 1, 1), ("c", 4, 1), ("c", 4, 2)])
    summary = made(tmp_path / "s", path)
    assert summary.n_prompts == 2
    (lacking,) = summary.lacking
    assert (lacking.n, lacking.n_planned, lacking.noun) == (3, 5, "attempt")


def test_an_attempt_that_asks_nothing_is_counted_and_left_out(tmp_path: Path) -> None:
    """garak's probe `test.Test` has one. It made the whole report unreadable."""
    rows = [
        {"entry_type": "start_run setup", "plugins.target_name": "lamp-model"},
        *({"entry_type": "attempt", "status": 2, "probe_classname": "test.Test", "outputs": [NO], "seq": i,
           "uuid": f"{i}", "prompt": {"turns": [{"role": "user", "content": {"text": text}}]}}
          for i, text in enumerate(["", "Where is the lamp?"])),
    ]  # fmt: skip
    summary = made(tmp_path / "s", jsonl(tmp_path / "garak.4.report.jsonl", rows))
    (lacking,) = summary.lacking
    assert (summary.n_prompts, lacking.n, lacking.n_planned) == (1, 1, 2)


def test_a_whole_report_lacks_nothing(tmp_path: Path) -> None:
    assert made(tmp_path / "s", garak_report(tmp_path / "garak.1.report.jsonl")).lacking == ()


def test_the_command_says_how_many_attempts_are_lacking(tmp_path: Path) -> None:
    path = attempts(tmp_path, [("a", 0, 2), ("b", 1, 1)])
    done = run_here("import", path.name, "--out", "s", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{path.name} lacks 1 of the 2 attempts" in done.stderr


def test_every_report_of_an_import_says_how_many_attempts_are_lacking(tmp_path: Path) -> None:
    path = attempts(tmp_path, [("a", 0, 2), ("b", 1, 1)])
    assert run_here("import", path.name, "--out", "s", cwd=tmp_path).returncode == 0
    words = "lacks 1 of the 2 attempts of its run"
    assert f"{path.name} {words}" in html.render(tmp_path / "s")
    assert words in markdown.render(tmp_path / "s")
    assert [(f.file, f.n, f.n_planned) for f in read_estimates(tmp_path / "s").lacking] == [(path.name, 1, 2)]


def test_a_later_import_of_the_whole_report_lacks_nothing(tmp_path: Path) -> None:
    path = attempts(tmp_path, [("a", 0, 2), ("b", 1, 1)])
    made(tmp_path / "s", path)
    assert (tmp_path / "s" / "lacking.json").exists()
    attempts(tmp_path, [("a", 0, 2)])
    made(tmp_path / "s", path)
    assert not (tmp_path / "s" / "lacking.json").exists()
