from pathlib import Path

import msgspec
import numpy as np
import pytest

from heredity.core.errors import Damaged, NotComparable
from heredity.core.records import Exchange, Response, digest, encode
from heredity.study.plan import Grid, Plan
from heredity.study.report import _rows as samples
from tests.support.errors import raises
from tests.support.report_studies import TECHNIQUES, make, plan


def draw(folder: Path, planned: Plan, with_text: bool = True) -> list[samples.Sample]:
    return samples.draw(folder, planned, digest(planned), list(TECHNIQUES), with_text)


def rewrite(path: Path, change) -> None:  # type: ignore[no-untyped-def]
    """Change every row of a file."""
    rows = [change(msgspec.json.decode(line, type=Response)) for line in path.read_bytes().splitlines()]
    path.write_bytes(b"".join(encode(row) + b"\n" for row in rows))


def test_the_choice_follows_from_the_study_alone(study: Path) -> None:
    assert draw(study, plan()) == draw(study, plan())


def test_every_kind_of_every_model_and_technique_is_shown(study: Path) -> None:
    planned = plan()
    codes = samples.outcomes(study, planned)
    kinds = {code: kind for kind, code in samples._CODES.items()}
    grid = Grid(planned)
    there = {
        (t.model.id, t.probe.technique, kinds[int(code)])
        for t, code in zip(map(grid.trial, range(len(grid))), codes, strict=True)
    }
    shown = {(s.model, s.technique, s.kind) for s in draw(study, planned)}
    assert shown == {cell for cell in there if samples.WANTED[cell[2]]}


def test_a_conversation_is_of_the_kind_and_technique_it_is_shown_under(study: Path) -> None:
    planned = plan()
    codes = samples.outcomes(study, planned)
    for sample in draw(study, planned):
        assert codes[sample.row] == samples._CODES[sample.kind]
        assert sample.probe.startswith(sample.technique)
        assert Grid(planned).trial(sample.row).id == sample.trial


def test_the_count_beside_a_conversation_is_of_all_alike(study: Path) -> None:
    planned = plan()
    grid = Grid(planned)
    codes = samples.outcomes(study, planned)
    for sample in draw(study, planned):
        alike = [
            i for i in range(len(grid))
            if codes[i] == samples._CODES[sample.kind]
            and (grid.trial(i).model.id, grid.trial(i).probe.technique) == (sample.model, sample.technique)
        ]  # fmt: skip
        assert len(alike) == sample.n_same


def test_without_text_no_word_of_model_or_probe_is_read_out(tmp_path: Path) -> None:
    planned = plan()
    make(tmp_path, planned, answer="unmistakable")
    for sample in draw(tmp_path, planned, with_text=False):
        assert sample.steps == () and sample.evidence == "" and sample.error == ""


def test_rows_in_any_order_and_in_any_field_order_are_found(tmp_path: Path) -> None:
    planned = plan()
    make(tmp_path, planned)
    before = draw(tmp_path, planned)
    path = tmp_path / "responses.jsonl"
    lines = path.read_bytes().splitlines()
    other = [encode(dict(reversed(msgspec.json.decode(line).items()))) for line in reversed(lines)]
    path.write_bytes(b"\n".join(other) + b"\n")
    assert draw(tmp_path, planned) == before


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    planned = plan()
    make(tmp_path, planned)
    n = np.count_nonzero(samples.outcomes(tmp_path, planned))
    for name in ("responses.jsonl", "verdicts.jsonl"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-40])
    assert draw(tmp_path, planned) and np.count_nonzero(samples.outcomes(tmp_path, planned)) == n - 1


def test_a_bad_line_inside_is_damage_with_its_place(tmp_path: Path) -> None:
    planned = plan()
    make(tmp_path, planned)
    path = tmp_path / "verdicts.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"nonsense\n", *lines[1:]]))
    with raises(Damaged, "damaged", mentions=["verdicts.jsonl:2"]):
        draw(tmp_path, planned)


def test_rows_under_another_application_are_refused(tmp_path: Path) -> None:
    planned = plan()
    make(tmp_path, planned)
    rewrite(tmp_path / "responses.jsonl", lambda row: msgspec.structs.replace(row, application="0" * 32))
    with raises(NotComparable, "not-comparable"):
        draw(tmp_path, planned)


def test_rows_of_another_plan_are_refused(tmp_path: Path) -> None:
    planned = plan()
    make(tmp_path, planned)
    rewrite(tmp_path / "responses.jsonl", lambda row: msgspec.structs.replace(row, trial="0" * 32))
    with raises(NotComparable, "another-study"):
        draw(tmp_path, planned)


def test_a_row_outside_the_plan_is_damage(tmp_path: Path) -> None:
    planned = plan()
    make(tmp_path, planned)
    with pytest.raises(Damaged):
        samples.outcomes(tmp_path, plan(n_probes=20))


def test_before_any_verdict_there_is_nothing_to_show(tmp_path: Path) -> None:
    planned = plan()
    make(tmp_path, planned)
    (tmp_path / "verdicts.jsonl").unlink()
    assert draw(tmp_path, planned) == []


def test_several_samples_of_a_probe_are_told_apart() -> None:
    planned = plan(attacks=("direct", "prefill"), samples=3)
    codes = np.full(planned.n_trials, samples._CODES["broke"], np.uint8)
    chosen = samples.choose(codes, planned, "abc", list(TECHNIQUES))
    grid = Grid(planned)
    for index, why in chosen.items():
        assert grid.trial(index).probe.technique == why.technique
        assert why.n_same == 2 * 3 * 50  # attacks x samples x probes and twins


def test_a_later_step_shows_only_what_is_new(tmp_path: Path) -> None:
    planned = plan()
    make(tmp_path, planned)

    def longer(row: Response) -> Response:
        if not row.exchanges:
            return row
        first = row.exchanges[0]
        second = msgspec.structs.replace(first, prompt=first.prompt + first.text + "\nuser: and then?")
        return msgspec.structs.replace(row, exchanges=(first, second))

    rewrite(tmp_path / "responses.jsonl", longer)
    steps = next(s.steps for s in draw(tmp_path, planned) if s.steps)
    assert steps[0].asked.text.startswith("user: Please") and steps[1].asked.text == "\nuser: and then?"


@pytest.mark.parametrize("end", ["Sure: ", ""])
def test_a_prefill_is_shown_once_however_the_engine_rendered_it(end: str) -> None:
    first = Exchange("p", f"user: hello\nassistant: {end}", "Sure: ", "yes", (), "end", 1, 1)
    second = Exchange("p", "user: hello\nassistant: Sure: yes\nuser: more", "", "no", (), "end", 1, 1)
    steps = list(samples._steps((first, second)))
    assert [step.asked.text for step in steps] == ["user: hello\nassistant: ", "\nuser: more"]
    assert [step.prefill.text for step in steps] == ["Sure: ", ""]
