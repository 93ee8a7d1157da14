"""The pages of a place as files that open from a disk, without a server.

    export(StudyPlace(Path("runs/demo")), Path("shared"))

Promises: the pages are those of the server, without forms, searches and keys that need one. Each page is one
file with its own style and script, whose hashes its content policy names. A link leads to a file of the same
folder; the words of any other stay without it.
Leaves to others: the pages themselves (pages/).
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
from heredity.view.places import StudyPlace
from heredity.view.site import Asked, Site

_NO_LINK = re.compile(r'(<a\b[^>]*?) href=""')
MOST = 20_000  # files; a folder of more is slow to open, and the server has no such bound


class ExportedPages(NamedTuple):
    """The first page, the number of pages, and the number of those that were left out."""

    page: Path
    n_pages: int
    n_left_out: int


class _Files:
    """Gives each page that a link leads to a file, and remembers which are still to write."""

    def __init__(self, most: int) -> None:
        self.names: dict[tuple[str, str], str] = {}
        self.left: deque[tuple[str, dict[str, str]]] = deque()
        self.left_out: set[tuple[str, str]] = set()
        self._most = most
        self.site: Site | None = None

    def link(self, path: str, query: Mapping[str, str]) -> str:
        """The file of a page; "" for one that is not exported."""
        assert self.site is not None
        page, _ = self.site.find(path)
        if page.KEEPS is None:
            return ""
        kept = {name: query[name] for name in page.KEEPS if name in query}
        address = path, repr(sorted(kept.items()))
        if address not in self.names:
            if len(self.names) >= self._most:
                self.left_out.add(address)
                return ""
            self.names[address] = _name(*address) if path != "/" else "index.html"
            self.left.append((path, kept))
        return self.names[address]


def _name(path: str, query: str) -> str:
    """A readable name, and one for each address: letters of its path, and a digest of all of it."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", path.removeprefix("/s/")).strip("-")[:60]
    digest = hashlib.blake2b("\0".join((path, query)).encode(), digest_size=4).hexdigest()
    return f"{readable}-{digest}.html"


def export(
    place: StudyPlace, out: Path, watch: Callable[[int, int], None] = lambda *_: None, most: int = MOST
) -> ExportedPages:
    """Write every page that a link from the list of studies leads to, at most `most`.

    watch: called with the pages that are written, and those that are known. Raises UsageError if `out` holds
    anything.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} holds other files. Name a new folder: --export.", code="folder-not-empty")
    files = _Files(most)
    site = files.site = Site(place, files.link, is_live=False)
    for found in place.studies():
        try:
            place.open(found.key).refresh(float("inf"))
        except HeredityError:
            continue  # the list of studies shows its error
    out.mkdir(parents=True, exist_ok=True)
    files.link("/", {})
    n, first = 0, ""
    while files.left:
        path, query = files.left.popleft()
        text = _page(site, path, query)
        if path == "/":
            first = text  # written last: it is the file that says that the folder is complete
        else:
            (out / files.names[path, repr(sorted(query.items()))]).write_text(text, encoding="utf-8")
        n += 1
        watch(n, len(files.names))
    write_atomic(out / "index.html", first.encode())

    return ExportedPages(out / "index.html", n, len(files.left_out))


def _page(site: Site, path: str, query: Mapping[str, str]) -> str:
    try:
        found = site.render(path, query)
    except HeredityError as error:
        found = site.failure(Asked(path, {}, {}), str(error))
    return _NO_LINK.sub(r"\1", found)  # an address that is not exported: its words stay, without a link
