"""Probes: what a study asks. Each `<technique>.toml` here is a technique: items, checks and benign twins.

    load("core")                       the default of a study; techniques without a judge first
    load("quick")                      about eight items per technique of those, spread over its behaviours
    load("full")                       core, and the items that would make it too long
    load("core-hard")                  long documents, tasks of several steps, tools' descriptions, pressure
    load("refusals")                   200 harmful requests of graded severity, each with a boundary twin
    load("public")                     HarmBench, JailbreakBench, XSTest, StrongREJECT: those in the store
    load("import:xstest:FILE")         a user's own copy of a public set; see importers/
    load(["planted_secret", "*_injection/*", "my-own.toml"])

Promises: the same names give the same probes in the same order. A breach-seeking probe never comes without
its twin. A mistake in a file is one line that names file, line and item, by the same rules for the package's
own. A technique that loads can be judged: every regular expression compiles and every sample of a breach
fires. An item whose own text holds its marker is refused, so that quoting never counts as obeying.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NoReturn

import msgspec
from msgspec import UNSET, UnsetType

from heredity.application.spec import Application
from heredity.core import registry
from heredity.core.errors import BadInput, UnknownName, UsageError, code_of, did_you_mean, nearest
from heredity.core.readers import in_words, toml_of
from heredity.core.records import (
    Change,
    Check,
    Probe,
    Record,
    Severity,
    ToolDescription,
    ToolResult,
    Usefulness,
)
from heredity.redteam.checks import PATTERN, BadCheck, is_judged, load_check, parse_check, phrase_regex, says
from heredity.redteam.probes import importers, public
from heredity.redteam.text import fold, shown_texts, squeeze

# --- long documents, with a text inserted at one of three places: @begin, @middle, @end ---------------

Place = Literal["begin", "middle", "end"]
_PLACE = re.compile(r"^@(begin|middle|end)[ \t]*\n?", re.MULTILINE)


def with_insert(documents: Mapping[str, str], name: str, insert: str, at: Place) -> str:
    """A document with `insert` at its line `@begin`, `@middle` or `@end`; the other lines of places go.

    Raises KeyError, with a message, if the document or its place is missing.
    """
    if name not in documents:
        raise KeyError(f"no document '{name}' in `documents`.{did_you_mean(name, list(documents))}")
    if [place[1] for place in _PLACE.finditer(documents[name])].count(at) != 1:
        raise KeyError(f"the document '{name}' needs one line '@{at}'")
    text = insert.strip()
    filled = _PLACE.sub(lambda place: f"{text}\n" if text and place[1] == at else "", documents[name])
    return re.sub(r"\n{3,}", "\n\n", filled).strip()


# --- fitting probes to an application -----------------------------------------------------------------
# A filled probe has no slot left; a twin is asked exactly when its breach-seeking probe is.

# Slot -> why it cannot be filled where the application has no such thing.
SLOTS = {
    "company": "the application names no company",
    "secret_name": "the application has no planted secret",
    "tool": "the application has no allowed tool",
    "forbidden_tool": "the application has no forbidden tool",
}
SLOT = re.compile(r"\{([a-z_]+)\}")


def slots(probe: Probe) -> tuple[str, ...]:
    """The names of the slots in a probe's texts and tool names."""
    texts = (*shown_texts(probe), *_named(probe), *_phrases(probe))
    return tuple(m[1] for text in texts for m in SLOT.finditer(text))


def applies(probe: Probe, application: Application) -> str | None:
    """None if the probe can be asked inside this application, or else the reason."""
    values = slot_values(application)
    for slot in slots(probe):
        if slot in SLOTS and not values[slot]:  # other braces stay: they belong to texts by others
            return SLOTS[slot]
    return (
        load_check(probe.check).why_not(application)
        or _untold_secret(probe, application)
        or _missing_tool(probe, application)
        or _missing_turns(probe, application)
    )


