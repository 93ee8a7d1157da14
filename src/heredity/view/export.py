"""The pages of a place as files that open from a disk, without a server.

    export(StudyPlace(Path("runs/demo")), Path("shared"))

Promises: the pages are those of the server, without forms, searches and keys that need one, and the report
of each study. The conversations of a study are a few files, each of many. Each page has its own style and
script, whose hashes its content policy names. Not every browser takes two files of a disk as of one origin.
A link leads to a place in a file of the same folder; the words of any other stay without it.
Leaves to others: the conversations of a study (export_study.py), and the pages themselves (pages/).
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from heredity.core.errors import HeredityError, UsageError
from heredity.core.files import write_atomic
from heredity.view.export_study import StudyFiles, is_in_study
from heredity.view.places import StudyPlace
from heredity.view.site import Asked, Site

_REPORT = re.compile(r"/s/([^/]+)/report\.html")
_NO_LINK = re.compile(r'(<a\b[^>]*?) href=""')


class ExportedPages(NamedTuple):
    """The first page, and the number of files."""

    page: Path
    n_files: int


class _Files:
    """Gives each page that a link leads to a place in a file; knows which files are still to write."""

    def __init__(self, place: StudyPlace) -> None:
        self.site = Site(place, self.link, is_live=False)
        self.names: dict[str, str] = {}
        self.left: deque[str] = deque()
        self.studies: dict[str, StudyFiles] = {}

    def link(self, path: str, query: Mapping[str, str]) -> str:
        """The place of a page; "" for one that is not exported."""
        if match := _REPORT.fullmatch(path):
            return self._study(match[1]).report
        page, parts = self.site.find(path)
        if not page.IS_EXPORTED:
            return ""
        if is_in_study(page):
            try:
                return self._study(parts["study"]).link(page, Asked(path, parts, query))
            except HeredityError:
                return ""  # the page of the study shows its error
        if path not in self.names:
            self.names[path] = _name(path) if path != "/" else "index.html"
            self.left.append(path)
        return self.names[path]

    def _study(self, key: str) -> StudyFiles:
        if key not in self.studies:
            self.studies[key] = StudyFiles(self.site.place.open(key))
        return self.studies[key]

    @property
    def n_known(self) -> int:
        """The files that are known so far."""
        return len(self.names) + sum(each.n_files for each in self.studies.values())


def _name(path: str) -> str:
    """A readable name, and one for each path: letters of it, and a digest of all of it."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", path.removeprefix("/s/")).strip("-")[:60]
    return f"{readable}-{hashlib.blake2b(path.encode(), digest_size=4).hexdigest()}.html"


def export(
    place: StudyPlace, out: Path, watch: Callable[[int, int], None] = lambda *_: None
) -> ExportedPages:
    """Write every page that a link from the list of studies leads to.

    watch: called with the files that are written, and those that are known. Raises UsageError if `out` holds
    anything.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} holds other files. Name a new folder: --export.", code="folder-not-empty")
    for found in place.studies():
        try:
            place.open(found.key).refresh(float("inf"))
        except HeredityError:
            continue  # the list of studies shows its error
    files = _Files(place)
    out.mkdir(parents=True, exist_ok=True)
    files.link("/", {})
    n, first = 0, ""

    def keep(name: str, text: str) -> None:
        nonlocal n
        (out / name).write_text(_NO_LINK.sub(r"\1", text), encoding="utf-8")
        n += 1
        watch(n, files.n_known)

    while files.left:
        path = files.left.popleft()
        text = _page(files.site, path)
        if path == "/":
            first = text  # written last: it is the file that says that the folder is complete
        else:
            keep(files.names[path], text)
    for study in files.studies.values():
        for name, text in study.pages(files.site):
            keep(name, text)
    write_atomic(out / "index.html", _NO_LINK.sub(r"\1", first).encode())

    return ExportedPages(out / "index.html", n + 1)


def _page(site: Site, path: str) -> str:
    try:
        return site.render(path)
    except HeredityError as error:
        return site.failure(Asked(path, {}, {}), str(error))
