import base64
import hashlib
import json
import re
import shutil
import subprocess
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heredity.core.errors import Damaged, NotComparable, UsageError
from heredity.core.records import digest, encode
from heredity.stats.intervals import refused
from heredity.study import storage
from heredity.study.estimates import SCHEMA
from heredity.study.folders import write_demo
from heredity.study.plan import PlanFile, PlannedModel
from heredity.study.report import _rows, html
from tests.support.errors import raises
from tests.support.hostile_text import NASTY
from tests.support.report_studies import ADDRESSES, make, plan

# What the template itself may use: anything else in the page came out of somebody's mouth.
TAGS = """
    html head meta title style body div a header p nav main section h1 h2 h3 table caption thead tbody tr th
    td span small b i em code pre dl dt dd details summary figure figcaption ol li footer br svg path line
    rect text h4 mark
""".split()  # noqa: SIM905 (a list to read)
ATTRIBUTES = """
    lang charset http-equiv content name class href id aria-label aria-labelledby aria-hidden role tabindex
    scope
    colspan rowspan title data-label width height viewbox x y x1 x2 y1 y2 d transform text-anchor overflow
    open rel
""".split()  # noqa: SIM905
VOID = {"meta", "br"}


class Page(HTMLParser):
    """Every tag, attribute and text of a page; fails where a tag is closed that is not open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(key, value or "") for key, value in attrs]
        self.ids += [value or "" for key, value in attrs if key == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(key, value or "") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes what is not open"

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page_with(tmp_path: Path, answer: str) -> str:
    return html.render(make(tmp_path, plan(n_probes=2), answer=answer))


def assert_is_clean(page: str) -> None:
    parsed = Page(page)
    assert parsed.tags <= set(TAGS), parsed.tags - set(TAGS)
    assert {key for key, _ in parsed.attributes} <= set(ATTRIBUTES)
    targets = [value for key, value in parsed.attributes if key == "href"]
    assert all(target.startswith(("#", *ADDRESSES)) for target in targets)
    assert parsed.open == []
    page.encode()


@pytest.fixture(scope="module")
def page(study: Path) -> str:
    return html.render(study)


def test_the_page_is_well_formed_and_uses_only_its_own_tags(page: str) -> None:
    assert_is_clean(page)


@pytest.mark.slow
@pytest.mark.parametrize("answer", NASTY.values(), ids=NASTY)
def test_nothing_that_a_model_says_becomes_markup(tmp_path: Path, answer: str) -> None:
    page = page_with(tmp_path, answer)
    assert_is_clean(page)
    assert len(page) < 600_000


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(
        st.one_of(st.sampled_from("<>\"'&{}%-/= \x00\x1b\u202e"), st.characters(exclude_categories=["Cs"]))
    )
)
def test_no_answer_at_all_becomes_markup(tmp_path: Path, answer: str) -> None:
    assert_is_clean(page_with(tmp_path, answer))


@pytest.mark.slow
@pytest.mark.parametrize("name", NASTY.values(), ids=NASTY)
def test_no_name_of_a_model_becomes_markup(tmp_path: Path, name: str) -> None:
    """A model's name, family and licence come from whoever made the file."""
    folder = make(tmp_path, plan(n_probes=2))
    file = msgspec.json.decode((folder / "plan.json").read_bytes(), type=PlanFile)
    models = tuple(PlannedModel(m.id, name, name, name, m.format) for m in file.plan.models)
    changed = msgspec.structs.replace(file.plan, models=models)
    found = msgspec.json.decode((folder / "estimates.json").read_bytes(), type=html.aggregate.Estimates)
    cards = tuple(
        msgspec.structs.replace(c, name=name, family=name, licence=name, engine=name) for c in found.models
    )
    (folder / "plan.json").write_bytes(encode(PlanFile(digest(changed), file.application_digest, changed)))
    estimates = msgspec.structs.replace(found, models=cards, study=digest(changed))
    (folder / "estimates.json").write_bytes(encode(estimates))
    assert_is_clean(html.render(folder))


