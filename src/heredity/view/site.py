"""The pages of a place as text: which page an address is of, and its HTML, for a server or for files.

    site = Site(StudyPlace(Path("runs")))
    site.render("/s/demo-1a2b3c/conversations", {"outcome": "broke"})

Promises: a page is found by the file that makes it (pages/). Every value in a template is made visible and
escaped; nothing that a model or a folder says becomes markup. A page names no address outside itself.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable
from urllib.parse import quote, urlencode

import jinja2
from markupsafe import Markup

from heredity.core import __version__, registry
from heredity.core.errors import UnknownName
from heredity.core.records import Estimate
from heredity.core.sanitize import label, plural
from heredity.redteam.checks import did
from heredity.study import wording
from heredity.study.turns import page_environment, quoted, role_word
from heredity.view.index import is_searched
from heredity.view.places import OpenStudy, StudyPlace

# --- charts -------------------------------------------------------------------------------------------
# An SVG holds numbers and class names of this module only. Each bar is next to its counts, so that colour is
# never the only sign.

# By state: the order in a bar, which is also that of its colours, and its words.
_WORDS = {
    "broke": "broke",
    "refused": "refused",
    "held": "held",
    "answered": "answered",
    "unclear": "unclear",
    "error": "failed",
    "unjudged": "answered, not judged",
    "skipped": "not asked",
    "queued": "queued",
}
_STRETCHED = 'preserveAspectRatio="none" aria-hidden="true" focusable="false"'


def state_word(state: str) -> str:
    """The word for the state of a trial, or for a tag (queries.tag_of)."""
    state, *leaked = state.split()
    return ", ".join((_WORDS.get(state, "queued"), *leaked))


def counts_bar(states: Mapping[str, int], n_queued: int) -> Markup:
    """A bar of the trials of a cell by state, as wide as its place; the rest is queued."""
    counts = {state: states.get(state, 0) for state in _WORDS} | {"queued": n_queued}
    total, at, parts = sum(counts.values()), 0.0, []
    for state, n in counts.items():
        if n:
            width = 100 * n / total
            parts.append(f'<rect class="s-{state}" x="{at:.2f}" y="0" width="{width:.2f}" height="6"/>')
            at += width
    return Markup(f'<svg class="counts" viewBox="0 0 100 6" {_STRETCHED}>{"".join(parts)}</svg>')


def interval_bar(estimate: Estimate) -> Markup:
    """A rate between 0 and 100 %: its interval as a line, the rate as a mark."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return Markup("")
    low, high, at = (100 * each for each in (estimate.low, estimate.high, estimate.value))
    return Markup(
        f'<svg class="rate" viewBox="0 0 100 8" {_STRETCHED}>'
        '<rect class="track" x="0" y="3.5" width="100" height="1"/>'
        f'<rect class="reach" x="{low:.2f}" y="2.5" width="{max(high - low, 0.5):.2f}" height="3"/>'
        f'<rect class="mark" x="{min(at, 99):.2f}" y="0" width="1" height="8"/></svg>'
    )


WIDE, HIGH, _LEFT, _FOOT = 720, 240, 64, 26  # of a curve, in pixels


def curve(points: Sequence[tuple[float, float]], what: str) -> Markup:
    """Values over steps as a line, with the lowest and highest of both as its scales; "" for no point."""
    if not points:
        return Markup("")
    xs, ys = [x for x, _ in points], [y for _, y in points]
    scales = f"{max(ys):.3g}", f"{min(ys):.3g}", f"step {min(xs):,.0f}", f"{max(xs):,.0f}"
    return _axes(what, scales, _line(points, (min(xs), max(xs)), (min(ys), max(ys))))


def trend(rates: Sequence[Estimate], first: str, last: str, what: str) -> Markup:
    """Rates one after another as a line on a scale to 100 %, with a band of their intervals.

    first, last: the words below the ends. "" for fewer than two.
    """
    values = [(x, rate.value) for x, rate in enumerate(rates) if rate.value is not None]
    if len(values) < 2:
        return Markup("")
    lows = [(x, rates[x].low or 0.0) for x, _ in values]
    highs = [(x, 1.0 if (high := rates[x].high) is None else high) for x, _ in values]
    ends = (values[0][0], values[-1][0])
    band = Markup('<polygon points="{}"/>').format(_path([*highs, *reversed(lows)], ends, (0.0, 1.0)))
    dots = Markup("").join(
        Markup('<circle cx="{}" cy="{}" r="3.5"/>').format(*_path([each], ends, (0.0, 1.0)).split(","))
        for each in values
    )
    return _axes(what, ("100 %", "0 %", first, last), band + _line(values, ends, (0.0, 1.0)) + dots)


