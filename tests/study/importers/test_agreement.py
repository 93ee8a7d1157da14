"""heredity's judge beside those that were recorded, on made-up and on real answers."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from heredity.core.files import Rows
from heredity.core.records import Verdict
from heredity.study import importers
from heredity.study.importers import Agreements, ImportOptions, VerdictColumn
from heredity.study.report import html, markdown
from heredity.study.study import Study
from tests.support.importer_files import NO, YES, answers, jsonl, made

DATA = Path(__file__).parents[3] / "../shared/data/refusal_direction"


def test_agreement_counts_what_both_decided(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"p{i}",
            "response": YES if i < 6 else NO,
            "other": "broke" if i < 3 else "held" if i < 9 else "",
        }
        for i in range(10)
    ]
    path = jsonl(tmp_path / "a.jsonl", rows)
    made(tmp_path / "s", path, model="m", verdicts=(VerdictColumn.parse("other"),))
    Study.open(tmp_path / "s").run()
    found = importers.agreement(tmp_path / "s")
    assert found.judges == ("heredity", "other")
    (one,) = found.agreements
    assert (one.table.both, one.table.only_a, one.table.only_b, one.table.neither) == (3, 3, 0, 3)
    assert one.n == 9 and one.agreement.value == pytest.approx(6 / 9)
    assert one.kappa.value == pytest.approx((6 / 9 - 4 / 9) / (1 - 4 / 9))
    assert Agreements(*(getattr(found, name) for name in Agreements.__struct_fields__)) == found


def test_another_judge_makes_the_agreement_anew(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "response": YES if i < 6 else NO, "other": "broke"} for i in range(10)]
    path = jsonl(tmp_path / "a.jsonl", rows)
    made(tmp_path / "s", path, model="m", verdicts=(VerdictColumn.parse("other"),))
    Study.open(tmp_path / "s").run()
    before = (tmp_path / "s" / "agreement.json").read_bytes()
    Study.open(tmp_path / "s", judge="rubric:scripted:refuser:yesno").run()
    after = (tmp_path / "s" / "agreement.json").read_bytes()
    assert after != before
    assert msgspec.json.decode(after, type=Agreements) == importers.agreements(tmp_path / "s")


def test_recorded_verdicts_stand_in_the_reports_beside_heredity_s(tmp_path: Path) -> None:
    rows = [{**row, "<b>other": "unsafe" if row["model"] == "child" else ""} for row in answers()]
    path = jsonl(tmp_path / "a.jsonl", rows)
    made(tmp_path / "s", path, verdicts=(VerdictColumn.parse("<b>other"),))
    Study.open(tmp_path / "s").run()
    page = html.write(tmp_path / "s", tmp_path / "page.html").read_text()
    assert "Other judges on the same answers" in page and "<b>other" not in page
    assert "&lt;b&gt;other" in page
    text = markdown.write(tmp_path / "s", tmp_path / "page.md").read_text()
    assert "### Agreement of judges" in text and "| heredity, \\<b\\>other | child | 4 |" in text


def test_without_other_judges_the_reports_have_no_such_tables(tmp_path: Path) -> None:
    made(tmp_path / "s", jsonl(tmp_path / "a.jsonl", answers()))
    Study.open(tmp_path / "s").run()
    assert "Other judges" not in html.write(tmp_path / "s", tmp_path / "page.html").read_text()
    assert "by judge" not in markdown.write(tmp_path / "s", tmp_path / "page.md").read_text()


@pytest.mark.skipif(not DATA.exists(), reason="shared data is not here")
def test_a_real_parent_and_its_ablated_child_by_three_judges(tmp_path: Path) -> None:
    files = [DATA / "gemma-2b-it.jsonl", DATA / "qwen-1_8b-chat.jsonl"]
    verdicts = tuple(map(VerdictColumn.parse, ("substring_refused", "llamaguard2_unsafe")))
    reading = ImportOptions(columns={"id": "index"}, model="{file}-{arm}", verdicts=verdicts)
    summary = importers.import_files(files, tmp_path / "s", reading)
    assert (summary.n_prompts, summary.n_answers, summary.n_missing) == (95, 379, 1)
    result = Study.open(tmp_path / "s").run()
    assert result.estimates.n_errors == 1
    for name in ("gemma-2b-it", "qwen-1_8b-chat"):
        pair = result.pair(f"{name}-baseline", f"{name}-ablation")
        assert pair.verdict_ab == "worse" and pair.n >= 85
        both, only_a, only_b, neither = {"gemma-2b-it": (6, 0, 87, 2), "qwen-1_8b-chat": (30, 2, 59, 3)}[name]
        table = pair.table  # docs/how-to/answers.md and README say these
        assert (table.both, table.only_a, table.only_b, table.neither) == (both, only_a, only_b, neither)
    found = importers.agreement(tmp_path / "s")
    by_judges = {(one.a, one.b): one for one in found.agreements if one.model == "all"}
    substring = by_judges["heredity", "substring_refused"]
    guard = by_judges["heredity", "llamaguard2_unsafe"]
    assert substring.n == guard.n == 370
    assert substring.kappa.value is not None and substring.kappa.value > 0.9
    assert guard.kappa.value is not None and 0.6 < guard.kappa.value < 0.9  # it asks another question
    # Counted from the file itself: all 379 recorded verdicts of both, whatever heredity's judge says.
    both = by_judges["substring_refused", "llamaguard2_unsafe"]
    assert both.n == 379 and sum(1 for _ in Rows(tmp_path / "s/verdicts.jsonl", Verdict)) == 380
    assert (both.table.both, both.table.only_a, both.table.only_b, both.table.neither) == (176, 52, 4, 147)
