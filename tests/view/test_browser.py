"""The pages in a real Chromium: they fit, break no rule of accessibility, and nothing of an answer runs.

Needs the extra `browser` and a Chromium: that of HEREDITY_CHROMIUM, else /usr/bin/chromium.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from heredity.lineage.graph import Edge
from heredity.view.export import export
from heredity.view.places import StudyPlace
from heredity.view.site import Site
from tests.support import report_studies
from tests.view.test_lineage import record
from tests.view.test_pages import Tags
from tests.view.test_training import begun, finished

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page as Tab

CHROMIUM = Path(os.environ.get("HEREDITY_CHROMIUM", "/usr/bin/chromium"))
pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(
        find_spec("playwright") is None, reason="needs playwright: pip install -e '.[browser]'"
    ),
    pytest.mark.skipif(find_spec("axe_playwright_python") is None, reason="needs axe: the extra `browser`"),
    pytest.mark.skipif(find_spec("uvicorn") is None, reason="needs uvicorn: the extra `serve`"),
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no browser at {CHROMIUM}"),
]
HOSTILE = (
    "<script>document.title = 'ran'; fetch('http://elsewhere.example/a')</script>"
    "<img src=http://elsewhere.example/b onerror=\"document.title='ran'\">"
    "<svg onload=\"document.title='ran'\">"
    "<a href=\"javascript:document.title='ran'\">press</a> [press](javascript:document.title='ran') "
    "</pre><style>body{background:url(http://elsewhere.example/c)}</style>"
    "<iframe src=http://elsewhere.example/d></iframe>"
    '<meta http-equiv="refresh" content="0;url=http://elsewhere.example/e">'
    " \u202e \x1b[2J " + "W" * 400
)
WIDTHS, SCHEMES = (1400, 900, 390), ("light", "dark")


class Watched:
    """A tab, with the requests that it made to other hosts, and its errors."""

    def __init__(self, tab: Tab, own: str) -> None:
        self.tab, self.errors, self.outside = tab, list[str](), list[str]()
        tab.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        tab.on("pageerror", lambda error: self.errors.append(str(error)))
        tab.on("request", lambda asked: self._asked(asked.url, own))
        tab.on("dialog", lambda dialog: (self.errors.append("a dialog opened"), dialog.dismiss()))

    def _asked(self, url: str, own: str) -> None:
        if not url.startswith((own, "data:")):
            self.outside.append(url)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Two studies of a parent and its child with hostile answers, a lineage, and two trainings."""
    root = tmp_path_factory.mktemp("browser")
    made = report_studies.plan(n_probes=3)
    edge = Edge(made.models[0].id, made.models[1].id, "lora")
    for name in ("monday", "tuesday"):
        report_studies.make(root / "runs" / name, msgspec.structs.replace(made, edges=(edge,)), HOSTILE)
    base = record(root / "store", "base", "pull", note=HOSTILE)
    record(root / "store", "x" * 120, "lora", (base,))
    begun(root / "store", HOSTILE)
    finished(root / "store")
    return Site(StudyPlace(root / "runs", root / "store"))