def _path(points: Sequence[tuple[float, float]], across: tuple[float, float], up: tuple[float, float]) -> str:
    """The points in pixels; `across` and `up` are the ends of the scales."""
    wide, tall = WIDE - _LEFT - 12, HIGH - _FOOT - 12
    x1, y1 = wide / (across[1] - across[0] or 1), tall / (up[1] - up[0] or 1)
    return " ".join(f"{_LEFT + x1 * (x - across[0]):.1f},{12 + y1 * (up[1] - y):.1f}" for x, y in points)


def _line(
    points: Sequence[tuple[float, float]], across: tuple[float, float], up: tuple[float, float]
) -> Markup:
    return Markup('<polyline points="{}"/>').format(_path(points, across, up))


def _axes(what: str, scales: tuple[str, str, str, str], drawn: Markup) -> Markup:
    """The frame of a curve. scales: the words at the top and the foot, and at the left and the right."""
    floor, right = HIGH - _FOOT, WIDE - 12
    places = (
        (_LEFT - 8, 16, "end"),
        (_LEFT - 8, floor, "end"),
        (_LEFT, HIGH - 8, "start"),
        (right, HIGH - 8, "end"),
    )
    words = Markup("").join(
        Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(*place, text)
        for place, text in zip(places, scales, strict=True)
    )
    return Markup(
        '<svg class="curve" width="{w}" height="{h}" viewBox="0 0 {w} {h}" role="img" aria-label="{what}">'
        '<path class="axis" d="M{left},12V{floor}H{right}"/>{words}{drawn}</svg>'
    ).format(w=WIDE, h=HIGH, what=what, left=_LEFT, floor=floor, right=right, words=words, drawn=drawn)


# --- pages --------------------------------------------------------------------------------------------


FOLDER = Path(__file__).parent
# The list that a page without a tab of its own is one of.
_LISTS = {"/s/{study}/t/{index}": "/s/{study}/conversations", "/s/{study}/pair/{place}": "/s/{study}/pairs"}
Link = Callable[[str, Mapping[str, str]], str]  # a path and its query to an address


class Asked(NamedTuple):
    """An address: its path, the parts of it that the page names, and its query."""

    path: str
    parts: Mapping[str, str]
    query: Mapping[str, str]


class Page(NamedTuple):
    """A page.

    path: a part in braces is any text without a slash: "/s/{study}/t/{index}".
    render: the HTML, by Site.html. It raises HeredityError, which becomes a page of its own.
    menu, tab: its title in the menu over all studies, and among the pages of a study; "" for none. Each
    begins with a number, which orders them.
    is_exported: exported pages have it.
    act: does what its form asks for, and returns the address of the page to show next.
    """

    path: str
    render: Callable[[Site, Asked], str]
    menu: str = ""
    tab: str = ""
    is_exported: bool = False
    act: Callable[[Site, Asked, Mapping[str, str]], str] | None = None


@runtime_checkable
class PageFile(Protocol):
    """A file of pages/."""

    PAGES: tuple[Page, ...]


class _Route(NamedTuple):
    pattern: re.Pattern[str]
    page: Page


