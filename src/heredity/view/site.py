"""The pages of a place as text: which page an address is of, and its HTML, for a server or for files.

    site = Site(StudyPlace(Path("runs")))
    site.render("/s/demo-1a2b3c/conversations", {"outcome": "broke"})

Promises: a page is found by the file that makes it (pages/). Every value in a template is made visible and
escaped; nothing that a model or a folder says becomes markup. A page names no address outside itself.
Leaves to others: requests (app.py), files (export.py), and what a page shows (pages/).
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlencode

import jinja2
from markupsafe import Markup

from heredity.core import registry
from heredity.core.errors import UnknownName
from heredity.core.sanitize import label
from heredity.core.version import __version__
from heredity.redteam.checks import did
from heredity.study import wording
from heredity.study.turns import page_environment, quoted, role_word
from heredity.view import figures
from heredity.view.index import is_searched
from heredity.view.pages.protocols import Page
from heredity.view.places import OpenStudy, StudyPlace

FOLDER = Path(__file__).parent
# The list that a page without a tab of its own is one of.
_LISTS = {"/s/{study}/t/{index}": "/s/{study}/conversations", "/s/{study}/pair/{place}": "/s/{study}/pairs"}
Link = Callable[[str, Mapping[str, str]], str]  # a path and its query to an address


class Asked(NamedTuple):
    """An address: its path, the parts of it that the page names, and its query."""

    path: str
    parts: Mapping[str, str]
    query: Mapping[str, str]


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
        self.pages = [registry.load_as(Page, "view.pages", name) for name in registry.names("view.pages")]
        self._routes = [_Route(_pattern(page.PATH), page) for page in self.pages]
        self.style, self.style_hash = _shipped("view.css")
        self.script, self.script_hash = _shipped("view.js")
        self._environment = self._made()

    def find(self, path: str) -> tuple[Page, dict[str, str]]:
        """The page of a path, and the parts that it names. Raises UnknownName."""
        for route in self._routes:
            if (match := route.pattern.fullmatch(path)) is not None:
                return route.page, match.groupdict()
        raise UnknownName("page", label(path), [page.PATH for page in self.pages])

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
        held = [page for page in self.pages if page.MENU and self._is_here(page)]
        pages = sorted(held, key=lambda page: page.MENU)
        return [(_title(p.MENU), self.link(p.PATH), _current(p.PATH, asked.path)) for p in pages]

    def _is_here(self, page: Page) -> bool:
        return self.is_live or page.IS_EXPORTED

    def _tabs(self, asked: Asked, study: OpenStudy | None) -> list[tuple[str, str, str]]:
        """The pages of a study, in the order of their titles' numbers, marked as in the menu."""
        if study is None:
            return []
        page, _ = self.find(asked.path)
        above = _LISTS.get(page.PATH, "").replace("{study}", study.key)
        found = []
        for page in sorted((page for page in self.pages if page.TAB), key=lambda page: page.TAB):
            path = page.PATH.replace("{study}", study.key)
            if self._is_here(page):
                mark = "page" if path == asked.path else "true" if path == above else ""
                found.append((_title(page.TAB), self.link(path), mark))
        return found

    def _made(self) -> jinja2.Environment:
        environment = page_environment(FOLDER / "templates")
        environment.filters |= {"label": label}
        environment.globals |= {
            "attack_name": wording.attack_name,
            "counts_bar": figures.counts_bar,
            "did": did,
            "difference_words": wording.difference_words,
            "interval": wording.interval,
            "interval_bar": figures.interval_bar,
            "is_searched": is_searched,
            "link": self.link,
            "percent": wording.percent,
            "plural": wording.plural,
            "quoted": quoted,
            "role_word": role_word,
            "severity_words": wording.severity_words,
            "site": self,
            "state_word": figures.state_word,
            "title": wording.title,
            "version": __version__,
        }
        return environment


def _shipped(name: str) -> tuple[Markup, str]:
    """A file of static/, and its hash as a content policy names it."""
    text = (FOLDER / "static" / name).read_text(encoding="utf-8")
    return Markup(text), f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _current(path: str, here: str) -> str:
    return "page" if here == path else "true" if path != "/" and here.startswith(f"{path}/") else ""


def _title(numbered: str) -> str:
    """A title without the number by which it is ordered."""
    return numbered.lstrip("0123456789 ")


def served(path: str, query: Mapping[str, str]) -> str:
    """The address of a page on a server."""
    return quote(path) + (f"?{urlencode(query)}" if query else "")


def _pattern(path: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", path)
    return re.compile(
        "".join(f"(?P<{part}>[^/]+)" if i % 2 else re.escape(part) for i, part in enumerate(parts))
    )