def test_every_answer_stands_between_pre_tags_only(tmp_path: Path) -> None:
    page = page_with(tmp_path, "unmistakable words")
    around = re.findall(r'<pre class="said">unmistakable words</pre>', page)
    assert len(around) == page.count("unmistakable words") > 0


@pytest.mark.slow
def test_a_long_answer_is_cut_and_the_page_says_so(tmp_path: Path) -> None:
    assert "996,000 more characters are left out here" in page_with(tmp_path, "A" * 1_000_000)


def test_the_policy_allows_no_script_no_request_and_one_style(page: str) -> None:
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert policy and style and page.count("<style") == 1 and "<script" not in page
    wanted = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy[1].startswith(f"default-src 'none'; style-src 'sha256-{wanted}'")
    assert "unsafe" not in policy[1]


def test_the_page_asks_for_nothing_outside_itself(page: str) -> None:
    """A link to a taxonomy asks only if a reader follows it, and then does not say where from."""
    page = re.sub(r'<a class="threat" rel="noreferrer noopener" href="https://[^"]*">', "<a>", page)
    assert not re.search(r"(src|href|action|data|poster|srcset)\s*=\s*[\"']?\s*(https?:)?//", page)
    assert "@import" not in page and "url(" not in page


def test_every_link_leads_somewhere_and_no_id_is_there_twice(page: str) -> None:
    parsed = Page(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    targets = {value[1:] for key, value in parsed.attributes if key == "href" and value.startswith("#")}
    named = {word for key, value in parsed.attributes if key == "aria-labelledby" for word in value.split()}
    assert targets | named <= set(parsed.ids)


def test_the_same_study_gives_the_same_page(study: Path) -> None:
    assert html.render(study) == html.render(study)


def test_without_text_no_word_of_probe_answer_or_application_is_there(tmp_path: Path) -> None:
    folder = make(tmp_path, plan(), answer="unmistakable words")
    with_text, without = html.render(folder), html.render(folder, with_text=False)
    for told in (
        "unmistakable words",
        "Please do thing",
        "PELICAN-4417",
        "Goods may be returned",
        "You are Nova",
    ):
        assert told in with_text
        assert told not in without
    assert_is_clean(without)


def test_every_rate_is_shown_with_its_count_interval_and_rows(study: Path, page: str) -> None:
    estimates = storage.read_estimates(study)
    for rate in estimates.rates:
        if rate.attack == "all":
            assert f"{rate.n_broke} of {rate.estimate.n}" in page
    assert "jq -r 'select((.index &gt;= 0 and .index &lt;= 49))" in page


def test_the_rows_named_behind_a_cell_give_its_counts(study: Path) -> None:
    """What the page's jq line does, done here."""
    read = html.aggregate.read_study(study)
    rows = [msgspec.json.decode(line) for line in (study / "verdicts.jsonl").read_bytes().splitlines()]
    for rate in read.estimates.rates:
        if rate.attack != "all":
            continue
        ranges = _rows.ranges(read.plan, rate.model, rate.technique, "all")
        said = [r["outcome"] for r in rows if any(first <= r["index"] <= last for first, last in ranges)]
        kinds = ("broke", "held") if rate.measure == "breach" else ("refused", "answered")
        assert (said.count(kinds[0]), said.count(kinds[1])) == (rate.n_broke, rate.n_held)


def test_how_far_the_families_of_labels_lie_apart_is_shown(page: str, tmp_path: Path) -> None:
    section = page[page.index('id="judges"') :].partition("</section>")[0]
    assert section.count("family one: ") == section.count("family two: ") == 2 * 2  # models, measures
    folder = make(tmp_path, plan(n_probes=2))
    found = storage.read_estimates(folder)
    rates = tuple(msgspec.structs.replace(rate, by_family=()) for rate in found.rates)
    storage.write_estimates(folder, msgspec.structs.replace(found, rates=rates))
    without = html.render(folder)
    assert "Whose labels" not in without
    assert "For judged breaches the correction rests on answers of one family" in without
    assert "rests on answers of one family" not in page


def test_a_model_whose_correction_was_refused_makes_no_correction_one_of_one_family(tmp_path: Path) -> None:
    folder = make(tmp_path, plan(n_probes=2))
    found = storage.read_estimates(folder)
    first = found.models[0].id
    why = refused(4, "its answers are unlike all labelled ones", "unlike-labels")
    rates = tuple(
        msgspec.structs.replace(rate, by_family=(), corrected=why)
        if rate.model == first and not rate.is_judge_free
        else rate
        for rate in found.rates
    )
    storage.write_estimates(folder, msgspec.structs.replace(found, rates=rates))
    page = html.render(folder)
    assert "Whose labels" in page
    assert "rests on answers of one family" not in page


def test_several_attacks_get_a_table_each(tmp_path: Path) -> None:
    page = html.render(make(tmp_path, plan(3, n_probes=3, attacks=("direct", "prefill"), samples=2)))
    assert page.count("Under the attack") == 2
    table = page[page.index("<h3>By attack</h3>") :].partition("</table>")[0]
    for strand in ("breach, judge-free", "breach, judged", "over-refusal"):
        assert all(f"{strand}, {attack}</th>" in table for attack in ("direct", "prefill"))
    assert table.count("<td ") == 3 * 2 * 3  # strands, attacks, and models
    assert_is_clean(page)


def test_one_model_has_nothing_to_compare(tmp_path: Path) -> None:
    page = html.render(make(tmp_path, plan(1)))
    assert "One model, so there is nothing to compare" in page
    assert_is_clean(page)


def test_a_folder_without_estimates_says_what_to_do(tmp_path: Path) -> None:
    folder = make(tmp_path, plan(n_probes=2))
    (folder / "estimates.json").unlink()
    with raises(UsageError, "bad-usage"):
        html.render(folder)


def test_estimates_of_another_plan_are_refused(tmp_path: Path) -> None:
    folder, other = make(tmp_path / "a", plan(n_probes=2)), make(tmp_path / "b", plan(n_probes=3))
    (folder / "estimates.json").write_bytes((other / "estimates.json").read_bytes())
    with raises(NotComparable, "another-study"):
        html.render(folder)


def test_estimates_of_another_schema_are_refused(tmp_path: Path) -> None:
    folder = make(tmp_path, plan(n_probes=2))
    path = folder / "estimates.json"
    path.write_bytes(path.read_bytes().replace(f'"schema": {SCHEMA}'.encode(), b'"schema": 99'))
    with raises(NotComparable, "schema-mismatch", mentions=["99"]):
        html.render(folder)


def test_broken_estimates_are_damage_and_write_nothing(tmp_path: Path) -> None:
    folder = make(tmp_path / "study", plan(n_probes=2))
    (folder / "estimates.json").write_bytes(b'{"schema":2,')
    with pytest.raises(Damaged):
        html.write(folder, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def luminance(colour: str) -> float:
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_every_text_has_contrast_enough_in_light_and_in_dark() -> None:
    """WCAG AA: 4.5 to 1, on every step of the heat map too."""
    style = (Path(html.__file__).parent / "_style.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\n *\}", style, re.DOTALL)[:2]
    base = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light))
    for scheme in (base, base | dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", dark))):
        for ink in ("ink", "soft", "accent", "worse"):
            assert contrast(scheme[ink], scheme["paper"]) >= 4.5
        assert contrast(scheme["soft"], scheme["panel"]) >= 4.5
        assert contrast(scheme["on-worse"], scheme["worse"]) >= 4.5
        assert all(contrast(scheme["ink"], scheme[ground]) >= 4.5 for ground in ("mark", "fill"))
        for step in range(11):
            ink = scheme[{6: "on-6", 7: "on-7"}.get(step, "on-low" if step < 6 else "on-high")]
            assert contrast(ink, scheme[f"h{step}"]) >= 4.5, step


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
@pytest.mark.parametrize("name", ["script", "image", "svg", "out of pre", "out of style"])
def test_in_a_browser_no_injected_script_runs(tmp_path: Path, name: str) -> None:
    out = html.write(make(tmp_path / "study", plan(n_probes=2), answer=NASTY[name]), tmp_path / "report.html")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", out.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    if done.returncode:
        pytest.skip(f"chromium does not run here: {done.stderr.decode(errors='replace')[-200:]}")
    dom = done.stdout.decode()
    assert "<title>support-desk: security of 2 models</title>" in dom
    assert "<script" not in dom and "<img" not in dom and "mine" not in Page(dom).ids


# Of the page in a frame of a width: its size, and each word of a table that stands on two lines.
MEASURE = """
const page = document.querySelector("iframe").contentDocument;
const found = {broken: []}, range = page.createRange();
for (const cell of page.querySelectorAll("th, td")) {
  const texts = page.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) for (const word of texts.currentNode.data.matchAll(/[\\p{L}\\p{N}]+/gu)) {
    range.setStart(texts.currentNode, word.index);
    range.setEnd(texts.currentNode, word.index + word[0].length);
    const boxes = [...range.getClientRects()].filter(box => box.width);
    const lines = new Set(boxes.map(box => Math.round(box.top)));
    if (lines.size > 1) found.broken.push(word[0]);
  }
}
found.height = page.documentElement.scrollHeight;
found.width = page.documentElement.scrollWidth;
document.title = JSON.stringify(found);
"""


def in_chromium(profile: Path, *arguments: str) -> str:
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--user-data-dir={profile}", "--window-size=1500,1000", "--hide-scrollbars", *arguments]
    return subprocess.run(command, capture_output=True, timeout=120, check=True, text=True).stdout


@pytest.mark.proof
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_the_report_of_the_demo_prints_on_four_pages_and_is_short_on_a_screen(tmp_path: Path) -> None:
    write_demo(tmp_path / "demo")
    report = html.write(tmp_path / "demo", tmp_path / "report.html")
    in_chromium(
        tmp_path, f"--print-to-pdf={tmp_path / 'report.pdf'}", "--no-pdf-header-footer", report.as_uri()
    )
    printed = (tmp_path / "report.pdf").read_bytes()
    assert re.findall(rb"/Type /Page\b", printed) == [b"/Type /Page"] * 4
    assert b"/Dest /talk-" in printed and b"/Dest /measured" not in printed  # no link to what is not printed
    page = escape(report.read_text())
    for width, height in ((1280, 10_000), (390, 13_000)):
        frame = f'<iframe style="border: 0; width: {width}px" srcdoc="{page}"></iframe>'
        script = f'<script>addEventListener("load", () => setTimeout(() => {{{MEASURE}}}, 500));</script>'
        (tmp_path / "frame.html").write_text(f"<title></title>{frame}{script}")
        dom = in_chromium(
            tmp_path / f"profile-{width}", "--virtual-time-budget=5000", "--dump-dom",
            (tmp_path / "frame.html").as_uri(),
        )  # fmt: skip
        measured = json.loads(unescape(dom.partition("<title>")[2].partition("</title>")[0]))
        assert measured["broken"] == [] and measured["width"] == width, (width, measured)
        assert measured["height"] < height, (width, measured)


def test_a_judge_that_was_never_measured_is_said_to_be_unmeasured(tmp_path: Path) -> None:
    folder = make(tmp_path, plan(n_probes=2))
    found = storage.read_estimates(folder)
    storage.write_estimates(folder, msgspec.structs.replace(found, judges=()))
    assert "not measured against human labels" in html.render(folder)