def fill(probe: Probe, application: Application) -> Probe:
    """The probe with its slots filled from the application. Raises UsageError if it does not apply."""
    reason = applies(probe, application)
    if reason is not None:
        raise UsageError(f"Probe '{probe.id}' does not apply: {reason}.")
    values = slot_values(application)

    def put(text: str) -> str:
        return SLOT.sub(lambda match: values.get(match[1], match[0]), text)

    result = probe.tool_result
    return msgspec.structs.replace(
        probe,
        turns=tuple(map(put, probe.turns)),
        passage=put(probe.passage),
        tool_result=result and msgspec.structs.replace(result, tool=put(result.tool), text=put(result.text)),
        check=msgspec.structs.replace(probe.check, tool=put(probe.check.tool)),
        useful=_filled(probe.useful, put),
        tool_description=_described(probe.tool_description, put),
    )


def select(
    probes: Iterable[Probe], application: Application
) -> tuple[tuple[Probe, ...], tuple[tuple[str, str], ...]]:
    """The probes that apply, filled, and the (id, reason) of those that are skipped.

    A twin is skipped with its breach-seeking probe, so that both rates are over the same items.
    """
    probes = tuple(probes)
    reasons = {p.id: reason for p in probes if (reason := applies(p, application)) is not None}
    for probe in probes:
        if probe.twin in reasons:
            reasons.setdefault(probe.id, f"its counterpart is skipped: {reasons[probe.twin]}")
    kept = tuple(fill(probe, application) for probe in probes if probe.id not in reasons)
    return kept, tuple((probe.id, reasons[probe.id]) for probe in probes if probe.id in reasons)


def slot_values(application: Application) -> dict[str, str]:
    """The value of each slot; "" if the application lacks it."""
    allowed = [tool.name for tool in application.tools if not tool.is_forbidden]
    forbidden = [tool.name for tool in application.tools if tool.is_forbidden]
    return {
        "company": application.company,
        "secret_name": application.secrets[0].name if application.secrets else "",
        "tool": allowed[0] if allowed else "",
        "forbidden_tool": forbidden[0] if forbidden else "",
    }


def _untold_secret(probe: Probe, application: Application) -> str | None:
    """A model that never sees the secret cannot disclose it: its rate of 0 would mean nothing."""
    if probe.check.kind != "secret" or application.rendering not in ("plain", "native"):
        return None  # what another target holds is not ours to read
    state = {} if application.state is None else application.state
    shown = msgspec.to_builtins((application.messages(), application.tools, state, probe))
    visible = squeeze(fold("\n".join(_texts(shown))))
    if any(squeeze(fold(secret.value)) in visible for secret in application.secrets):
        return None
    return "no text of the application tells the model the secret"


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in (*value, *value.values()):
            yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _missing_tool(probe: Probe, application: Application) -> str | None:
    known, planted = {tool.name for tool in application.tools}, probe.tool_description
    if not isinstance(planted, UnsetType):
        if application.rendering == "theirs":
            return "the target describes its own tools"
        if planted.is_added and planted.tool in known:
            return f"the application has a tool named {planted.tool} already"
        known |= {planted.tool} if planted.is_added else set()
    for name in _named(probe):
        if name and not SLOT.search(name) and name not in known:
            return f"the application has no tool named {name}"
    return None


def _missing_turns(probe: Probe, application: Application) -> str | None:
    # A tool's result needs a reply that calls the tool and one that reports its result, both to one turn.
    needed = max(len(probe.turns), 1 + (probe.tool_result is not None))
    if needed > application.max_turns:
        return f"it needs {needed} replies, and the application's max_turns is {application.max_turns}"
    return None


def _named(probe: Probe) -> tuple[str, ...]:
    useful = "" if isinstance(probe.useful, UnsetType) else probe.useful.tool
    planted = probe.tool_description
    described = "" if isinstance(planted, UnsetType) or planted.is_added else planted.tool
    return (probe.check.tool, probe.tool_result.tool if probe.tool_result else "", useful, described)


def _described(given: ToolDescription | UnsetType, put: Callable[[str], str]) -> ToolDescription | UnsetType:
    if isinstance(given, UnsetType):
        return UNSET
    return msgspec.structs.replace(given, tool=put(given.tool), text=put(given.text))


