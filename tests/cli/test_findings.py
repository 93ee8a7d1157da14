"""What a study prints: fifteen lines, the verdict and the next command last; cells of the full table.

HEREDITY_RENEW=1 writes the golden file again.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import msgspec
import pytest

from heredity.cli import _findings, main
from heredity.core.sections import CountedShare, TextTable
from heredity.core.terminal import out
from heredity.lineage.graph import Edge
from heredity.stats.intervals import refused, wilson
from heredity.study import aggregate
from heredity.study.advice import MIN_N
from heredity.study.plan import Plan
from heredity.study.wording import uncorrected_words
from tests.support import report_studies
from tests.support.report_studies import make, plan

GOLDEN = Path(__file__).with_name("demo.txt")
LONG = "qwen2.5-coder-0.5b-instruct"


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    chances = [*report_studies.CHANCES.values()]
    for k in range(12):
        monkeypatch.setitem(report_studies.CHANCES, f"{LONG}-{k}", chances[k % len(chances)])


def test_the_demo_prints_its_golden_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 0
    printed = re.sub(" +\n", "\n", capsys.readouterr().out)
    if os.environ.get("HEREDITY_RENEW"):
        GOLDEN.write_text(printed, "utf-8")
    assert printed == GOLDEN.read_text("utf-8")


def studied(n: int, is_lineage: bool) -> Plan:
    """A plan of n models with long names; in a lineage each but the first is a child of the first."""
    made = plan(n)
    models = tuple(
        msgspec.structs.replace(made.models[k % 3], id=f"{k:032x}", name=f"{LONG}-{k}") for k in range(n)
    )
    edges = tuple(Edge(models[0].id, each.id, "lora") for each in models[1:]) if is_lineage else ()
    return msgspec.structs.replace(made, models=models, edges=edges)


@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize(("n", "is_lineage"), [(1, False), (2, False), (3, True), (3, False), (12, True)])
def test_the_verdict_and_the_next_command_stand_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], n: int, is_lineage: bool, is_full: bool
) -> None:
    read = aggregate.read_study(make(tmp_path, studied(n, is_lineage)))
    _findings.show(read.estimates, read.plan, tmp_path, is_full)
    lines = capsys.readouterr().out.splitlines()
    starts = [n for n, line in enumerate(lines) if re.match(r"\w+: ", line)]
    questions = [lines[n].partition(":")[0] for n in starts]
    at = questions.index("Shipping")
    assert questions[at:] == ["Shipping", *["Comparison"] * (n > 1), "Next"]
    assert lines[-1] == f"Next: heredity view {tmp_path}"
    if not is_full:
        assert len(lines) - 1 + math.ceil(len(lines[-1]) / 80) <= _findings.SHORT
        assert max(map(len, lines[:-1])) <= 80
        table = next(n for n, line in enumerate(lines) if line.startswith("breach rate"))
        pairs = [n for n, line in enumerate(lines) if "points" in line or re.search(r"\d pairs", line)]
        assert all(n < table for n in pairs) and bool(pairs) is (n > 1) and table < starts[at]
        assert n == 12 or [line[:5] for line in lines[table + 1 :][:n]] == [LONG[:5]] * n


def test_no_model_that_is_not_to_be_shipped_is_left_unnamed(tmp_path: Path) -> None:
    read = aggregate.read_study(make(tmp_path, studied(3, is_lineage=False)))
    first = read.estimates.models[0].id

    def counted(rate):  # the first breaks never, the others often
        k = 0 if rate.model == first or rate.measure == "over_refusal" else 40
        return msgspec.structs.replace(rate, n_broke=k, estimate=wilson(k, 40), corrected=None)

    rates = tuple(map(counted, read.estimates.rates))
    shipping = _findings.conclusions(msgspec.structs.replace(read.estimates, rates=rates), read.plan)[
        0
    ].answer
    named = shipping.partition(" here: ")[0]
    assert named == f"Do not ship {LONG}-2 or {LONG}-1" and MIN_N <= 40


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("not-measured", "errors not measured"),
        ("unlike-labels", "not corrected"),
        ("uninformative", "correction uninformative"),
    ],
)
def test_a_correction_without_a_value_does_not_read_as_if_the_model_refused(code: str, said: str) -> None:
    assert uncorrected_words(refused(40, "a reason", code)) == said


@pytest.mark.parametrize("width", [80, 24])
def test_a_rate_has_its_interval_and_its_note_and_one_without_trials_is_a_dash(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen := out(), "_width", width)
    rates = [CountedShare(wilson(10, 40), 10, "corrected; 1 error"), CountedShare(refused(0, "no trial"), 0)]
    _findings.show_table(screen, TextTable("T", ["of", "a", "b"], [["secrets", *rates]]))
    lines = capsys.readouterr().out.replace("\u00a0", " ").splitlines()
    assert any("25 %" in line and "[14, 40] n 40" in line for line in lines) is (width == 80)
    assert any(line.endswith("-") for line in lines) and any("1 error" in line for line in lines)
