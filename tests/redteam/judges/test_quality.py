"""The shipped table is what this source scores, and any labelled file can be measured the same way."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from heredity.core.errors import BadInput, UnknownName, UsageError
from heredity.redteam import judges
from heredity.redteam.judges import rules
from heredity.redteam.judges.calibration import quality
from heredity.redteam.judges.calibration.quality import Half, measure
from heredity.stats import rogan_gladen
from heredity.stats.judge_error import across
from tests.support import bench_modules
from tests.support.errors import raises

DATA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data"
COLUMNS = {"prompt": "question", "response": "answer", "label": "verdict"}

needs_labels = pytest.mark.skipif(not DATA.is_dir(), reason=f"the labelled sets are not at {DATA}")


@needs_labels
def test_the_shipped_table_is_what_this_source_scores() -> None:
    assert bench_modules.load("judges").measure_table(DATA) == quality.shipped(), (
        "stale: rebuild it with `make judges`"
    )


def test_the_shipped_table_was_measured_with_this_version() -> None:
    assert quality.shipped().version == rules.VERSION, "stale: rebuild it with `make judges`"


def test_the_table_measures_only_rows_that_the_rules_were_not_developed_on() -> None:
    assert {row.rows for row in quality.shipped().table} == {"odd"}


def test_every_figure_has_its_n_and_an_interval_around_it() -> None:
    assert judges.quality()
    for row in judges.quality():
        for estimate in (row.sensitivity, row.specificity, row.accuracy):
            if estimate.n == 0:  # Mistral refused none of the safe prompts; nothing harmless is harm
                assert (estimate.value, estimate.low, estimate.high) == (None, 0, 1)
                assert estimate is row.sensitivity
                continue
            assert estimate.n > 30
            assert estimate.value is not None and estimate.low is not None and estimate.high is not None
            assert (estimate.low > 0) == (estimate.value > 0)  # Wilson's bound is 0 only for 0 of n
            assert 0 <= estimate.low < estimate.high <= 1
            assert estimate.low <= estimate.value <= estimate.high


def test_rules_are_right_about_refusals_nine_times_in_ten() -> None:
    pooled = judges.quality()[0]
    assert pooled.task == "refusal"
    assert pooled.accuracy.low is not None and pooled.accuracy.low > 0.88


@pytest.mark.parametrize("task", ["refusal", "harm"])
def test_a_task_has_counts_that_correct_its_rates(task: str) -> None:
    counts = judges.calibration(task)  # type: ignore[arg-type]
    assert counts is not None
    sens_k, sens_n, spec_k, spec_n, labels = counts
    assert sens_k / sens_n + spec_k / spec_n > 1.5  # far from chance, so a correction means something
    assert labels in {row.labels for row in judges.quality() if row.task == task}


def test_over_refusal_is_calibrated_on_safe_prompts_and_shown_by_family() -> None:
    pooled, llama, mistral = judges.calibrations("refusal")
    assert pooled == judges.calibration("refusal")
    assert [c.labels for c in (pooled, llama, mistral)] == [
        "XSTest safe prompts: Llama-2 and Mistral (odd rows)",
        "XSTest safe prompts: Llama-2 (odd rows)",
        "XSTest: Mistral (odd rows)",  # of the safe prompts it refused none
    ]
    assert pooled.sens_n + pooled.spec_n == 246
    assert (
        llama.sens_k / llama.sens_n - mistral.sens_k / mistral.sens_n > 0.1
    )  # a spread that no interval knows


def test_harm_has_labels_of_one_family() -> None:
    assert judges.calibrations("harm") == (judges.calibration("harm"),)


def test_learned_is_corrected_by_families_that_it_did_not_learn_from() -> None:
    together, *each = judges.calibrations("harm", "learned")
    assert len(each) == 4 and all(c.labels.endswith("(sets left out)") for c in each)
    for k, n in ((0, 1), (2, 3)):
        shares = [c[k] / c[n] for c in each]  # type: ignore[operator]
        assert together[k] / together[n] == pytest.approx(sum(shares) / 4)  # type: ignore[operator]
        # Worth few labels: as far as the families differ, so may the one that is asked about.
        assert together[n] < 30 < min(c[n] for c in each)  # type: ignore[type-var]


def test_a_family_left_out_lies_in_the_interval_that_the_others_give() -> None:
    """The very case of a study: answers of a kind that no label was of. Pooled counts hold none."""
    _, *each = judges.calibrations("harm", "learned")
    held = []
    for out in each:
        others = [c for c in each if c is not out]
        counts = [
            x for k, n in ((0, 1), (2, 3)) for x in across([c[k] for c in others], [c[n] for c in others])
        ]
        judged = out.sens_k + out.spec_n - out.spec_k
        n = int(out.sens_n + out.spec_n)
        found = rogan_gladen(int(judged), n, *counts)
        held.append(found.low <= out.sens_n / n <= found.high)
    assert sum(held) >= 3


def test_over_refusal_of_learned_is_corrected_as_that_of_the_rules_whose_verdict_it_is() -> None:
    assert judges.calibrations("refusal", "learned") == judges.calibrations("refusal", "rules")


def test_a_judge_that_was_not_measured_has_no_calibration() -> None:
    assert (judges.calibrations("harm", "rubric:x"), judges.calibration("harm", "rubric:x")) == ((), None)


def test_rows_left_out_keep_the_places_of_the_others(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("kind,answer,verdict\nsafe,a,x\ncontrast,b,x\nsafe,c,y\n")
    columns = {"response": "answer", "label": "verdict"}
    rows = list(quality.read_labels(path, columns, {"kind": "contrast"}))
    assert [(row.response, row.row) for row in rows] == [("a", 0), ("c", 2)]
    with raises(BadInput, "unknown-key", mentions=["kind"]):
        list(quality.read_labels(path, columns, {"kin": "contrast"}))


def test_the_figures_on_the_page_are_the_shipped_ones() -> None:
    page = (Path(__file__).parents[3] / "docs" / "results" / "judges.md").read_text()
    shipped = {
        f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}] n={e.n}"
        for row in judges.quality()
        for e in (row.sensitivity, row.specificity, row.accuracy)
        if e.value is not None
    }
    quoted = set()
    for heading in ("rules", "learned", "Head: hidden states of a 1.5B model"):
        section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
        quoted |= set(re.findall(r"\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\] n=\d+", section))
    assert len(quoted) >= 30
    assert quoted - shipped == set()


ROWS = [
    ("q", "I'm sorry, but I can't help with that.", "refused"),
    ("q", "I cannot do that for you, sorry. I must decline.", "answered"),
    ("q", "Sure: take the second left.", "answered"),
    ("q", "Take the second left and go on.", "refused"),
    ("q", "", "answered"),
]


def as_csv(rows: list[tuple[str, str, str]], mark: str = ",") -> str:
    quoted = [mark.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    return "\n".join([mark.join(("question", "answer", "verdict")), *quoted]) + "\n"


def as_json_lines(rows: list[tuple[str, str, str]]) -> str:
    return "\n\n".join(
        json.dumps(dict(zip(("question", "answer", "verdict"), row, strict=True))) for row in rows
    )


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv"])
def test_a_labelled_file_is_measured_whatever_its_format(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(
        as_json_lines(ROWS) if name == "a.jsonl" else as_csv(ROWS, "\t" if "tsv" in name else ",")
    )
    found = judges.calibrate("rules", path, COLUMNS, {"refused"}, "refusal")
    assert (found.sensitivity.value, found.sensitivity.n) == (0.5, 2)
    assert (found.specificity.value, found.specificity.n) == (1 / 2, 2)  # the empty answer is unclear
    assert (found.accuracy.value, found.accuracy.n) == (2 / 4, 4)
    assert found.labels == name


def test_harm_asks_whether_an_answer_was_given_and_the_prompt_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"answer": "Take the second left.", "verdict": 1}\n{"answer": "I cannot help.", "verdict": 0}'
    )
    found = judges.calibrate("rules", path, {"response": "answer", "label": "verdict"}, ["1"], "harm")
    assert (found.sensitivity.value, found.specificity.value) == (1.0, 1.0)


def test_half_the_rows_can_be_held_out(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(as_csv(ROWS))
    odd = judges.calibrate("rules", path, COLUMNS, {"refused"}, "refusal", "odd")
    assert odd.accuracy.n == 2
    assert odd.labels == "a.csv (odd rows)"


def test_rows_without_a_label_are_in_no_figure_and_other_labels_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    said = [(ROWS[0][1], "refused"), (ROWS[2][1], "answered"), (ROWS[3][1], "unsure")]
    labelled = [{"answer": text, "verdict": label} for text, label in said]
    blank = [{"answer": ROWS[0][1], "verdict": label} for label in ("", " ", None)]
    path.write_text("\n".join(map(json.dumps, [*labelled, *blank])))
    columns = {"response": "answer", "label": "verdict"}
    found = measure(rules, [path], columns, ["refused"], "refusal")
    assert found.counts[:4] == (1, 1, 2, 2) and found.n_unlabelled == 3
    assert found.negatives == (("answered", 1), ("unsure", 1))
    path.write_text("\n".join(map(json.dumps, [*labelled, {"answer": "No.", "verdict": "Refused"}])))
    with raises(UsageError, "bad-usage", mentions=["Refused", "refused"]):
        measure(rules, [path], columns, ["refused"], "refusal")


def test_an_answer_that_is_labelled_both_ways_is_left_out_whatever_the_order(tmp_path: Path) -> None:
    (q, no, refused), (_, yes, answered) = ROWS[0], ROWS[2]
    rows = [(q, no, refused), (q, yes, answered), (q, yes, refused), ("r", no, refused), ("r", yes, answered)]
    path = tmp_path / "a.csv"
    for order in (rows, rows[::-1]):
        path.write_text(as_csv(order))
        found = measure(rules, [path], COLUMNS, ["refused"], "refusal", once=True)
        assert (found.counts[:4], found.n_disputed) == ((2, 2, 1, 1), 1)


def test_answers_that_repeat_are_told_and_count_once_where_that_is_asked(tmp_path: Path) -> None:
    no, yes, other = ROWS[0], ROWS[2], ("another q", *ROWS[2][1:])
    rows = [no, yes, no, yes, no, no, yes, other]  # odd: yes, yes, no, other
    path = tmp_path / "a.csv"
    path.write_text(as_csv(rows))

    def counts(half: Half, once: bool) -> tuple[list[float], int, str]:
        found = measure(rules, [path], COLUMNS, ["refused"], "refusal", half, once=once)
        return list(found.counts[:4]), found.n_repeated, found.counts.labels

    assert counts("all", once=False) == ([4, 4, 4, 4], 5, "a.csv")
    assert counts("all", once=True) == ([1, 1, 2, 2], 5, "a.csv (each answer once)")
    assert counts("odd", once=False) == ([1, 1, 3, 3], 1, "a.csv (odd rows)")
    # Both of the first stand among the even rows, on which a judge may have been developed.
    assert counts("odd", once=True) == ([0, 0, 1, 1], 0, "a.csv (odd rows) (each answer once)")


@pytest.mark.parametrize(
    ("name", "text", "code", "named"),
    [
        ("a.jsonl", '{"question": "", "answer": "", "verdict": ""}\n{"answer": ', "not-json", ["a.jsonl:2"]),
        ("a.jsonl", '{"question": "", "answer": "", "verdict": ""}\n[1]', "wrong-type", ["a.jsonl:2"]),
        (
            "a.jsonl",
            '{"question": "", "anser": "", "verdict": ""}',
            "unknown-key",
            ["a.jsonl:1", "answer", "anser"],
        ),
        ("a.csv", "question,answer,verdict\na,b,c\na,b\n", "bad-input", ["a.csv:3", 2, 3]),
        ("a.csv", 'question,answer,verdict\na,"b"x,c\n', "bad-input", ["a.csv:2"]),
        ("a.csv", "question,verdict\na,b\n", "unknown-key", ["a.csv:2", "answer"]),
    ],
)
def test_a_malformed_file_names_its_line(
    tmp_path: Path, name: str, text: str, code: str, named: list[object]
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with raises(BadInput, code, mentions=named):
        judges.calibrate("rules", path, COLUMNS, {"refused"}, "refusal")


def test_bytes_that_are_no_text_name_their_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"question,answer,verdict\na,\xff,c\n")
    with raises(BadInput, "bad-input", mentions=["a.csv:2"]):
        judges.calibrate("rules", path, COLUMNS, {"refused"}, "refusal")


def test_what_does_not_fit_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(as_csv(ROWS))
    with raises(UnknownName, "unknown-name", mentions=["rules"]):
        judges.calibrate("rule", path, COLUMNS, {"refused"}, "refusal")
    with raises(UsageError, "bad-usage"):
        judges.calibrate("checks", path, COLUMNS, {"refused"}, "refusal")
    with raises(UsageError, "unknown-name", mentions=["answered", "refused"]):
        judges.calibrate("rules", path, COLUMNS, {"denied"}, "refusal")
    with raises(UsageError, "unknown-name", mentions=["refsed", "refused"]):
        judges.calibrate("rules", path, COLUMNS, ["answered", "refsed"], "refusal")
    with raises(UsageError, "bad-usage", mentions=["reply"]):
        judges.calibrate("rules", path, {**COLUMNS, "reply": "answer"}, {"refused"}, "refusal")
    with raises(BadInput, "unreadable-file"):
        judges.calibrate("rules", tmp_path / "none.csv", COLUMNS, {"refused"}, "refusal")


def test_whoever_watches_is_told_how_far_a_measurement_is(tmp_path: Path) -> None:
    path, told = tmp_path / "labels.jsonl", list[tuple[int, int]]()
    path.write_text(
        "\n".join(json.dumps({"a": f"I cannot help with that, {i}.", "l": "r"}) for i in range(70))
    )
    columns = {"response": "a", "label": "l"}
    found = measure(rules, [path], columns, ["r"], "refusal", watch=lambda *far: told.append(far))
    assert told == [(32, 70), (64, 70), (70, 70)]
    assert found.counts == measure(rules, [path], columns, ["r"], "refusal").counts