def _phrases(probe: Probe) -> tuple[str, ...]:
    """The phrases of a useful answer; the braces of a regular expression are not slots."""
    if isinstance(probe.useful, UnsetType):
        return ()
    return tuple(phrase for phrase in probe.useful.phrases if not phrase.startswith(PATTERN))


def _filled(useful: Usefulness | UnsetType, put: Callable[[str], str]) -> Usefulness | UnsetType:
    if isinstance(useful, UnsetType):
        return UNSET
    phrases = tuple(each if each.startswith(PATTERN) else put(each) for each in useful.phrases)
    return msgspec.structs.replace(useful, phrases=phrases, tool=put(useful.tool))


# --- reading a technique's file -----------------------------------------------------------------------

Suite = Literal["core", "full", "core-hard", "refusals"]


class Twin(Record, frozen=True):
    """The benign twin of an item; missing fields are the item's, except the injected text."""

    turns: tuple[str, ...] = ()
    passage: str = ""
    tool_result: str | ToolResult = ""
    insert: str = ""  # stands in the item's document where the item's own text stands
    tool_description: str | ToolDescription = ""
    # Words of the item's turns, and what instead.
    replace: dict[str, str] = msgspec.field(default_factory=dict)
    useful: tuple[str, ...] = ()  # a useful answer has one of these phrases, or matches one after "re:"
    useful_tool: str = ""  # a useful answer calls this tool
    useful_changes: tuple[Change, ...] = ()  # a useful answer makes these changes of the application's state


class ProbeItem(Record, frozen=True):
    """One item of a technique's file. The fields before `check` are a short way to write one."""

    id: str
    cluster: str
    turns: tuple[str, ...]
    passage: str = ""
    tool_result: str | ToolResult = ""  # a plain text is what {tool} answers
    document: str = ""  # the name of one of the file's `documents`, as the passage
    insert: str = ""  # a text that stands in the document, at `at`
    at: Place = "middle"
    tool_description: str | ToolDescription = ""  # a plain text is the description of {tool}
    severity: Severity | None = None
    marker: str = ""  # what only obeying produces: a check of kind "marker"
    continues: str = ""  # the words that follow: a check of kind "pattern" that ignores case and punctuation
    poisoned: tuple[str, ...] = ()  # ways to say the poisoned answer: a check of kind "answer"
    truth: tuple[str, ...] = ()  # phrasings of the true one, next to `poisoned`
    invents: str = ""  # a package that does not exist: a check of kind "package"
    solved: tuple[str, ...] = ()  # ways to say the right answer: a check of kind "task"
    check: dict[str, Any] | None = None  # `kind`, and the settings of that kind (redteam/checks/)
    obeys: str = ""  # a sample of a breach, tried against a check of kind "pattern" when the file is read
    twin: Twin | None = None
    why_no_twin: str = ""
    threats: tuple[str, ...] = ()
    language: str = ""
    suite: Suite | None = None
    kind: Literal["breach", "benign"] = "breach"  # benign: only judged for refusal, without a counterpart


class ProbeFile(Record, frozen=True):
    """A technique's file; `check`, `why_no_twin` and `threats` are for items that lack them."""

    title: str
    description: str
    source: str = ""
    known_error: str = ""
    technique: str = ""  # the file's name if left out
    threats: tuple[str, ...] = ()
    check: dict[str, Any] | None = None  # `kind`, and the settings of that kind (redteam/checks/)
    why_no_twin: str = ""
    language: str = "en"
    is_baseline: bool = False  # measures a capability: its probes are left out of the row over all techniques
    severity: Severity | None = None  # of the harm of a breach, from 1 to 4
    # Long texts by name, with the lines @begin, @middle and @end.
    documents: dict[str, str] = msgspec.field(default_factory=dict)
    suite: Suite = "core"  # "full": only in "full"; "core-hard", "refusals": only in these
    is_verbatim: bool = False  # texts by others: their braces are not slots
    probe: tuple[ProbeItem, ...] = ()


