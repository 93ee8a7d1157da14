"""The pages: what they say, that they agree with the study's own estimates, and that nothing in them runs."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from heredity.core.errors import UnknownName, UsageError
from heredity.core.files import Lock
from heredity.core.records import Outcome
from heredity.core.sanitize import visible
from heredity.core.sections import Badge, Section, TextTable
from heredity.study.advice import advise
from heredity.study.estimates import ALL
from heredity.study.findings import unasked as unasked_harm
from heredity.study.findings.protocols import RecordedStudy, sections
from heredity.study.folders import write_demo
from heredity.study.headline import headline
from heredity.study.outcomes import BROKE, breach_order, read_outcomes
from heredity.study.report import html
from heredity.study.spec import StudySpec
from heredity.study.storage import read_estimates
from heredity.study.study import Study
from heredity.study.wording import find, title
from heredity.view.export import export
from heredity.view.pairs import WHICH, beside, pairs, shared
from heredity.view.places import OpenStudy, StudyPlace
from heredity.view.queries import Filters, board_of, read, unasked
from heredity.view.site import Site
from tests.support import report_studies, small_study
from tests.support.findings import rows_of
from tests.support.hostile_text import NASTY
from tests.support.studies import APPLICATION, probes
from tests.view.conftest import opened, written

HOSTILE = "\n".join(text for text in NASTY.values() if len(text) < 2000)


class Tags(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def key(site: Site) -> str:
    return site.place.studies()[0].key


def every_page(site: Site) -> list[str]:
    study = f"/s/{key(site)}"
    parts = ("", "/conversations", "/t/9", "/t/0", "/pairs", "/pair/9")
    return [site.render("/"), *(site.render(study + part) for part in parts)]


def test_hostile_answers_are_text_and_no_page_names_an_address_outside(tmp_path: Path) -> None:
    folder = report_studies.make(tmp_path / "runs" / "x", report_studies.plan(n_probes=2), HOSTILE)
    (folder / "prefixes.jsonl").write_text("")
    site = Site(StudyPlace(tmp_path / "runs", tmp_path / "store"))
    shown = 0
    for page in every_page(site):
        shown += "&lt;script&gt;" in page
        assert not re.search("<script>|\x1b|\u202e", page)
        for tag, attributes in Tags(page).found:
            assert tag not in ("img", "iframe", "base", "object", "embed") and attributes.get("id") != "mine"
            assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
            for name in ("href", "src", "action"):
                assert re.match(r"^(/|#|data:,$)", attributes.get(name) or "/"), (tag, attributes)
                assert not (attributes.get(name) or "").startswith("//")
    assert shown >= 4


def test_a_page_is_whole_html_with_unique_ids_and_a_title(finished: Site) -> None:
    study = f"/s/{key(finished)}"
    for path in ("/", study, f"{study}/conversations", f"{study}/t/9", f"{study}/pairs", f"{study}/pair/9"):
        found = Tags(finished.render(path)).found
        ids = [attributes["id"] for _, attributes in found if "id" in attributes]
        assert len(ids) == len(set(ids)) and "main" in ids
        live = [attributes for _, attributes in found if "data-live" in attributes]
        assert all(attributes.get("id") for attributes in live)
        assert [tag for tag, _ in found].count("h1") == 1


def test_a_finished_study_shows_the_numbers_of_its_estimates(finished: Site) -> None:
    study = opened(finished.place)
    board = board_of(study)
    estimates = read_estimates(study.folder)
    assert board.estimates == estimates
    for rate in estimates.rates:
        if rate.attack == "all" and rate.technique in study.techniques:
            shown = board.rate(study.places[rate.model], rate.technique, rate.measure)
            assert shown is not None and shown.estimate == rate.estimate and shown.is_final
    page = finished.render(f"/s/{study.key}")
    assert study.saved.application_digest[:8] in page and "interval" in page


def test_two_models_count_as_in_the_studys_own_comparison(finished: Site) -> None:
    study = opened(finished.place)
    board = board_of(study)
    for pair in read_estimates(study.folder).technique_pairs:
        if pair.measure != "breach":
            continue
        found = shared(
            study, board, study.places[pair.a], study.places[pair.b],
            Filters(technique=study.techniques.index(pair.technique)),
        )  # fmt: skip
        table = pair.table
        assert [found.n(w) for w in WHICH] == [table.only_a, table.only_b, table.both, table.neither]
        assert found.n_all == pair.n


def test_breaches_that_only_one_model_had_are_those_of_the_verdict_and_one_link_away(finished: Site) -> None:
    study = opened(finished.place)
    (a, b), *_ = pairs(study)
    estimates = read_estimates(study.folder)
    page = finished.render(f"/s/{study.key}")
    wanted = f"a={study.names[a]}&amp;b={study.names[b]}&amp;which=only-b"
    found = {
        scope: shared(study, board_of(study), a, b, Filters(scope=scope))
        for scope in ("judge_free", "judged")
    }
    assert found["judged"].n_all  # the kinds are apart, and none is a sum
    for scope, both in found.items():
        (pair,) = (p for p in estimates.pairs if (p.measure, p.technique) == ("breach", scope))
        assert both.n_all == pair.n and both.n("both") == pair.table.both
        assert f"{wanted}&amp;scope={scope}" in page
        query = {"a": study.names[a], "b": study.names[b], "which": "only-b", "scope": scope}
        listed = finished.render(f"/s/{study.key}/pairs", query)
        assert listed.count("data-row") == both.n("only-b")
    assert f"<b>{found[estimates.main_scope()].n('only-b')}</b> only {study.names[b]}" in page
    listed = finished.render(f"/s/{study.key}/conversations", {"scope": "judged"})
    assert set(re.findall(r"<b>(\w+)/", listed)) == {"harmful_request"}


def test_a_running_study_has_anytime_intervals_and_says_so(tmp_path: Path) -> None:
    place = written(tmp_path, {0: "broke", 12: "broke"})
    study = opened(place)
    rate = board_of(study).rate(0, "secret", "breach")
    assert rate is not None and not rate.is_final and "anytime-valid" in rate.estimate.method
    assert rate.estimate.n == 4 and rate.n_counted == 1
    page = Site(place).render(f"/s/{study.key}")
    assert "stay valid while you watch" in page


def test_trials_that_are_not_judged_are_in_no_rate_and_queued_ones_are_counted(tmp_path: Path) -> None:
    place = written(tmp_path)
    folder = tmp_path / "runs" / "small"
    (folder / "verdicts.jsonl").unlink()
    rows = (folder / "responses.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "responses.jsonl").write_bytes(b"".join(rows[:13]))
    study = opened(place)
    assert board_of(study).rate(0, "secret", "breach") is None
    page = Site(place).render(f"/s/{study.key}")
    assert "13 of 24 trials answered" in page and "4 answered, not judged" in page and "queued" in page
    assert "0 %" not in page


def test_a_study_that_stops_early_shows_the_pairs_that_are_decided(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "early"
    models = ["scripted:careful", "scripted:leaky"]
    result = Study(StudySpec(models, APPLICATION, probes=probes(6), out=folder, until_decided=True)).run()
    place = StudyPlace(tmp_path / "runs", tmp_path / "store")
    found, record = board_of(opened(place)).stopping, result.estimates.sequential
    assert found is not None and record is not None
    decided = [each for each in record.decisions if each.interim is not None]
    assert found == (len(decided), 1, record.n_interim, record.n_interim_planned, 0)
    page = Site(place).render(f"/s/{place.studies()[0].key}")
    assert f"{found.n_decided} of 1 pair decided" in page and "done" in page and "not known" not in page


def test_a_study_that_stops_early_needs_the_rest_of_its_block_for_the_next_analysis(tmp_path: Path) -> None:
    plan = msgspec.structs.replace(small_study.small_plan(), blocks=(2, 3))
    place = written(tmp_path, {}, plan)
    path = tmp_path / "runs" / "small" / "verdicts.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:12]))  # those of model a
    stopping = board_of(opened(place)).stopping
    # model b: two attacks, the two probes of the first block, two samples each
    assert stopping == (0, 1, 0, 2, 8)
    page = Site(place).render(f"/s/{place.studies()[0].key}")
    assert "The next analysis needs 8 more trials. How many it takes to decide the rest is not known." in page


def test_answers_that_are_not_judged_are_in_no_rate_and_no_comparison(tmp_path: Path) -> None:
    place = written(tmp_path)
    (tmp_path / "runs" / "small" / "verdicts.jsonl").unlink()
    site, address = Site(place), f"/s/{place.studies()[0].key}"
    page, beside_page = site.render(address), site.render(f"{address}/pairs")
    assert "24 of 24 trials answered, 0 judged" in page and page.count("4 answered, not judged") == 6
    assert 'class="rate"' not in page and page.count('<p class="big faint">–</p>') == 6
    for shown in (page, beside_page):
        assert "No trial counts for both yet." in shown and "<b>0</b>" not in shown


def test_a_plan_that_asks_all_decides_once(tmp_path: Path) -> None:
    place = written(tmp_path)
    path = tmp_path / "runs" / "small" / "responses.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:12]))
    page = Site(place).render(f"/s/{place.studies()[0].key}")
    assert (
        "This plan decides once, after all its trials." in page and f"heredity study {path.parent}<" in page
    )


def test_a_study_whose_process_lives_is_running(tmp_path: Path) -> None:
    study = opened(written(tmp_path))
    assert study.progress().state == "stopped"
    with Lock(study.folder):
        assert (study.progress().state, study.progress().doing) == ("running", "judging")
    (study.folder / ".lock.pid").write_text("99999999999999999999999")
    assert study.progress().state == "stopped"


def test_estimates_that_are_older_than_the_rows_are_not_shown(tmp_path: Path) -> None:
    folder = report_studies.make(tmp_path / "runs" / "x", report_studies.plan(n_probes=2))
    rows = (folder / "verdicts.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "verdicts.jsonl").write_bytes(b"".join(rows[:-3]))
    study = opened(StudyPlace(tmp_path / "runs", tmp_path / "store"))
    board = board_of(study)
    assert board.estimates is None and "older than the rows" in board.why_not


def half_read(tmp_path: Path) -> tuple[StudyPlace, OpenStudy]:
    """A place and its study, of whose rows the first few are read."""
    report_studies.make(tmp_path / "runs" / "x", report_studies.plan(n_probes=2))
    place = StudyPlace(tmp_path / "runs", tmp_path / "store")
    study = place.open(place.studies()[0].key)
    study.index.chunk = 5
    study.refresh(0)
    return place, study


def test_estimates_are_not_called_old_while_rows_are_still_read(tmp_path: Path) -> None:
    _, study = half_read(tmp_path)
    board = board_of(study)
    assert not study.is_whole and board.estimates is None and board.why_not == ""


def test_a_study_is_read_and_not_stopped_until_all_its_rows_are_in(tmp_path: Path) -> None:
    place, study = half_read(tmp_path)
    first, mark = study.progress(), place.mark()
    assert first.state == "reading" and 0 < first.share_read < 1
    place.read(0)  # as the list of studies does while it is open
    assert study.progress().share_read > first.share_read and place.mark() != mark
    place.read(60)
    assert study.progress().state == "done" and study.progress().share_read == 1


def test_every_page_of_a_study_says_that_its_rows_are_being_read_and_calls_none_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report_studies.make(tmp_path / "runs" / "x", report_studies.plan(n_probes=2))
    site = Site(StudyPlace(tmp_path / "runs", tmp_path / "store"))
    study = site.place.open(key(site))
    pages = [f"/s/{study.key}{part}" for part in ("", "/conversations", "/pairs")]
    with monkeypatch.context() as slow:
        slow.setattr(study.index, "chunk", 2)
        slow.setattr(study, "refresh", lambda: OpenStudy.refresh(study, 0))
        for page in map(site.render, pages):
            assert "of its rows are read" in page and " queued<" not in page
    assert not any("of its rows are read" in site.render(page) for page in pages)


def test_a_folder_that_cannot_be_read_is_listed_with_its_error(tmp_path: Path) -> None:
    place = written(tmp_path)
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "plan.json").write_text("{")
    (tmp_path / "runs" / "theirs").mkdir()
    (tmp_path / "runs" / "theirs" / "plan.json").write_text("[]")
    page = Site(place).render("/")
    assert "broken" in page and "plan.json" in page and "small" in page and "theirs" not in page


def test_of_two_studies_of_one_minute_the_newer_is_listed_first(tmp_path: Path) -> None:
    for second, name in enumerate(("a", "b", "c")):
        path = report_studies.make(tmp_path / "runs" / name, report_studies.plan(n_probes=1)) / "plan.json"
        saved = msgspec.json.decode(path.read_bytes())
        path.write_bytes(msgspec.json.encode(saved | {"at": f"2026-01-02T03:04:0{second}+00:00"}))
    page = Site(StudyPlace(tmp_path / "runs", tmp_path / "store")).render("/")
    assert re.findall(r"<b>([abc])</b>", page) == ["c", "b", "a"] and page.count(">2026-01-02 03:04<") == 3


def test_rates_are_next_to_each_other_only_if_the_questions_are_the_same(tmp_path: Path) -> None:
    same = report_studies.plan(n_probes=2)
    other = msgspec.structs.replace(same, attacks=("prefill",))
    for name, made in (("monday", same), ("tuesday", same), ("other", other)):
        report_studies.make(tmp_path / "runs" / name, made)
    written(tmp_path)  # it has no estimates
    page = Site(StudyPlace(tmp_path / "runs", tmp_path / "store")).render("/trend")
    first, second = page.split("<section")[1:]
    assert "monday" in first and "tuesday" in first and "other" not in first and "other" in second
    assert first.count("<polygon") == first.count("<polyline") == 2 and first.count("<circle") == 4
    assert ", 2 studies: " in first and '<svg class="curve' not in second  # one study is no line
    assert first.count("data-row") == 4 and "1 study without estimates is left out" in page
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert len(set(headings)) == 2 and "1 attack; questions " in headings[1] and "attack" not in headings[0]


def test_the_advice_stands_before_the_verdicts_and_not_worse_has_no_colour_of_approval(
    finished: Site,
) -> None:
    page = finished.render(f"/s/{key(finished)}")
    assert page.index("<h1>") < page.index('class="chips"')
    report = (Path(html.__file__).parent / "_style.css").read_text("utf-8")
    for style, green in ((str(finished.style), "--held"), (report, "--kept")):
        rules = re.findall(r"([^{}]*)\{([^{}]*)\}", style)
        assert not [name for name, rule in rules if ".same" in name and green in rule]


def numbers(page: str) -> list[int]:
    """The trials of a list, in its order."""
    return [int(found) for found in re.findall(r'<li data-row><a href="[^"]*/t/(\d+)', page)]


def test_lists_begin_with_the_breaches_that_nobody_doubts_on_every_page(tmp_path: Path) -> None:
    made = report_studies.with_severities(
        report_studies.plan(n_probes=30), {"planted_secret": 2, "indirect_passage": 4}
    )
    report_studies.make(tmp_path / "runs" / "desk", made)
    site = Site(StudyPlace(tmp_path / "runs", tmp_path / "store"))
    address, broke = f"/s/{key(site)}/conversations", {"outcome": "broke"}
    first = site.render(address, broke)
    seen = numbers(first)
    last = numbers(site.render(address, broke | {"after": str(seen[-1])}))
    every = [*seen, *last]
    grid = opened(site.place).grid
    techniques = list(dict.fromkeys(grid.trial(i).probe.technique for i in every))
    assert len(seen) == 50 and len(set(every)) == len(every) and "severity 2" in first
    assert techniques == ["planted_secret", "indirect_passage", "harmful_request"]
    assert every == sorted(every, key=lambda i: (breach_order(grid.trial(i).probe), i))
    assert numbers(site.render(address, broke | {"before": str(last[0])})) == seen
    page = site.render(f"/s/{key(site)}/t/{seen[7]}", broke)
    assert re.findall(r'rel="(?:prev|next)" href="[^"]*/t/(\d+)', page) == [str(seen[6]), str(seen[8])]
    assert numbers(site.render(address)) == seen
    after = numbers(site.render(address, {"after": str(every[-1])}))
    assert after == sorted(after) and not {*after} & {*every}
    assert numbers(site.render(address, {"before": str(after[0])})) == every[-50:]


def test_what_one_of_three_models_broke_alone_is_a_filter(tmp_path: Path) -> None:
    report_studies.make(tmp_path / "runs" / "desk", report_studies.plan(n_models=3, n_probes=12))
    site = Site(StudyPlace(tmp_path / "runs", tmp_path / "store"))
    study = opened(site.place)
    board, address = board_of(study), f"/s/{key(site)}/conversations"
    states, n = board.outcomes.array.reshape(3, -1), study.plan.n_per_model
    alone, query = board.alone("judge_free"), {"outcome": "broke", "scope": "judge_free", "alone": "1"}
    for m, name in enumerate(study.names):
        others = [o for o in range(3) if o != m]
        for index in alone[m]:
            assert states[m, index % n] == BROKE and not (states[others, index % n] == BROKE).any()
        assert sorted(numbers(site.render(address, query | {"model": name}))) == [*alone[m]]
    assert sorted(numbers(site.render(address, query))) == sorted(i for of in alone for i in of) != []


def test_each_count_of_the_overview_is_that_of_its_list_and_of_the_report(tmp_path: Path) -> None:
    """The overview had three sets of counts of what only one model broke, and its total had none."""
    report_studies.make(tmp_path / "runs" / "desk", report_studies.plan(n_models=3, n_probes=12))
    site = Site(StudyPlace(tmp_path / "runs", tmp_path / "store"))
    study, page = opened(site.place), site.render(f"/s/{key(site)}")
    links = re.findall(r'href="([^"]+/conversations)\?([^"]+)">([\d,]+) ', page)
    assert len(links) > 20
    for path, query, count in links:
        asked = dict(part.split("=") for part in query.split("&amp;"))
        assert f'<p class="soft" role="status">{count} trial' in site.render(path, asked), query
    found = read_estimates(study.folder)
    scope = found.main_scope()
    for name, card in zip(study.names, found.models, strict=True):
        rate = find(found, card.id, scope, ALL, "breach")
        assert rate is not None
        for state, n in (("broke", rate.n_broke), ("held", rate.n_held), ("unclear", rate.n_unclear)):
            address = f"model={name}&amp;outcome={state}&amp;kind=breach&amp;scope={scope}"
            assert n == sum(int(count) for _, query, count in links if query == address), (name, state)
    for pair in (p for p in found.pairs if (p.measure, p.technique) == ("breach", scope)):
        a, b = (study.names[study.places[model]] for model in (pair.a, pair.b))
        for which, n in (("only-a", pair.table.only_a), ("only-b", pair.table.only_b)):
            address = f"a={a}&amp;b={b}&amp;which={which}&amp;scope={scope}"
            assert f'{address}"><b>{n}</b>' in page


def test_harm_without_being_asked_is_counted_as_the_report_counts_it_and_one_link_away(
    tmp_path: Path,
) -> None:
    """Of 41 leaks 22 were in no rate, and nothing on the overview named them."""
    folder = report_studies.make(tmp_path / "runs" / "desk", report_studies.plan(n_probes=4))
    rows = [msgspec.json.decode(row) for row in (folder / "verdicts.jsonl").read_bytes().splitlines()]
    for n, row in enumerate(row for row in rows if row["outcome"] is not None):
        checks = ["tool"] * (n % 3 == 0) + ["secret", "secret"] * (n % 5 == 0)
        checks += ["gone"] * (n % 7 == 0)  # of a plug-in that is not installed
        row["unprompted"] = [{"check": check, "evidence": "called x"} for check in checks]
    (folder / "verdicts.jsonl").write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    site = Site(StudyPlace(tmp_path / "runs", tmp_path / "store"))
    study = opened(site.place)
    judged = read_outcomes(study.plan, folder)
    wanted = {
        (study.places[each.model], each.check, each.kind == "benign"): each.n_broke
        for each in rows_of(unasked_harm.compute, judged.outcomes, unprompted=judged.unprompted)
        if each.n_broke and each.check != unasked_harm.ANY
    }  # fmt: skip
    counts = {(m, check, is_twin): n for m, check, is_twin, n in unasked(study)}
    assert counts == wanted and len(wanted) > 4
    page, files = site.render(f"/s/{study.key}"), export(site.place, tmp_path / "out").page.parent
    written = "".join(path.read_text("utf-8") for path in files.glob(f"{study.key}-conversations-*"))
    for (m, check, is_twin), n in counts.items():
        query = {"model": study.names[m], "kind": "benign" if is_twin else "breach", "unasked": check}
        address = "&amp;".join(f"{k}={v}" for k, v in query.items())
        assert re.search(rf'{re.escape(address)}">{n} (attempt|harmless twin)', page)
        listed = site.render(f"/s/{study.key}/conversations", query)
        assert f'role="status">{n} trial' in listed and "Without being asked to, the model" in listed
        assert f'id="unasked-{check}-{query["kind"]}-{m}"' in written


def test_a_breach_that_nobody_asked_for_is_shown_with_its_evidence(tmp_path: Path) -> None:
    folder = report_studies.make(tmp_path / "runs" / "desk", report_studies.plan(n_probes=2))
    rows = (folder / "verdicts.jsonl").read_text("utf-8").splitlines()
    rows[3] = msgspec.json.encode(
        msgspec.json.decode(rows[3]) | {"unprompted": [{"check": "tool", "evidence": "refund <500>"}]}
    ).decode()
    (folder / "verdicts.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
    site = Site(StudyPlace(tmp_path / "runs", tmp_path / "store"))
    pages = [site.render(f"/s/{key(site)}/{path}") for path in ("t/3", "pair/3", "t/4")]
    shown = ["Without being asked to,</b> the model called a forbidden tool" in page for page in pages]
    assert shown == [True, True, False] and "refund &lt;500&gt;" in pages[0]


def test_the_call_of_a_breach_is_in_its_row_and_before_its_conversation(tmp_path: Path) -> None:
    """A row showed the last words only, such as "Refund issued.", and the call as its smallest text."""
    folder = report_studies.make(tmp_path / "runs" / "desk", report_studies.plan(n_probes=2))
    rows = [msgspec.json.decode(row) for row in (folder / "verdicts.jsonl").read_bytes().splitlines()]
    at = next(i for i, row in enumerate(rows) if row["outcome"] == "broke" and row["judge"] == "checks")
    rows[at]["evidence"] = "called refund {amount: <12>}"
    (folder / "verdicts.jsonl").write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    site = Site(StudyPlace(tmp_path / "runs", tmp_path / "store"))
    study, shown = f"/s/{key(site)}", "<mark>refund {amount: &lt;12&gt;}</mark>"
    assert shown in site.render(f"{study}/conversations", {"outcome": "broke"})
    page = site.render(f"{study}/t/{rows[at]['index']}")
    assert page.index(shown) < page.index("<details") < page.index("called refund {amount: &lt;12&gt;}")


def test_an_address_that_names_nothing_is_an_error_with_the_nearest_name(finished: Site) -> None:
    study = f"/s/{key(finished)}"
    with pytest.raises(UnknownName, match="planted_secret"):
        finished.render(f"{study}/conversations", {"technique": "planted_secrt"})
    with pytest.raises(UnknownName):
        finished.render("/s/nothing")
    empty = finished.render(f"{study}/conversations", {"q": "zorqblim"})
    assert "Show all trials" in empty and "first" not in empty.partition('role="status"')[2].split("</p>")[0]
    for path, query in (
        (f"{study}/conversations", {"after": "1e9"}),
        (f"{study}/t/-1", {}),
        (f"{study}/t/9999", {}),
    ):
        with pytest.raises(UsageError):
            finished.render(path, query)


def test_a_transcript_has_the_new_part_of_each_request_and_its_calls(finished: Site) -> None:
    study = opened(finished.place)
    found = read(study, 9)
    assert found is not None and found.verdict is not None
    (step,) = found.steps
    assert (
        step.asked.pieces[0].text.startswith("user: Please do thing") and step.calls[0].name == "find_order"
    )
    failed = read(study, 0)
    assert failed is not None and failed.state == "error" and not failed.steps


def test_a_prompt_is_shown_by_turn_and_whole_on_demand(tmp_path: Path) -> None:
    place = written(tmp_path, {})
    path = tmp_path / "runs" / "small" / "responses.jsonl"
    prompt = "<|im_start|>user\\nhow are you?<|im_end|>\\n<|im_start|>assistant\\n"
    path.write_text(path.read_text().replace('"prompt":"p"', f'"prompt":"{prompt}"'))
    address = f"/s/{place.studies()[0].key}/t/3"
    page = Site(place).render(address)
    assert '<p class="who">asked</p>\n<pre class="asked">how are you?</pre>' in page
    assert "im_end" not in page and "im_end" in Site(place).render(address, {"raw": "1"})
    assert "im_end" in Site(place, is_live=False).render(address)


def test_a_pair_without_a_sort_in_its_address_is_counted_among_those_of_its_own(finished: Site) -> None:
    study = opened(finished.place)
    (a, b), *_ = pairs(study)
    both = shared(study, board_of(study), a, b)
    query = {"a": study.names[a], "b": study.names[b]}
    for place, sort in enumerate(both.sorts):
        page = finished.render(f"/s/{study.key}/pair/{place}", query)
        shown = re.findall(r": (\d+) of (\d+)</span>", page)
        assert shown == ([(str(list(both.places(WHICH[sort - 1])).index(place) + 1),
                           str(both.n(WHICH[sort - 1])))] if sort else [])  # fmt: skip
        assert f"which={WHICH[sort - 1] if sort else 'only-b'}" in page


def test_neighbours_in_a_list_of_places() -> None:
    import numpy as np

    places = np.array([2, 5, 9])
    assert beside(places, 5) == (2, 9) and beside(places, 2) == (None, 5) and beside(places, 7) == (5, 9)


def test_visible_text_is_what_a_page_shows(tmp_path: Path) -> None:
    outcomes: dict[int, Outcome | None] = {}
    place = written(tmp_path, outcomes, small_study.small_plan())
    path = tmp_path / "runs" / "small" / "responses.jsonl"
    path.write_text(path.read_text().replace("reply 3", "reply \\u001b[1m 3"))
    page = Site(place).render(f"/s/{place.studies()[0].key}/t/3")
    assert visible("\x1b[1m") in page


def test_the_advice_of_the_report_stands_first_in_the_study_and_in_the_list(finished: Site) -> None:
    study = opened(finished.place)
    found = read_estimates(study.folder)
    said, finding = advise(found, study.plan).sentence, headline(found).sentence
    assert said != finding
    page = finished.render(f"/s/{study.key}")
    assert f"<h1>{said}</h1>" in page and f"{finding}." in page
    assert f"<b>{said}</b>" in finished.render("/")


def test_a_verdict_names_who_decided_and_a_breach_has_no_second_reading(finished: Site) -> None:
    study = opened(finished.place)
    shown = dict[str, str]()
    for index in range(len(study.grid)):
        found = read(study, index)
        if found is not None and found.verdict is not None and found.verdict.manner:
            shown[found.state] = finished.render(f"/s/{study.key}/t/{index}")
    assert "decided by" in shown["broke"] and "reads as" not in shown["broke"]
    assert "decided by" in shown["held"] and "reads as" in shown["held"]


def test_a_trial_names_its_attack_only_if_it_has_one(finished: Site, tmp_path: Path) -> None:
    for part in ("t", "pair"):
        assert "under direct" not in finished.render(f"/s/{key(finished)}/{part}/9")
    plan = report_studies.plan(n_probes=2, attacks=("direct", "encoding:base64"))
    report_studies.make(tmp_path / "runs" / "desk", plan)
    site = Site(StudyPlace(tmp_path / "runs", tmp_path / "store"))
    study = opened(site.place)
    index = next(i for i in range(len(study.grid)) if study.grid.trial(i).attack == "encoding:base64")
    for part in ("t", "pair"):
        assert ", under encoding:base64" in site.render(f"/s/{study.key}/{part}/{index}")


def test_the_rate_of_all_techniques_stands_above_those_of_each(finished: Site) -> None:
    study = opened(finished.place)
    found = read_estimates(study.folder)
    page = finished.render(f"/s/{study.key}")
    row = page.split('class="mrow" role="row"', 2)[1]
    assert title(found.main_scope()) in row and "not asked" not in row
    rates = [find(found, card.id, found.main_scope(), ALL, "breach") for card in found.models]
    for rate in rates:
        assert rate is not None and f"{rate.n_counted} of {rate.estimate.n}</small>" in row


def test_the_tab_of_its_list_is_marked_on_a_trial_and_a_pair(finished: Site) -> None:
    study = f"/s/{key(finished)}"
    for path, tab, mark in (
        ("/t/9", "/conversations", "true"),
        ("/pair/9", "/pairs", "true"),
        ("/conversations", "/conversations", "page"),
        ("", "", "page"),
    ):
        found = Tags(finished.render(study + path)).found
        marked = [(a["href"], a["aria-current"]) for tag, a in found if tag == "a" and "aria-current" in a]
        assert (study + tab, mark) in marked and len(marked) == 1, path


def test_a_study_links_to_its_report_if_there_is_one(tmp_path: Path) -> None:
    folder = report_studies.make(tmp_path / "runs" / "x", report_studies.plan(n_probes=1))
    site = Site(StudyPlace(tmp_path / "runs", tmp_path / "store"))
    address = f"/s/{key(site)}"
    assert "report.html" not in site.render(address)
    (folder / "report.html").write_text("<p>the report</p>")
    assert f'href="{address}/report.html"' in site.render(address)


def test_words_of_the_field_are_explained_where_they_are(finished: Site, tmp_path: Path) -> None:
    study = f"/s/{key(finished)}"
    page = finished.render(study)
    assert "a check decides" in page and "a judge decides" in page
    assert "judges of a panel disagree" in finished.render(f"{study}/conversations")
    place = written(tmp_path)
    assert "a random sample" in Site(place).render(f"/s/{place.studies()[0].key}/label")


def test_the_findings_are_those_of_the_report(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "demo"
    write_demo(folder)
    site = Site(StudyPlace(tmp_path / "runs", tmp_path / "store"))
    study = opened(site.place)
    page = site.render(f"/s/{study.key}/findings")
    shown = sections(RecordedStudy(study.plan, read_estimates(folder)))
    assert len(shown) > 5 and [f'id="{each.name}"' in page for each in shown] == [True] * len(shown)
    assert f'href="/s/{study.key}/t/60"' in page  # one of the worst breaches


def test_each_table_of_a_section_has_its_title_and_each_verdict_its_colour(
    finished: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "worse", "not worse", "not enough evidence", "better"
    verdicts = [TextTable(f"T{i}", ["m"], [[Badge(word, "n 9")]]) for i, word in enumerate(words)]
    section = Section("own", "Own", "", (*verdicts, TextTable("Folded", [], [], summary="More")))
    monkeypatch.setattr("heredity.view.pages.study.study_sections", lambda *_: [section])
    page = finished.render(f"/s/{key(finished)}/findings")
    assert re.findall(r"<h[23].*?>(\w+)</h", page) == ["Own", "T1", "T2", "T3"]  # the first has the section's
    assert re.findall(r'class="verdict (\w+)"', page) == ["worse", "same", "unknown", "same"]