class Site:
    """The pages over a place.

    link: makes an address; None: that of a server. is_live: whether a server answers, so that forms and
    searches work; else the pages are files.
    """

    def __init__(self, place: StudyPlace, link: Link | None = None, *, is_live: bool = True) -> None:
        self.place, self.is_live = place, is_live
        self._link = link or served
        files = [registry.load_as(PageFile, "view.pages", name) for name in registry.names("view.pages")]
        self.pages = [page for file in files for page in file.PAGES]
        self._routes = [_Route(_pattern(page.path), page) for page in self.pages]
        self.style, self.style_hash = _shipped("view.css")
        self.script, self.script_hash = _shipped("view.js")
        self._environment = self._made()

    def find(self, path: str) -> tuple[Page, dict[str, str]]:
        """The page of a path, and the parts that it names. Raises UnknownName."""
        for route in self._routes:
            if (match := route.pattern.fullmatch(path)) is not None:
                return route.page, match.groupdict()
        raise UnknownName("page", label(path), [page.path for page in self.pages])

    def render(self, path: str, query: Mapping[str, str] | None = None) -> str:
        """The HTML of a page. Raises HeredityError."""
        page, parts = self.find(path)
        return page.render(self, Asked(path, parts, query or {}))

    def open(self, asked: Asked) -> OpenStudy:
        """The study that an address names, with the rows that came."""
        study = self.place.open(asked.parts["study"])
        study.refresh()
        return study

    def html(self, template: str, asked: Asked, study: OpenStudy | None = None, **values: object) -> str:
        """A template with these values, inside the frame of every page."""
        frame: dict[str, object] = {
            "asked": asked,
            "study": study,
            "menu": self._menu(asked),
            "tabs": self._tabs(asked, study),
        }
        if self.is_live and "seen" not in values:
            frame["seen"] = self.place.mark() if study is None else study.mark()
        return self._environment.get_template(template).render(values | frame)

    def failure(self, asked: Asked, message: str) -> str:
        """The page of an error."""
        return self.html("error.html.jinja", asked, message=message)

    def link(self, path: str, /, **query: object) -> str:
        """The address of a page; a part of the query that is "" or None is left out."""
        return self._link(path, {key: str(value) for key, value in query.items() if value not in ("", None)})

    # --- the frame ---

    def _menu(self, asked: Asked) -> list[tuple[str, str, str]]:
        """The pages over all studies: title, address, and "page" for this one, "true" for one above it."""
        held = [page for page in self.pages if page.menu and self._is_here(page)]
        pages = sorted(held, key=lambda page: page.menu)
        return [(_title(p.menu), self.link(p.path), _current(p.path, asked.path)) for p in pages]

    def _is_here(self, page: Page) -> bool:
        return self.is_live or page.is_exported

    def _tabs(self, asked: Asked, study: OpenStudy | None) -> list[tuple[str, str, str]]:
        """The pages of a study, in the order of their titles' numbers, marked as in the menu."""
        if study is None:
            return []
        page, _ = self.find(asked.path)
        above = _LISTS.get(page.path, "").replace("{study}", study.key)
        tabs = []
        for page in sorted((page for page in self.pages if page.tab), key=lambda page: page.tab):
            path = page.path.replace("{study}", study.key)
            if self._is_here(page):
                mark = "page" if path == asked.path else "true" if path == above else ""
                tabs.append((_title(page.tab), self.link(path), mark))
        return tabs

    def _made(self) -> jinja2.Environment:
        environment = page_environment(FOLDER / "templates")
        environment.filters |= {"label": label}
        environment.globals |= {
            "attack_name": wording.attack_name,
            "counts_bar": counts_bar,
            "did": did,
            "difference_words": wording.difference_words,
            "interval": wording.interval,
            "interval_bar": interval_bar,
            "is_searched": is_searched,
            "link": self.link,
            "percent": wording.percent,
            "plural": plural,
            "quoted": quoted,
            "role_word": role_word,
            "severity_words": wording.severity_words,
            "site": self,
            "state_word": state_word,
            "title": wording.title,
            "version": __version__,
        }
        return environment


def _current(path: str, here: str) -> str:
    """The aria-current of a link to `path` on the page `here`."""
    return "page" if here == path else "true" if path != "/" and here.startswith(f"{path}/") else ""


def _shipped(name: str) -> tuple[Markup, str]:
    """A file of static/, and its hash as a content policy names it."""
    text = (FOLDER / "static" / name).read_text(encoding="utf-8")
    return Markup(text), f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _title(numbered: str) -> str:
    """A title without the number by which it is ordered."""
    return numbered.lstrip("0123456789 ")


def served(path: str, query: Mapping[str, str]) -> str:
    """The address of a page on a server."""
    return quote(path) + (f"?{_encoded(*query.items())}" if query else "")


@lru_cache(maxsize=10_000)  # a table of a page has a link in each cell, and a live page is made again
def _encoded(*query: tuple[str, str]) -> str:
    return urlencode(query)


def _pattern(path: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", path)
    return re.compile(
        "".join(f"(?P<{part}>[^/]+)" if i % 2 else re.escape(part) for i, part in enumerate(parts))
    )