@pytest.fixture(scope="module")
def address(site: Site) -> Iterator[str]:
    """The address of a server of these pages."""
    import uvicorn

    from heredity.view.app import ViewSettings, app

    settings = ViewSettings(is_closing=lambda: server.should_exit)
    server = uvicorn.Server(uvicorn.Config(app(site, settings), port=0, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(60)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as made:
        found = made.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def paths(site: Site) -> list[str]:
    """An address of every page, found by following links, and one that names nothing."""
    found: dict[str, str] = {}
    first, second = site.place.studies()
    waiting, seen = ["/", f"/compare?a={first.key}&b={second.key}"], {"/"}
    while waiting:
        path = waiting.pop(0)
        page, _ = site.find(path.partition("?")[0])
        if page.path in found:
            continue
        found[page.path] = path
        query = dict(part.split("=", 1) for part in path.partition("?")[2].split("&") if part)
        for tag, attributes in Tags(site.render(path.partition("?")[0], _decoded(query))).found:
            link = attributes.get("href") or ""
            if tag == "a" and link.startswith("/") and link not in seen:
                seen.add(link)
                waiting.append(link)
    assert set(found) == {page.path for page in site.pages}
    return [*found.values(), "/nothing"]


def _decoded(query: dict[str, str]) -> dict[str, str]:
    from urllib.parse import unquote_plus

    return {key: unquote_plus(value) for key, value in query.items()}


def _opened(browser: Browser, own: str, width: int, scheme: Any) -> Watched:
    return Watched(browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), own)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_fits_and_nothing_of_an_answer_runs(
    browser: Browser, address: str, paths: list[str], width: int, scheme: str
) -> None:
    watched = _opened(browser, address, width, scheme)
    for path in paths:
        watched.tab.goto(address + path, wait_until="load")
        wide = watched.tab.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, (path, wide)
        assert watched.tab.title() != "ran", path
        errors = [each for each in watched.errors if path != "/nothing" or "404" not in each]
        assert (errors, watched.outside) == ([], []), path
    watched.tab.close()


def serious(tab: Tab, url: str) -> list[tuple[str, str, list[str]]]:
    """The rules of axe that a page breaks seriously, with the first elements that break each."""
    import axe_playwright_python

    axe = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    tab.goto(url, wait_until="load")
    tab.evaluate(axe)
    result = tab.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        (url, each["id"], [node["html"][:160] for node in each["nodes"][:3]])
        for each in result["violations"]
        if each["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (390, "dark")])
def test_axe_finds_nothing_serious(
    browser: Browser, address: str, paths: list[str], width: int, scheme: str
) -> None:
    watched = _opened(browser, address, width, scheme)
    found = [each for path in paths for each in serious(watched.tab, address + path)]
    watched.tab.close()
    assert not found, found


def test_keys_lead_from_the_studies_to_a_conversation_and_back(browser: Browser, address: str) -> None:
    watched = _opened(browser, address, 1400, "light")
    tab = watched.tab
    tab.goto(address, wait_until="load")
    for key in ("j", "Enter"):
        tab.keyboard.press(key)
    tab.wait_for_url("**/s/*")
    tab.click("nav.tabs a:has-text('Conversations')")
    tab.wait_for_url("**/conversations")
    for key in ("j", "j", "Enter"):
        tab.keyboard.press(key)
    tab.wait_for_url("**/t/*")
    tab.keyboard.press("u")
    tab.wait_for_url("**/conversations")
    tab.close()
    assert (watched.errors, watched.outside) == ([], [])


def test_every_control_of_every_page_is_reached_by_tab(
    browser: Browser, address: str, paths: list[str]
) -> None:
    watched = _opened(browser, address, 390, "light")
    wanted = "a[href], button, input:not([type=hidden]), select, summary, [tabindex='0']"
    for path in paths:
        watched.tab.goto(address + path, wait_until="load")
        watched.tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        n = watched.tab.locator(wanted).count()
        watched.tab.evaluate("window.reached = new Set()")
        for _ in range(n):
            watched.tab.keyboard.press("Tab")
            watched.tab.evaluate("window.reached.add(document.activeElement)")
        left = watched.tab.evaluate(
            "wanted => [...document.querySelectorAll(wanted)]"
            ".filter(each => !window.reached.has(each)).map(each => each.outerHTML.slice(0, 120))",
            wanted,
        )
        assert not left, (path, left)
    watched.tab.close()


def test_filters_apply_by_themselves_and_the_address_is_that_of_the_list(
    browser: Browser, site: Site, address: str
) -> None:
    watched = _opened(browser, address, 1400, "light")
    tab, path = watched.tab, f"{address}/s/{site.place.studies()[0].key}/conversations"
    tab.goto(path, wait_until="load")
    every = tab.locator("#list [role=status]").inner_text()
    assert not tab.locator("form.filters button").count()
    tab.select_option("select[name=outcome]", "broke")
    tab.wait_for_function(
        "every => document.querySelector('#list [role=status]').innerText != every", arg=every
    )
    tab.fill("input[name=q]", "thing")
    tab.wait_for_url("**/conversations?q=thing&outcome=broke")
    shown = tab.locator("#list [role=status]").inner_text()
    tab.reload()
    assert tab.locator("#list [role=status]").inner_text() == shown != every
    tab.fill("input[name=q]", "...")  # no word
    tab.wait_for_selector("#list .warn")
    tab.close()
    assert (watched.outside, [each for each in watched.errors if "400" not in each]) == ([], [])
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(path)
    tab.select_option("select[name=outcome]", "broke")
    tab.click("form.filters button")
    tab.wait_for_url("**outcome=broke**")
    context.close()


def test_a_figure_that_is_wider_than_the_screen_says_so(browser: Browser, address: str) -> None:
    for width, is_cut in ((390, True), (1400, False)):
        watched = _opened(browser, address, width, "light")
        watched.tab.goto(f"{address}/lineage", wait_until="load")
        assert watched.tab.locator(".figure.is-cut").count() == is_cut, width
        watched.tab.close()


def test_an_edge_of_the_figure_is_clicked_down_to_both_conversations(browser: Browser, address: str) -> None:
    watched = _opened(browser, address, 1400, "light")
    tab = watched.tab
    tab.goto(f"{address}/lineage", wait_until="load")
    tab.locator("svg.lineage a:has(path.edge):not(:has(path.none))").first.focus()
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/lineage/*/*")
    tab.locator("table.square a").first.click()
    tab.wait_for_url("**/pairs?**")
    tab.locator("ol.rows a").first.click()
    tab.wait_for_url("**/pair/*")
    assert tab.locator(".wide-two > section").count() == 2
    tab.close()
    assert (watched.errors, watched.outside) == ([], [])


def test_an_open_page_follows_a_training(browser: Browser, site: Site, address: str) -> None:
    watched = _opened(browser, address, 900, "light")
    folder = next((site.place.store / "training").glob("*"))
    watched.tab.goto(f"{address}/training/{folder.name}", wait_until="load")
    with (folder / "training.jsonl").open("ab") as file:
        file.write(b'{"step": 30, "loss": 1.5, "n_tokens": 10}\n')
    watched.tab.wait_for_selector("text=31 of 90 steps", timeout=20_000)
    watched.tab.close()
    assert (watched.errors, watched.outside) == ([], [])


@pytest.fixture(scope="module")
def disk(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the exported pages of one study."""
    root = tmp_path_factory.mktemp("disk")
    export(StudyPlace(site.place.root / "monday", root / "store"), root / "out")
    return root / "out"


def test_exported_pages_open_from_a_disk_and_run_nothing_of_an_answer(browser: Browser, disk: Path) -> None:
    watched = _opened(browser, disk.as_uri(), 390, "dark")
    for path in sorted(disk.iterdir()):
        watched.tab.goto(path.as_uri(), wait_until="load")
        assert watched.tab.evaluate("document.documentElement.scrollWidth") <= 390, path.name
        assert watched.tab.evaluate("getComputedStyle(document.body).fontSize") == "15px"
        assert watched.tab.title() != "ran"
        assert (watched.errors, watched.outside) == ([], []), path.name
    watched.tab.close()


def test_exported_pages_lead_without_script_from_a_count_to_both_conversations(
    browser: Browser, disk: Path
) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto((disk / "index.html").as_uri())
    tab.locator("ol.studies a").first.click()
    tab.locator(".four a[href]").first.click()
    tab.wait_for_url("**-pairs-*")
    tab.locator("h2:target + ol a").first.click()
    tab.wait_for_url("**-trials-*")
    assert tab.locator(".trial:target .wide-two > section").count() == 2
    context.close()


def test_axe_finds_nothing_serious_in_exported_pages(browser: Browser, disk: Path) -> None:
    watched = _opened(browser, disk.as_uri(), 1400, "light")
    found = [each for path in sorted(disk.iterdir()) for each in serious(watched.tab, path.as_uri())]
    watched.tab.close()
    assert not found, found