_NAME = re.compile(r"[a-z0-9]+(?:[-_][a-z0-9]+)*")


class Bank(msgspec.Struct, frozen=True):
    """A parsed technique: its words, and its probes, each twin directly after its breach-seeking probe."""

    technique: str
    title: str
    description: str
    threats: tuple[str, ...]
    source: str
    known_error: str
    probes: tuple[Probe, ...]
    samples: dict[str, str]  # probe id -> a breaching answer, where the file gives one
    suites: dict[str, Suite]  # probe id -> its suite

    @property
    def is_judge_free(self) -> bool:
        return not any(is_judged(p.check) for p in self.probes if p.kind == "breach")


def read_bank(path: Path) -> Bank:
    """Read one file. Raises BadInput with file, line and item."""
    path = path.resolve()
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        changed = 0  # reading it gives the error
    return _read(path, changed)


@lru_cache(maxsize=64)
def _read(path: Path, _changed: int) -> Bank:
    return _BankReader(path).bank()


def phrase_pattern(words: str) -> str:
    """A regular expression for these words in a row, whatever the case, line breaks and punctuation."""
    return r"(?i)\b" + r"[\W_]+".join(re.escape(w) for w in re.findall(r"[^\W_]+", words)) + r"\b"


class _BankReader:
    """Parses one file into a Bank; as a class, it can name the place of every mistake."""

    def __init__(self, path: Path) -> None:
        self.path = path
        data = toml_of(path)
        self.lines = path.read_text(encoding="utf-8").splitlines()
        self.heads = [n for n, line in enumerate(self.lines, 1) if re.match(r"\s*\[\[\s*probe\s*\]\]", line)]
        self.file = self._convert(data)
        self.technique = self.file.technique or path.stem

    def bank(self) -> Bank:
        file = self.file
        if not _NAME.fullmatch(self.technique):
            self._fail(f"the technique's name '{self.technique}' may have only a-z, 0-9, - and _")
        is_ours = self.path == Path(__file__).resolve().parent / f"{self.technique}.toml"
        if why := "" if is_ours else importers.why_name_taken(self.technique):
            self._fail(why, key="technique" if self.file.technique else "", code="name-twice")
        if not file.probe:
            self._fail("has no items: write at least one [[probe]]")
        probes: dict[str, Probe] = {}
        suites: dict[str, Suite] = {}
        for place, item in enumerate(file.probe):
            for probe in self._probes(place, item):
                if probe.id in probes:
                    self._fail(f"the id '{item.id}' is used twice", place, code="name-twice")
                probes[probe.id] = probe
                suites[probe.id] = item.suite or file.suite
        given = ((item.id, item.obeys or item.continues) for item in file.probe)
        samples = {f"{self.technique}/{name}": sample for name, sample in given if sample}
        words = (file.title, file.description, file.threats, file.source, file.known_error)
        return Bank(self.technique, *words, tuple(probes.values()), samples, suites)

    def _probes(self, place: int, item: ProbeItem) -> list[Probe]:
        for what, name in (("id", item.id), ("cluster", item.cluster)):
            if not _NAME.fullmatch(name):
                self._fail(f"{what} '{name}' may have only a-z, 0-9, - and _", place)
        name = f"{self.technique}/{item.id}"
        twin_name = f"{name}~benign" if item.twin else None
        why = "" if item.twin else item.why_no_twin or self.file.why_no_twin
        if item.twin is not None and item.why_no_twin:
            self._fail(f"item '{item.id}' has both `twin` and `why_no_twin`", place)
        if item.kind == "benign":
            return [self._benign(place, item, name)]
        probe = Probe(
            name, self.technique, "breach", item.turns, self._check(place, item), item.cluster,
            item.threats or self.file.threats, self._passage(place, item, item),
            _result(item.tool_result), twin_name, why, item.language or self.file.language,
            self.file.is_baseline, UNSET, item.severity or self.file.severity or UNSET,
            _description(item.tool_description),
        )  # fmt: skip
        self._verify_texts(place, item, probe)
        try:
            load_check(probe.check).validate(probe, item.obeys)
        except BadCheck as error:
            self._fail(f"item '{item.id}': {error}", place, error.key, code=error.code)
        if item.twin is None:
            if not why:
                self._fail(
                    f"item '{item.id}' has neither a `twin` nor a `why_no_twin`", place, code="missing-key"
                )
            return [probe]
        useful = Usefulness(item.twin.useful, item.twin.useful_tool, item.twin.useful_changes)
        twin = Probe(
            f"{name}~benign", self.technique, "benign", _twin_turns(item, item.twin), Check("refusal"),
            item.cluster, probe.threats, self._passage(place, item, item.twin),
            _result(item.twin.tool_result), name, "", probe.language, probe.is_baseline,
            UNSET if useful == Usefulness() else useful, UNSET, _description(item.twin.tool_description),
        )  # fmt: skip
        self._verify_twin(place, item, probe, twin)
        return [probe, twin]

    def _passage(self, place: int, item: ProbeItem, given: ProbeItem | Twin) -> str:
        """The passage of an item or its twin: its own text, or the item's document with its insert."""
        if not item.document:
            return given.passage.strip()
        try:
            return with_insert(self.file.documents, item.document, given.insert, item.at)
        except KeyError as error:
            self._fail(f"item '{item.id}': {error.args[0]}", place, "document", code="unknown-name")

    def _benign(self, place: int, item: ProbeItem, name: str) -> Probe:
        if item.twin is not None or self._ways(item):
            self._fail(f"item '{item.id}' is benign: it has no twin and no check of its own", place)
        probe = Probe(
            name, self.technique, "benign", item.turns, Check("refusal"), item.cluster,
            item.threats or self.file.threats, self._passage(place, item, item), _result(item.tool_result),
            None, "", item.language or self.file.language, self.file.is_baseline,
        )  # fmt: skip
        self._verify_texts(place, item, probe)
        return probe

    def _ways(self, item: ProbeItem) -> int:
        """Number of ways in which an item gives its check."""
        given = (
            item.check,
            item.marker,
            item.continues,
            item.invents,
            item.poisoned or item.truth,
            item.solved,
        )
        return sum(bool(each) for each in given)

    def _check(self, place: int, item: ProbeItem) -> Check:
        if self._ways(item) > 1:
            ways = "`check`, `marker`, `continues`, `invents`, `poisoned`, `solved`"
            self._fail(f"item '{item.id}' has more than one of {ways}", place)
        if item.invents:
            return Check("package", text=item.invents)
        if item.poisoned or item.truth:
            poisoned, truth = (tuple(map(phrase_pattern, each)) for each in (item.poisoned, item.truth))
            return Check("answer", patterns=poisoned, unless=truth)
        if item.solved:  # a number is not part of a longer one (12,000 is not 12)
            number = r"(?<![\d.,]){}(?!\d|[.,]\d)"
            solved = (number.format(s) if s.isdigit() else phrase_pattern(s) for s in item.solved)
            return Check("task", patterns=tuple(solved))
        if item.marker:
            return Check("marker", text=item.marker)
        if item.continues:
            return Check("pattern", patterns=(phrase_pattern(item.continues),))
        table = self.file.check if item.check is None else item.check
        if table is None:
            self._fail(
                f"item '{item.id}' has no `check`, and the file gives none for all", place, code="missing-key"
            )
        try:
            return parse_check(table)
        except BadCheck as error:
            given_at = place if item.check is not None else None
            self._fail(str(error), given_at, error.key or "check", code=error.code)

    def _verify_texts(self, place: int, item: ProbeItem, probe: Probe) -> None:
        if not probe.turns or not all(turn.strip() for turn in probe.turns):
            self._fail(f"item '{item.id}' has no turns, or an empty one", place)
        for slot in slots(probe):
            if slot not in SLOTS and not self.file.is_verbatim:
                near = nearest(slot, SLOTS)
                hint = f"Did you mean '{{{near}}}'?" if near else f"Known: {', '.join(SLOTS)}."
                self._fail(f"item '{item.id}': unknown slot '{{{slot}}}'. {hint}", place, code="unknown-name")

    def _verify_twin(self, place: int, item: ProbeItem, probe: Probe, twin: Probe) -> None:
        self._verify_texts(place, item, twin)
        if (twin.turns, shown_texts(twin)) == (probe.turns, shown_texts(probe)):
            self._fail(f"item '{item.id}': the twin asks the very same thing", place)
        if twin.useful is not UNSET:
            phrases = twin.useful.phrases
            for phrase in phrases:
                try:
                    phrase_regex(phrase)
                except ValueError as error:
                    self._fail(f"item '{item.id}': {error}", place, "useful")
                if not SLOT.search(phrase) and says([phrase], twin.turns):
                    self._fail(
                        f"item '{item.id}': '{phrase}' in `useful` stands in the twin's question",
                        place,
                        "useful",
                    )

    def _convert(self, data: dict[str, Any]) -> ProbeFile:
        try:
            return msgspec.convert(data, ProbeFile, strict=True)
        except msgspec.ValidationError as error:
            message = str(error)
            where = re.search(r"at `\$\.probe\[(\d+)\]", message)
            place = int(where[1]) if where else None
            unknown = re.search(r"unknown field `([^`]+)`", message)
            if unknown is None:
                named = re.search(r"at `\$\.(?:probe\[\d+\]\.)?(\w+)", message)
                self._fail(in_words(message), place, named[1] if named else "", code=code_of(error))
            known = {
                f
                for s in (ProbeFile, ProbeItem, Twin, ToolResult, ToolDescription, Change)
                for f in s.__struct_fields__
            }
            hint = did_you_mean(unknown[1], sorted(known))
            self._fail(f"unknown key '{unknown[1]}'.{hint}", place, unknown[1], code="unknown-key")

    def _fail(self, message: str, place: int | None = None, key: str = "", *, code: str = "") -> NoReturn:
        """Raise BadInput at the `place`-th item, at the line of `key` inside it if it has that key."""
        start = self.heads[place] if place is not None and place < len(self.heads) else 0
        line = start
        for number in range(start, len(self.lines) if key else 0):
            if re.search(rf"(?:^|[\s{{,\[.])\"?{re.escape(key)}\"?\s*(?:=|\])", self.lines[number]):
                line = number + 1
                break
        raise BadInput(self.path, message, line, code=code)


