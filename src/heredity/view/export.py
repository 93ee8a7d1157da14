"""The pages of a place as files that open from a disk, without a server.

    export(StudyPlace(Path("runs/demo")), Path("shared"))

Promises: the pages are those of the server, without forms, searches and keys that need one, and the report
of each study. The conversations of a study are a few files, each of many. Each page has its own style and
script, whose hashes its content policy names. Not every browser takes two files of a disk as of one origin.
A link leads to a place in a file of the same folder; the words of any other stay without it.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from heredity.core.errors import HeredityError, UsageError
from heredity.core.files import write_atomic
from heredity.core.records import Probe
from heredity.redteam.checks import did
from heredity.study.estimates import SCOPES
from heredity.study.outcomes import is_part
from heredity.study.plan import Trial
from heredity.study.report import html
from heredity.study.turns import PromptTurn
from heredity.study.wording import title
from heredity.view.index import IN_PLAN
from heredity.view.pages.conversations import LIST, ONE, number
from heredity.view.pages.pairs import PAIR, PAIRS, chosen
from heredity.view.pairs import WHICH, Which, is_edge, shared
from heredity.view.places import OpenStudy, StudyPlace, report_of
from heredity.view.queries import (
    STATES,
    Filters,
    ListedRow,
    Transcript,
    board_of,
    read,
    read_filters,
    rows_of,
    unasked,
)
from heredity.view.site import Asked, Page, Site, state_word

CONVERSATIONS = 100  # of a file of trials
LINES = 1000  # of a file of a list
_BASELINE = "baseline"
_AT_ONCE = 500  # rows that are read together


class TrialGroup(NamedTuple):
    """Trials of a list: their indices or, for two models, their places within one model's trials.

    n: of the whole group, of which a file may have a part. is_full: whether lines have texts.
    """

    anchor: str
    words: str
    n: int
    at: list[int]
    is_full: bool = True


class ListJump(NamedTuple):
    """A link at the head of a list: its words, the trials that they count, and the place of the first."""

    words: str
    n: int
    address: str


class ListFiles:
    """A list of groups as files of at most LINES lines."""

    def __init__(self, name: str, groups: Iterable[TrialGroup]) -> None:
        self.files, self.groups = [list[TrialGroup]()], list(groups)
        self._name, self._places, room = name, dict[str, str](), LINES
        for group in self.groups:
            left = group.at
            while left:
                if not room:
                    self.files.append([])
                    room = LINES
                taken, left = left[:room], left[room:]
                self.files[-1].append(group._replace(at=taken))
                self._places.setdefault(group.anchor, f"{self.name(len(self.files))}#{group.anchor}")
                room -= len(taken)

    def name(self, n: int) -> str:
        """The file of this number, which counts from 1; "" for none."""
        return f"{self._name}-{n}.html" if 1 <= n <= len(self.files) else ""

    def place(self, anchor: str) -> str:
        """The place of a group; "" for one without trials."""
        return self._places.get(anchor, "")

    def jump(self, words: str, start: str) -> ListJump:
        """All groups whose anchors begin like this; the address is that of the first, or ""."""
        same_groups = [group for group in self.groups if group.anchor.startswith(start)]
        return ListJump(
            words, sum(g.n for g in same_groups), self.place(same_groups[0].anchor) if same_groups else ""
        )


class ModelSide(NamedTuple):
    """The conversation of one model; transcript: None without an answer. why: its row is not readable."""

    model: str
    number: int
    transcript: Transcript | None
    why: str = ""


class ShownTrial(NamedTuple):
    """A trial with the conversations of all models. asked: its question, if they were asked the same."""

    place: int
    trial: Trial
    asked: tuple[PromptTurn, ...]
    sides: list[ModelSide]


class _IndexedTrial(NamedTuple):
    number: int
    model: int
    technique: int
    is_twin: bool
    state: str
    unasked: str


class StudyFiles:
    """The files of one study, and the place of each trial and of each count in them."""

    def __init__(self, study: OpenStudy) -> None:
        self._study = study
        with study.index.reading() as rows:
            of_verdict = "CASE WHEN v_digest IS r_digest THEN unasked ELSE '' END"
            wanted = f"SELECT idx, m, t, twin, state, {of_verdict} FROM trials WHERE {IN_PLAN} ORDER BY idx"
            trials = [_IndexedTrial(i, m, t, bool(b), *each) for i, m, t, b, *each in rows.execute(wanted)]
        self._trials = sorted({row.number % study.plan.n_per_model for row in trials})
        self._in_file = max(1, CONVERSATIONS // len(study.names))  # trials of a file
        self._numbers = {place: i // self._in_file + 1 for i, place in enumerate(self._trials)}
        self._list = ListFiles(f"{study.key}-conversations", self._outcomes(trials))
        self._pairs = dict[tuple[int, int], ListFiles]()

    # --- places ---

    def link(self, page: Page, asked: Asked) -> str:
        """The place of a page in these files; "" for none. Raises HeredityError for an address of none."""
        return _PLACES[page.path](self, asked)

    @property
    def report(self) -> str:
        """The file of the study's report; "" without one."""
        return "" if report_of(self._study) is None else f"{self._study.key}-report.html"

    @property
    def n_files(self) -> int:
        """The files that are known so far: a list of two models is one once a link leads to it."""
        lists = (self._list, *self._pairs.values())
        return bool(self.report) + self._n_of_trials + sum(len(each.files) for each in lists)

    @property
    def _n_of_trials(self) -> int:
        return -(-len(self._trials) // self._in_file)

    def _of_trials(self, n: int) -> str:
        return f"{self._study.key}-trials-{n}.html" if 1 <= n <= self._n_of_trials else ""

    def _conversation(self, asked: Asked) -> str:
        index = number(asked.parts["index"])
        n = self._numbers.get(index % self._study.plan.n_per_model)
        return "" if n is None else f"{self._of_trials(n)}#t-{index}"

    def _pair(self, asked: Asked) -> str:
        place = number(asked.parts["place"])
        n = self._numbers.get(place)
        return "" if n is None else f"{self._of_trials(n)}#p-{place}"

    def _conversations(self, asked: Asked) -> str:
        one = read_filters(self._study, dict(asked.query))
        if one.unasked:
            return self._list.place(f"unasked-{one.unasked}-{one.kind or 'breach'}-{one.model}")
        if not one.state:
            return self._list.name(1)
        return self._list.place(f"{one.state}-{one.kind or 'breach'}-{one.technique}-{one.model}")

    def _two_models(self, asked: Asked) -> str:
        wanted = chosen(self._study, asked)
        if (wanted.a, wanted.b) not in self._pairs:
            self._pairs[wanted.a, wanted.b] = ListFiles(
                f"{self._study.key}-pairs-{wanted.a}-{wanted.b}", self._sorts(wanted.a, wanted.b)
            )
        compared, of = self._pairs[wanted.a, wanted.b], wanted.filters
        start = f"{wanted.which}-{self._kind_asked(of)}-"
        if "which" not in asked.query:
            return compared.name(1)
        return (
            compared.jump("", start).address
            if of.technique is None
            else compared.place(f"{start}{of.technique}")
        )

    # --- lists ---

    def _outcomes(self, trials: list[_IndexedTrial]) -> Iterator[TrialGroup]:
        """By outcome, the breaches first, then by technique and model."""
        at: dict[tuple[int, int, bool, int], list[int]] = defaultdict(list)
        for row in trials:
            at[STATES.index(row.state), row.technique, row.is_twin, row.model].append(row.number)
        for (s, t, is_twin, m), indices in sorted(at.items()):
            words = f"{state_word(STATES[s])}: {self._technique(t, is_twin)}, {self._study.names[m]}"
            anchor = f"{STATES[s]}-{'benign' if is_twin else 'breach'}-{t}-{m}"
            yield TrialGroup(anchor, words, len(indices), indices)
        for m, check, is_twin, n in unasked(self._study):
            kind, of = ("benign", "harmless twins") if is_twin else ("breach", "attempts")
            words = f"Without being asked: {did(check)} in {of}, {self._study.names[m]}"
            indices = [
                row.number for row in trials
                if (row.model, row.is_twin) == (m, is_twin) and f" {check} " in row.unasked
            ]  # fmt: skip
            yield TrialGroup(f"unasked-{check}-{kind}-{m}", words, n, indices)

    def _technique(self, t: int, is_twin: bool) -> str:
        return title(self._study.techniques[t]) + (", harmless twins" if is_twin else "")

    def _sorts(self, a: int, b: int) -> Iterator[TrialGroup]:
        """Breaches before harmless twins. In each the trials that only one of them broke are first."""
        study, plan = self._study, self._study.plan
        for kind in self._kinds:
            both = shared(study, board_of(study), a, b, Filters(kind="benign" if kind == "benign" else ""))
            for which in WHICH:
                at: dict[str, list[int]] = defaultdict(list)
                for place in both.places(which):
                    probe = plan.probes[int(place) // plan.samples % len(plan.probes)]
                    if _kind_of(probe) == kind:
                        at[probe.technique].append(int(place))
                for t, technique in enumerate(study.techniques):
                    if trials := at.get(technique):
                        words = f"{self._sort(which, a, b, kind)}: {self._technique(t, kind == 'benign')}"
                        is_full = which in ("only-a", "only-b")
                        yield TrialGroup(f"{which}-{kind}-{t}", words, len(trials), trials, is_full)

    def _sort(self, which: Which, a: int, b: int, kind: str) -> str:
        only = {"only-a": f"only {self._study.names[a]}", "only-b": f"only {self._study.names[b]}"}
        words = f"{only.get(which, which)} {'refused' if kind == 'benign' else 'broke'}"
        return words if kind == "benign" or len(self._kinds) < 3 else f"{words} ({title(kind).lower()})"

    @cached_property
    def _kinds(self) -> list[str]:
        """The kinds of breaches that are never summed, that of the verdict first, then the harmless twins."""
        main = board_of(self._study).main_scope
        order = [main, *(scope for scope in SCOPES["breach"] if scope != main), _BASELINE, "benign"]
        kinds = {_kind_of(probe) for probe in self._study.plan.probes}
        return [kind for kind in order if kind in kinds]

    def _kind_asked(self, of: Filters) -> str:
        """The kind of the trials that a link to two models opens."""
        if of.kind == "benign" or of.scope or of.technique is None:
            return "benign" if of.kind == "benign" else of.scope or self._kinds[0]
        name = self._study.techniques[of.technique]
        kinds = [_kind_of(p) for p in self._study.plan.probes if p.technique == name and p.kind == "breach"]
        return next(iter(kinds), "benign")

    # --- pages ---

    def pages(self, site: Site) -> Iterator[tuple[str, str]]:
        """The name and the HTML of each file."""
        if self.report:
            yield self.report, self._report_page(site)
        for n in range(1, self._n_of_trials + 1):
            yield self._of_trials(n), self._trials_page(site, n)
        for n in range(1, len(self._list.files) + 1):
            yield self._list.name(n), self._list_page(site, n)
        for (a, b), compared in tuple(self._pairs.items()):
            for n in range(1, len(compared.files) + 1):
                yield compared.name(n), self._pairs_page(site, compared, n, a, b)

    def _asked(self, path: str) -> Asked:
        return Asked(path.replace("{study}", self._study.key), {"study": self._study.key}, {})

    def _report_page(self, site: Site) -> str:
        """The report, made from the rows: a report.html of a folder from elsewhere could open connections."""
        try:
            return html.render(self._study.folder)
        except HeredityError as error:
            return site.failure(self._asked("/s/{study}"), str(error))

    def _trials_page(self, site: Site, n: int) -> str:
        first = (n - 1) * self._in_file
        places = self._trials[first : first + self._in_file]
        return site.html(
            "exported_trials.html.jinja", self._asked("/s/{study}/t/0"), self._study,
            trials=[self._shown(place) for place in places], first=first + 1, n=len(self._trials),
            before=self._of_trials(n - 1), after=self._of_trials(n + 1),
        )  # fmt: skip

    def _shown(self, place: int) -> ShownTrial:
        n, names = self._study.plan.n_per_model, self._study.names
        sides = [_side(self._study, name, place + m * n) for m, name in enumerate(names)]
        asked = {
            side.transcript.steps[0].turns for side in sides if side.transcript and side.transcript.steps
        }
        trial = self._study.grid.trial(place)
        return ShownTrial(place, trial, asked.pop() if len(asked) == 1 else (), sides)

    def _list_page(self, site: Site, n: int) -> str:
        pages = self._list
        every = [index for group in pages.files[n - 1] for index in group.at]
        return site.html(
            "exported_list.html.jinja", self._asked(LIST.path), self._study,
            groups=pages.files[n - 1], rows=_read(self._study, every),
            jumps=[
                *(pages.jump(state_word(state), f"{state}-") for state in STATES),
                pages.jump("harm without being asked", "unasked-"),
            ],
            before=pages.name(n - 1), after=pages.name(n + 1),
        )  # fmt: skip

    def _pairs_page(self, site: Site, list_files: ListFiles, n: int, a: int, b: int) -> str:
        per_model = self._study.plan.n_per_model
        places = [place for group in list_files.files[n - 1] for place in group.at]
        jumps = [
            list_files.jump(self._sort(which, a, b, kind), f"{which}-{kind}-")
            for kind in self._kinds for which in WHICH
        ]  # fmt: skip
        return site.html(
            "exported_pairs.html.jinja", self._asked(PAIRS.path), self._study,
            groups=list_files.files[n - 1], a=a, b=b, n=per_model, is_edge=is_edge(self._study, a, b),
            rows=_read(self._study, [place + m * per_model for place in places for m in (a, b)]),
            jumps=jumps, before=list_files.name(n - 1), after=list_files.name(n + 1),
        )  # fmt: skip


# By the path of a page on the server: its place in the files of a study.
_PLACES: dict[str, Callable[[StudyFiles, Asked], str]] = {
    ONE.path: StudyFiles._conversation,
    LIST.path: StudyFiles._conversations,
    PAIR.path: StudyFiles._pair,
    PAIRS.path: StudyFiles._two_models,
}


def _kind_of(probe: Probe) -> str:
    if probe.kind == "benign":
        return "benign"
    return next((scope for scope in SCOPES["breach"] if is_part(probe, scope)), _BASELINE)


def _side(study: OpenStudy, model: str, index: int) -> ModelSide:
    try:
        return ModelSide(model, index, read(study, index))
    except HeredityError as error:
        return ModelSide(model, index, None, str(error))


def _read(study: OpenStudy, indices: list[int]) -> dict[int, ListedRow]:
    rows = dict[int, ListedRow]()
    for start in range(0, len(indices), _AT_ONCE):
        rows |= rows_of(study, indices[start : start + _AT_ONCE])
    return rows


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
        if not page.is_exported:
            return ""
        if page.path in _PLACES:
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
        raise UsageError(f"{out} holds other files. Name a new folder: --export.")
    for listed in place.studies():
        try:
            place.open(listed.key).refresh(float("inf"))
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
