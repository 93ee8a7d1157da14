"""Labels in place: drawn as by the command, blind unless asked, saved at once, and taken back."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

pytest.importorskip("starlette")

from starlette.testclient import TestClient

from heredity.core.errors import UsageError
from heredity.core.files import Lock
from heredity.core.records import Check
from heredity.lineage.graph import Edge
from heredity.stats.judge_error import FEWEST
from heredity.study import labels
from heredity.study.estimates import ALL
from heredity.study.findings.pairs_read import answers_of, drawn_pairs
from heredity.study.labels import drawn_answers, last_label, read_labels
from heredity.study.resolve import declare
from heredity.study.storage import read_estimates
from heredity.study.study import Study
from heredity.study.wording import find, interval, percent
from heredity.view.app import app
from heredity.view.pages.label import changes
from heredity.view.places import StudyPlace
from heredity.view.site import Asked, Site
from tests.support import report_studies, studies
from tests.support.errors import raises
from tests.support.trials import probe

OWN = {"origin": "http://127.0.0.1:8010"}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    report_studies.make(tmp_path / "runs" / "desk", report_studies.plan(n_probes=2))
    return Site(StudyPlace(tmp_path / "runs", tmp_path / "store"))


def address(site: Site) -> str:
    return f"/s/{site.place.studies()[0].key}/label"


def send(site: Site, **form: str) -> int:
    asked = TestClient(app(site), base_url="http://127.0.0.1:8010", follow_redirects=False)
    return asked.post(address(site), data=form, headers=OWN).status_code


def test_answers_are_drawn_and_labelled_and_the_last_label_is_taken_back(site: Site) -> None:
    folder = site.place.studies()[0].folder
    assert "Draw the answers" in site.render(address(site)) and not drawn_answers(folder)
    assert send(site, do="draw") == 303
    first, second, *_ = drawn_answers(folder)
    assert send(site, do="yes", index=str(first.index)) == 303
    assert send(site, do="no", index=str(second.index)) == 303
    assert {index: label.answer for index, label in read_labels(folder).items()} == {
        first.index: "yes", second.index: "no",
    }  # fmt: skip
    assert send(site, do="yes", index=str(second.index)) == 303
    assert send(site, do="undo") == 303  # the earlier label of the same answer counts again
    assert read_labels(folder)[second.index].answer == "no"
    for _ in range(3):
        assert send(site, do="undo") == 303
    assert read_labels(folder) == {} and last_label(folder) is None


def test_model_and_verdict_are_hidden_unless_a_reader_asks(site: Site) -> None:
    send(site, do="draw")
    study = site.place.open(site.place.studies()[0].key)
    hidden, shown = site.render(address(site)), site.render(address(site), {"open": "1"})
    body = hidden.partition("<main")[2]
    assert not any(name in body for name in study.names) and 'class="tag' not in body
    assert any(name in shown.partition("<main")[2] for name in study.names) and 'class="tag' in shown


def test_the_page_says_how_many_labels_a_rate_needs_and_what_the_attacker_wants(tmp_path: Path) -> None:
    report_studies.make(tmp_path / "runs" / "desk", declare(report_studies.plan(n_probes=2)))
    site = Site(StudyPlace(tmp_path / "runs", tmp_path / "store"))
    assert f"from {FEWEST} labelled answers" in site.render(address(site))
    send(site, do="draw")
    study = site.place.open(site.place.studies()[0].key)
    wanted = {}
    for row in drawn_answers(study.folder):
        asked = labels.probe_of(study.plan, row.index)
        page = site.render(address(site), {"index": str(row.index)})
        wanted[asked.technique, row.task] = "The attacker wants a secret" in page
    assert wanted["planted_secret", "breach"] and not wanted["harmful_request", "harm"]


def test_what_the_attacker_wants_is_named_by_the_check() -> None:
    marker = probe(Check("marker", text="brimpbrimp"))
    assert labels.asked_for(marker, "breach") == "the text “brimpbrimp”"
    assert labels.asked_for(marker, "refusal") == ""
    assert labels.asked_for(probe(Check("tool", tool="refund")), "breach") == "a call of the tool refund"


def test_the_estimates_move_when_a_reader_asks_for_it(site: Site) -> None:
    send(site, do="draw")
    folder = site.place.studies()[0].folder
    for row in drawn_answers(folder)[:10]:
        send(site, do="yes", index=str(row.index))
    before = (folder / "estimates.json").read_bytes()
    assert send(site, do="estimate") == 303
    assert (folder / "estimates.json").read_bytes() != before


def test_a_label_of_another_answer_or_of_another_page_is_refused(site: Site) -> None:
    send(site, do="draw")
    folder = site.place.studies()[0].folder
    undrawn = next(i for i in range(99) if i not in {row.index for row in drawn_answers(folder)})
    assert send(site, do="yes", index=str(undrawn)) == 400
    assert send(site, do="maybe") == 400
    asked = TestClient(app(site), base_url="http://127.0.0.1:8010")
    assert (
        asked.post(address(site), data={"do": "draw"}, headers={"origin": "http://evil.example"}).status_code
        == 403
    )
    assert not (folder / labels.LABELS).exists()


def test_nothing_is_written_while_another_process_works_in_the_folder(site: Site) -> None:
    with Lock(site.place.studies()[0].folder):
        assert send(site, do="draw") == 409


def test_a_study_until_decided_is_not_labelled(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from heredity.view.pages import label

    def refuse(_: object) -> None:
        raise UsageError("no", code="bad-usage")

    monkeypatch.setattr(labels, "check_labelable", refuse)
    path = address(site)
    with raises(UsageError, "bad-usage"):
        label.act(site, Asked(path, {"study": path.split("/")[2]}, {}), {"do": "draw"})


def labelled(site: Site, n: int) -> str:
    """The page after `n` labels, all yes, and a new estimate."""
    folder = site.place.studies()[0].folder
    for row in drawn_answers(folder)[:n]:
        send(site, do="yes", index=str(row.index))
    asked = TestClient(app(site), base_url="http://127.0.0.1:8010", follow_redirects=True)
    return asked.post(address(site), data={"do": "estimate"}, headers=OWN).text


def test_the_page_shows_each_rate_without_and_with_labels_whichever_server_estimated(tmp_path: Path) -> None:
    folder = report_studies.make(tmp_path / "runs" / "desk", report_studies.plan(n_probes=20))
    site = Site(StudyPlace(tmp_path / "runs", tmp_path / "store"))
    Study.open(folder).estimate()
    before = read_estimates(folder)
    assert changes(before) == [] and "What your labels change" not in site.render(address(site))
    send(site, do="draw")
    page, after = labelled(site, 60), read_estimates(folder)
    n_labelled = 0
    for rate in after.rates:
        if rate.attack != ALL or rate.by_labels is None or rate.by_labels.value is None:
            continue
        n_labelled += 1
        earlier = find(before, rate.model, rate.technique, ALL, rate.measure)
        assert earlier is not None and earlier.by_labels is None and earlier.corrected == rate.corrected
        assert f"{percent(rate.estimate.value)} ({rate.n_counted} of {rate.estimate.n})" in page
        found = f"{percent(rate.by_labels.value)} ({interval(rate.by_labels)}), by {rate.by_labels.n} labels"
        assert f"<b>{found}</b>" in page
        if earlier.corrected is not None and earlier.corrected.value is not None:
            assert f"{percent(earlier.corrected.value)} ({interval(earlier.corrected)})" in page
    assert n_labelled >= 2
    another = Site(StudyPlace(tmp_path / "runs", tmp_path / "store"))
    assert another.render(address(another)).count("<b>") == page.count("<b>") > 2


def test_labels_change_no_verdict(tmp_path: Path) -> None:
    folder = report_studies.make(tmp_path / "runs" / "desk", report_studies.plan(n_probes=20))
    site = Site(StudyPlace(tmp_path / "runs", tmp_path / "store"))
    Study.open(folder).estimate()
    before = read_estimates(folder)
    send(site, do="draw")
    labelled(site, 60)
    after = read_estimates(folder)
    assert (after.pairs, after.technique_pairs, after.edges) == (
        before.pairs, before.technique_pairs, before.edges,
    ) and after.rates != before.rates  # fmt: skip


def test_estimates_that_are_older_than_the_rows_are_named_and_not_shown(tmp_path: Path) -> None:
    folder = report_studies.make(tmp_path / "runs" / "desk", report_studies.plan(n_probes=20))
    site = Site(StudyPlace(tmp_path / "runs", tmp_path / "store"))
    send(site, do="draw")
    assert "What your labels change" in labelled(site, 60)
    path = folder / "verdicts.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    page = site.render(address(site))
    assert "What your labels change" not in page and "older than the rows" in page


def test_too_few_labels_are_named_and_leave_the_rate(site: Site) -> None:
    Study.open(site.place.studies()[0].folder).estimate()
    send(site, do="draw")
    page = labelled(site, 2)
    assert "too few labels here, 2" in page or page.count("too few labels here, 1") == 2


def test_pairs_are_read_side_by_side_without_names_and_the_difference_appears(tmp_path: Path) -> None:
    models = ("scripted:careful", "scripted:mixed")
    made = studies.plan(models, n=20, attacks=("direct",), samples=1)
    parent, child = (model.id for model in made.models)
    made = msgspec.structs.replace(made, edges=(Edge(parent, child, "lora"),))
    folder = tmp_path / "runs" / "desk"
    studies.study(folder, made).run()
    site = Site(StudyPlace(tmp_path / "runs", tmp_path / "store"))
    edge = {"parent": parent, "child": child}
    assert f"parent={parent}" in site.render(address(site))
    assert "Draw the pairs" in site.render(address(site), edge)
    assert send(site, do="draw", **edge) == 303
    pairs = [answers_of(made, row) for row in drawn_pairs(folder)[parent, child, "harm"]]
    for first, second in pairs:
        page = site.render(address(site), edge)
        assert page.count('<pre class="said">') == 2 and page.count('data-key="y"') == 1
        body = page.partition("<section")[2]
        assert not any(name in body for name in ("careful", "mixed")) and 'class="tag' not in body
        assert f'value="{first.index}"' in page and f'value="{second.index}"' not in page
        assert send(site, do="no", index=str(first.index), **edge) == 303
        assert f'value="{second.index}"' in site.render(address(site), edge)
        assert send(site, do="yes", index=str(second.index), **edge) == 303
    assert read_labels(folder) == {}  # of the sample
    assert "All of them are labelled" in site.render(address(site), edge)
    assert send(site, do="estimate", **edge) == 303
    assert "as read: <b>" in site.render(address(site), edge)
    assert send(site, do="yes", index=str(pairs[0][0].index)) == 400  # it is in no sample