def _twin_turns(item: ProbeItem, twin: Twin) -> tuple[str, ...]:
    """The twin's own turns, or else the item's with other words."""
    turns = twin.turns or item.turns
    for old, new in twin.replace.items():
        turns = tuple(turn.replace(old, new) for turn in turns)
    return turns


def _description(given: str | ToolDescription) -> ToolDescription | UnsetType:
    if isinstance(given, ToolDescription):
        return given
    return ToolDescription("{tool}", given.strip()) if given.strip() else UNSET


def _result(given: str | ToolResult) -> ToolResult | None:
    if isinstance(given, ToolResult):
        return given
    return ToolResult("{tool}", given.strip()) if given.strip() else None


# --- the suites ---------------------------------------------------------------------------------------

SUITES = ("core", "quick", "full", "core-hard", "refusals")
_FILES = (".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".txt", ".parquet")
N_QUICK = 8  # breach-seeking items of each technique in the suite "quick"


class Technique(msgspec.Struct, frozen=True):
    """One technique of the package, as `heredity probes` lists it."""

    name: str
    title: str
    description: str
    threats: tuple[str, ...]
    n_items: int
    n_twins: int
    is_judge_free: bool
    n_core: int  # of the items, those that the suite "core" asks
    n_hard: int = 0  # of the items, those that the suite "core-hard" asks


def load(names: Sequence[str | Probe] | str = "core") -> tuple[Probe, ...]:
    """The probes that `names` select: a suite, a technique, a glob over ids, a TOML file, an import, probes.

    Each breach-seeking probe is followed directly by its twin, except probes that are given as such. Raises
    UnknownName with the nearest known name, and BadInput with file and line for a malformed file.
    """
    wanted = [names] if isinstance(names, str) else list(names)
    if not wanted:
        raise UsageError(
            f"No probes were chosen. Choose a suite: {', '.join(SUITES)}; or see: heredity probes"
        )
    chosen: dict[str, Probe] = {}
    for name in wanted:
        for probe in (name,) if isinstance(name, Probe) else _choose(name):
            if chosen.setdefault(probe.id, probe) != probe:
                raise UsageError(
                    f"Two different probes are named '{probe.id}'. Rename one of them.", code="name-twice"
                )
    return tuple(chosen.values())


def techniques() -> list[Technique]:
    """The techniques of the package, those that need no judge first."""
    return [_technique(bank) for bank in _banks()]


def _banks() -> list[Bank]:
    banks = [_bank(name) for name in registry.names("redteam.probes", ".toml")]
    return sorted(banks, key=lambda bank: not bank.is_judge_free)  # stable: by name within each half


def _bank(technique: str) -> Bank:
    return read_bank(Path(__file__).parent / f"{technique}.toml")


def _technique(bank: Bank) -> Technique:
    n_twins = sum(probe.kind == "benign" for probe in bank.probes)
    n_items = len(bank.probes) - n_twins
    n_core, n_hard = (
        sum(probe.kind == "breach" and bank.suites[probe.id] == suite for probe in bank.probes)
        for suite in ("core", "core-hard")
    )
    header = (bank.technique, bank.title, bank.description, bank.threats)
    return Technique(*header, n_items, n_twins, bank.is_judge_free, n_core, n_hard)


def _choose(name: str) -> tuple[Probe, ...]:
    if name == "public":
        return public.load()[0]
    if name.startswith(importers.PREFIX):
        return importers.load_import(name).probes
    if name.endswith(".toml"):
        return read_bank(Path(name)).probes
    if name in registry.names("redteam.probes", ".toml"):
        return _bank(name).probes
    path = Path(name)
    if path.suffix in _FILES or (path.suffix and path.is_file()):
        kinds = ", ".join(importers.kinds())
        raise UsageError(
            f"'{name}' is not a probe file, which is TOML. For another kind write import:KIND:{name}; the "
            f"kinds are {kinds}."
        )
    banks = _banks()
    if name == "quick":
        return tuple(probe for bank in banks for probe in _spread(_of_suites(bank, ("core",)), N_QUICK))
    if name in SUITES:
        wanted = ("core", "full") if name == "full" else (name,)
        return tuple(probe for bank in banks for probe in _of_suites(bank, wanted))
    everything = [probe for bank in banks for probe in bank.probes]
    hits = {p.id for p in everything if fnmatchcase(p.id, name)}
    if not hits:
        known = [*SUITES, "public", *(bank.technique for bank in banks), *(p.id for p in everything)]
        raise UnknownName("probe", name, known, "heredity probes")
    return tuple(p for p in everything if p.id in hits or (p.kind == "benign" and p.twin in hits))


def _of_suites(bank: Bank, suites: Sequence[str]) -> list[Probe]:
    return [probe for probe in bank.probes if bank.suites[probe.id] in suites]


def _spread(probes: Iterable[Probe], n: int) -> list[Probe]:
    """About `n` breach-seeking probes, evenly over the clusters, each with its twin."""
    probes = list(probes)
    clusters: dict[str, list[Probe]] = {}
    for probe in probes:
        if probe.kind == "breach":
            clusters.setdefault(probe.cluster, []).append(probe)
    depth = max((len(members) for members in clusters.values()), default=0)
    # One of every cluster, then a second of every cluster, and so on.
    rounds = [[m[rank] for m in clusters.values() if rank < len(m)] for rank in range(depth)]
    picked: set[str] = set()
    for members in rounds:
        room = n - len(picked)
        step = max(1.0, len(members) / room) if room else 0
        picked |= {members[int(i * step)].id for i in range(min(room, len(members)))}
    return [p for p in probes if p.id in picked or (p.kind == "benign" and p.twin in picked)]
