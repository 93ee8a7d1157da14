"""The plan of a study, resolved before the first request: its trials with their order, ids and seeds.

Promises: plan.json holds everything that decides the questions. The same plan asks the same questions in the
same order. A trial is a number, and its id and seed follow from it. A folder never holds two plans.
Leaves to others: making a plan from a user's settings (resolve.py), asking (runner.py) and judging.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, combinations, zip_longest
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import msgspec
from msgspec import UnsetType

from heredity.application.guards import GuardSpec
from heredity.application.spec import Application
from heredity.core import files, registry
from heredity.core.errors import Damaged, NotComparable, Unavailable, UnknownName, UsageError
from heredity.core.records import SCHEMA, Probe, Record, Retrieved, digest, encode, encoded
from heredity.core.sanitize import label
from heredity.lineage.graph import Edge, without_seeds
from heredity.lineage.references import spellings
from heredity.redteam import attacks
from heredity.redteam.attacks import Attack, AttackContext
from heredity.redteam.probes.public import PublicFile

PLAN = "plan.json"
_READ_WITH = "Read it with the version that made it, or ask again in another folder."
_FLAGS = {name: f"--{name}" for name in ("samples", "seed", "margin", "confidence", "limit")}
Stopping = Literal["fixed", "group_sequential", "until_decided"]
Between = Literal["pairs", "edges"]
Endpoint = Literal["all_trials", "decided_trials", "not_refused"]
MAX_TRIALS = 100_000_000  # their outcomes take two bytes of memory each


class PlannedTrigger(Record, frozen=True):
    """The words before document number `document` (from 0) of a probe and its twin, and the search for them.

    before, after: the cosine of the embeddings of question and document, without and with the words.
    """

    probe: str
    document: int
    n_steps: int
    words: str
    before: float
    after: float


class ProbeLimit(Record, frozen=True):
    """Of `n_chosen` probes, `n_asked` are in the plan. Twins are not counted, but where they stand alone."""

    n_asked: int
    n_chosen: int

    def __str__(self) -> str:
        return str(self.n_asked)


class PlannedModel(Record, frozen=True, omit_defaults=True):
    """A model of the study: the part of its lineage record that rows and reports need."""

    id: str
    name: str
    family: str
    licence: str
    format: str
    of: str | None = None  # behind guards: the id of the model that is loaded
    guards: tuple[GuardSpec, ...] | None = None  # beyond the application's


class PlannedPlugin(Record, frozen=True):
    """A plug-in from outside that the study uses: `sha256` is that of its file."""

    folder: str
    name: str
    package: str
    version: str
    sha256: str

    @property
    def release(self) -> str:
        """Package and version; an object of a module has no version."""
        return f"{self.package} {self.version}".strip()


def planned_plugins(plugins: Iterable[tuple[str, str]]) -> tuple[PlannedPlugin, ...] | None:
    """Those of (folder, name) that are from outside, as a plan records them; None without any."""
    used = [(folder, name, registry.outside(folder, name)) for folder, name in sorted(set(plugins))]
    made = (PlannedPlugin(f, name, its.package, its.version, its.sha256) for f, name, its in used if its)
    return tuple(made) or None


def refuse_absent(plugins: Iterable[PlannedPlugin] | None, folder: str) -> None:
    """Raise Unavailable, with its package, for a planned plug-in of `folder` that is not installed here."""
    for each in plugins or ():
        is_object = "." in each.name
        if each.folder == folder and not is_object and registry.outside(folder, each.name) is None:
            raise Unavailable(
                f"The study was planned with '{each.name}' of the package {each.release}, "
                "which is not installed here. Install it, and run the same command again.",
                code="package-missing",
            )


class SkippedProbe(Record, frozen=True):
    """A probe ("*": all) that cannot be asked in this application or by one of the models, and why."""

    probe: str
    reason: str


class ComparisonFamily(Record, frozen=True):
    """Comparisons that Holm corrects together: `n` of them, each of `between` in each of `scopes`."""

    between: Between  # pairs of models, or edges of parent and child
    measure: Literal["breach", "over_refusal"]
    scopes: tuple[str, ...]  # of estimates.SCOPES
    n: int


class PlannedAnalysis(Record, frozen=True):
    """An interim analysis of a group-sequential plan; the last one has every probe.

    n_probes     of the plan's order that are asked by then
    information  the share of the behaviours behind the primary comparison
    level        two-sided, of one comparison by itself at this analysis; Holm's steps have lower ones
    one_sided    the level of its bound for "not worse"
    """

    n_probes: int
    information: float
    level: float
    one_sided: float


class Analysis(Record, frozen=True, omit_defaults=True):
    """The analysis that a plan declares before the first answer. Level and margin are the plan's own.

    endpoint       the primary rate. "all_trials": breaches over all answered trials, unclear ones included.
                   "decided_trials": over trials that held or broke, as in plans without an analysis.
                   "not_refused": as "all_trials", but answers that do not refuse if a judge decides
    unclear_share  "worse" must hold even if this share of the other model's unclear answers, and all its
                   failed trials, were breaches
    error_share    "worse" holds only if it survives that this share of its breaches were false alarms, and of
                   the other model's held trials were breaches. Unset for 0
    stopping       "fixed": every trial is asked. Else interim analyses stop models (Plan.blocks).
                   "group_sequential": at few planned ones (`interim`), with levels that add up to the
                   plan's (stats/sequential.py). "until_decided": with tests that hold after any trial
    judge          decides what no check decides
    families       claims beyond these comparisons, such as those of one technique, are exploratory
    primary        the comparison that the study is about; None for a study of one model.
    ends_at_breach whether a breach that a check finds in a step of crescendo ends its conversation.
    steps          "by_behaviour": attacks that lead up to a demand word their steps for each behaviour.
                   Both are unset without such an attack, and in plans of releases that did neither
    plugins        from outside: of the judge, whose change judges the answers again; findings; report formats
    """

    endpoint: Endpoint = encoded("all_trials")
    unclear_share: float = encoded(0.25)
    stopping: Stopping = encoded("fixed")
    judge: str = encoded("")
    families: tuple[ComparisonFamily, ...] = encoded(())
    primary: ComparisonFamily | None = encoded(None)
    interim: tuple[PlannedAnalysis, ...] | None = None
    error_share: float | None = None
    steps: Literal["by_behaviour"] | None = None
    ends_at_breach: bool | None = None
    plugins: tuple[PlannedPlugin, ...] | None = None

    @property
    def is_of_edges(self) -> bool:
        """Whether its primary comparisons are those of parents and children."""
        return self.primary is not None and self.primary.between == "edges"

    @property
    def errors(self) -> float:
        """The declared share of errors; 0 if none was declared."""
        return 0.0 if self.error_share is None else self.error_share


class Plan(Record, frozen=True, omit_defaults=True):
    """plan.json without its digest. `probes` are filled: every slot holds the application's own words.

    `blocks` are the numbers of probes after which an interim analysis runs, if the study stops early. The
    probes are then in a random order, behaviour by behaviour. Unset if every trial is asked.
    """

    models: tuple[PlannedModel, ...]
    application: Application
    attacks: tuple[str, ...]
    probes: tuple[Probe, ...]
    samples: int
    seed: int
    margin: float
    confidence: float
    skipped: tuple[SkippedProbe, ...]
    schema: int = encoded(SCHEMA)
    # What is None is not encoded: a plan without blocks keeps its digest.
    blocks: tuple[int, ...] | None = None
    attacker: PlannedModel | None = None  # writes the turns of some attacks
    edges: tuple[Edge, ...] | None = None  # descent among the models, if any
    analysis: Analysis | None = None  # unset in plans of releases that declared none
    triggers: tuple[PlannedTrigger, ...] | None = None  # that some attacks search for
    limit: ProbeLimit | None = None  # if only a part of the chosen probes is asked
    plugins: tuple[PlannedPlugin, ...] | None = None  # from outside; the judge is apart
    public: tuple[PublicFile, ...] | None = None  # of --probes public: every file, absent ones too

    @property
    def every_plugin(self) -> tuple[PlannedPlugin, ...]:
        """Those of the plan and of its analysis, but no report format."""
        declared = self.analysis.plugins if self.analysis is not None else None
        return tuple(
            each for each in (*(self.plugins or ()), *(declared or ())) if each.folder != "study.report"
        )

    def applied(self) -> list[Attack]:
        """Its attacks, loaded; those of a package or of code that is not here cannot be asked."""
        of_others = [p.name for p in self.plugins or () if p.folder == attacks.FOLDER]
        absent = [name for name in of_others if registry.outside(attacks.FOLDER, name) is None]
        return [attacks.planned(spec, absent) for spec in self.attacks]

    @property
    def own(self) -> list[int]:
        """The places of the models but for controls, whose verdict is known in advance."""
        controls = {edge.child for edge in self.edges or () if edge.is_control}
        return [m for m, model in enumerate(self.models) if model.id not in controls]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The places of every two of these."""
        return list(combinations(self.own, 2))

    @property
    def asked_models(self) -> list[PlannedModel]:
        """The models that are loaded: those without guards, and the attacker."""
        attacker = [self.attacker] if isinstance(self.attacker, PlannedModel) else []
        return [*(model for model in self.models if not model.of), *attacker]

    @property
    def questions(self) -> Plan:
        """The plan without its analysis and seeds, as releases wrote it that declared none."""
        return msgspec.structs.replace(self, analysis=None, edges=without_seeds(self.edges))

    @property
    def has_shared_steps(self) -> bool:
        """Whether attacks lead up to every behaviour in the same words, as in plans that do not say how."""
        return self.analysis is None or self.analysis.steps is None

    @property
    def stopping(self) -> Stopping:
        """The stopping rule; a plan of a release that declared no analysis has it too."""
        if self.blocks is None:
            return "fixed"
        declared = self.analysis
        is_planned = declared is not None and declared.stopping == "group_sequential"
        return "group_sequential" if is_planned else "until_decided"

    @property
    def stops_early(self) -> bool:
        """Whether interim analyses may stop a model."""
        return self.blocks is not None

    @property
    def is_until_decided(self) -> bool:
        """Whether its intervals and tests must hold after any trial."""
        return self.stopping == "until_decided"

    @property
    def information(self) -> tuple[float, ...]:
        """Of a group-sequential plan, the share of the deciding behaviours at each analysis; else ()."""
        planned = None if self.analysis is None else self.analysis.interim
        return () if planned is None else tuple(each.information for each in planned)

    @property
    def ends(self) -> tuple[int, ...]:
        """The number of probes at each interim analysis; all of them at once in a plan that asks all."""
        return (len(self.probes),) if self.blocks is None else self.blocks

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Numbers of models, attacks, probes and samples: the axes of every array over the trials."""
        return len(self.models), len(self.attacks), len(self.probes), self.samples

    @property
    def n_trials(self) -> int:
        """Models x attacks x probes x samples."""
        return len(self.models) * self.n_per_model

    @property
    def n_per_model(self) -> int:
        """Trials of one model; model number i has the indices from i times this."""
        return len(self.attacks) * len(self.probes) * self.samples


class ForecastRow(Record, frozen=True):
    """The power of the comparisons of one scope or technique, each of `n_comparisons` at Holm's first step.

    detectable       the smallest difference that is shown with the power of the forecast; None if none is
    not_worse        the power to show "not worse" within the plan's margin, if both models are equal
    margin           the smallest margin with that power; None for a technique, or if no margin has it
    clusters_needed  behaviours that give that power within the plan's margin
    """

    between: Between
    measure: Literal["breach", "over_refusal"]
    technique: str  # or a scope, of estimates.SCOPES
    n_comparisons: int
    n_trials: int  # of each model
    n_clusters: int
    n_effective: float
    detectable: float | None
    not_worse: float
    margin: float | None
    clusters_needed: int


class StudyForecast(Record, frozen=True):
    """The power and the duration of a plan, computed before the first request.

    baseline     breach rate of the better model
    discordance  by kind of comparison, the share of trials on which two equal models differ
    unclear      share of unclear answers
    correlation  between trials of one behaviour
    source       the folder of the earlier study that these are from; "" for the defaults
    source_models, source_at   the models of that study that the plan has too, and the date of its last run
    seconds      from the fastest to the slowest that is expected
    speed        the folder whose runs measured the speed; "" for a guess from the size of the models
    """

    power: float
    baseline: float
    discordance: dict[str, float]
    unclear: float
    correlation: float
    source: str
    seconds: tuple[float, float]
    speed: str
    rows: tuple[ForecastRow, ...]
    source_models: tuple[str, ...] = ()
    source_at: str = ""


class PlanFile(Record, frozen=True, omit_defaults=True):
    """plan.json: the plan, and the digest that names the study and reveals edits.

    The digest covers only the plan. `at` is when the plan was written (ISO 8601, UTC). It is unset if the
    answers are older than the plan, as in an import. `forecast` is what the plan can show. Runs carry
    the seal of all three (`plan_seal`), so an edit of time or forecast shows.
    """

    study: str
    application_digest: str
    plan: Plan
    at: str | None = None
    forecast: StudyForecast | None = None
    schema: int = encoded(SCHEMA)


# --- trials ----------------------------------------------------------------------------------------


class Trial(msgspec.Struct, frozen=True, gc=False):
    """One cell of the plan: the unit that is asked, answered and judged."""

    index: int
    model: PlannedModel
    attack: str
    probe: Probe
    sample: int
    seed: int
    id: str


class Grid:
    """The plan's trials by number: mixed radix, in the order model > attack > probe > sample."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.application = plan.application.digest
        # As bytes, because every row of a study is identified by a hash of them.
        self._study_seed = b"%d\0" % plan.seed
        self._models = [f"{model.id}\0{self.application}\0".encode() for model in plan.models]
        self._attacks = [attack.encode() for attack in plan.attacks]
        self._probes = [probe.id.encode() for probe in plan.probes]
        self._samples = plan.samples
        self._n_trials = plan.n_trials  # a product, and asked for each row of a study
        self.planted = PlantedPassages(plan)
        self._spelt = (-1, b"", b"", b"")
        self._seeds = array("Q", bytes(8 * plan.n_per_model))  # 0: not computed yet

    def __len__(self) -> int:
        return self._n_trials

    def trial(self, index: int) -> Trial:
        """The trial at this place. Raises IndexError outside the plan."""
        if not 0 <= index < self._n_trials:
            raise IndexError(f"trial {index} is outside a plan of {self._n_trials}")
        cell, sample = divmod(index, self._samples)
        plan, (m, a, p) = self.plan, self._cell(cell)
        seed, name = self._identify(index)
        return Trial(index, plan.models[m], plan.attacks[a], plan.probes[p], sample, seed, name)

    def _cell(self, cell: int) -> tuple[int, int, int]:
        """The places of the model, the attack and the probe of a cell."""
        rest, probe = divmod(cell, len(self._probes))
        return *divmod(rest, len(self._attacks)), probe

    def _identify(self, index: int) -> tuple[int, str]:
        """The seed of a trial, and its id.

        The id is 32 hex digits of SHA-256 over model id, application digest, probe, attack, sample, overlay
        and seed.
        """
        cell, sample = divmod(index, self._samples)
        spelt = self._spelt  # of the cell before, which is most often this one
        if spelt[0] != cell:
            m, a, p = self._cell(cell)
            # NUL between the parts: none of them can hold one, so two trials never spell the same bytes.
            asked = b"%b\0%b\0" % (self._probes[p], self._attacks[a])
            overlay = self.planted.overlay(a, p) + b"\0"
            spelt = self._spelt = cell, self._study_seed + asked, self._models[m] + asked, overlay
        number = b"%d" % sample
        # The seed leaves the model out on purpose: all models share it, so that comparisons are paired.
        # 53 bits: a JSON reader that keeps numbers as doubles reads the same seed.
        place = index % len(self._seeds)
        if not (seed := self._seeds[place]):
            seed = int.from_bytes(hashlib.blake2b(spelt[1] + number, digest_size=8).digest(), "big") >> 11
            self._seeds[place] = seed
        return seed, hashlib.sha256(b"%b%b%b%d" % (spelt[2], number, spelt[3], seed)).hexdigest()[:32]

    def of_model(self, m: int) -> range:
        """The indices of model number `m`."""
        return range(m * self.plan.n_per_model, (m + 1) * self.plan.n_per_model)

    def of_probes(self, m: int, low: int, high: int) -> Iterator[int]:
        """The indices of model number `m` whose probe lies from place `low` up to, not including, `high`."""
        plan = self.plan
        for start in self.of_model(m)[:: len(plan.probes) * plan.samples]:
            yield from range(start + low * plan.samples, start + high * plan.samples)

    def matches(self, index: int, trial: str) -> bool:
        """Whether a row with this index and trial id is of this plan."""
        if not 0 <= index < self._n_trials:
            return False
        return self._identify(index)[1] == trial


class TrialSet:
    """A set of trials of one plan, by index: one bit per trial."""

    def __init__(self, n_trials: int) -> None:
        self._bits = bytearray(n_trials // 8 + 1)

    def add(self, index: int) -> bool:
        """Add a trial; False if it was in the set already."""
        bit = 1 << (index & 7)
        was = self._bits[index >> 3] & bit
        self._bits[index >> 3] |= bit
        return not was

    def missing(self, indices: Iterable[int]) -> Iterator[int]:
        """Those of `indices` that are not in the set."""
        return (i for i in indices if not self._bits[i >> 3] & (1 << (i & 7)))


# --- planted passages --------------------------------------------------------------------------------


class PlantedPassages:
    """The planted passages of a plan's trials. Attacks and probes are named by their places in the plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan, retrieval = plan, plan.application.retrieval
        self._index = "" if retrieval is None else retrieval.read_hash
        applied = enumerate(plan.applied() if self._index else ())
        self._attacks = {a: attack for a, attack in applied if attack.deliveries}
        self._known: dict[tuple[int, int], tuple[Retrieved, ...]] = {}
        triggers = () if plan.triggers is None else plan.triggers
        self._words = {(each.probe, each.document, each.n_steps): each.words for each in triggers}

    @property
    def attacks(self) -> frozenset[int]:
        """The attacks that plant passages."""
        return frozenset(self._attacks)

    def of(self, attack: int, probe: int) -> tuple[Retrieved, ...]:
        """The passages of a trial; () for none."""
        if attack not in self._attacks:
            return ()
        key = (attack, probe)
        if key not in self._known:
            chosen, asked = self._attacks[attack], self._plan.probes[probe]
            how = AttackContext(triggers=self.triggers(chosen, asked))
            planted = chosen.delivered(asked, how).planted
            self._known[key] = () if isinstance(planted, UnsetType) else planted
        return self._known[key]

    def triggers(self, attack: Attack, probe: Probe) -> tuple[str, ...]:
        """The words before each document of a probe; () for none. Raises Damaged if the plan lacks them."""
        wanted = attack.wanted(probe)
        owner = owner_of(probe, self._plan) if wanted else ""
        try:
            return tuple(self._words[owner, i, each.n_steps] for i, each in enumerate(wanted))
        except KeyError:
            raise Damaged(
                f"The plan lacks the searched words of '{attack.spec}' for '{owner}'. Plan the study again, "
                "in another folder."
            ) from None

    def is_found(self, index: int, chunks: Iterable[str]) -> bool | None:
        """Whether a passage of a trial is among the retrieved chunks; None if its attack plants none."""
        rest, probe = divmod(index // self._plan.samples, len(self._plan.probes))
        attack = rest % len(self._plan.attacks)
        if attack not in self._attacks:
            return None
        retrieved = set(chunks)
        return any(each.chunk in retrieved for each in self.of(attack, probe))

    def overlay(self, attack: int, probe: int) -> bytes:
        """The hash of a trial's overlay, as a part of what is asked; empty for none."""
        planted = self.of(attack, probe)
        return b"\0" + digest([self._index, planted]).encode() if planted else b""


def owner_of(probe: Probe, plan: Plan) -> str:
    """The id of the probe whose trigger this one has: a twin that of its probe, if the plan has both."""
    is_shared = probe.kind == "benign" and any(each.id == probe.twin for each in plan.probes)
    return str(probe.twin) if is_shared else probe.id


# --- limits ------------------------------------------------------------------------------------------
# A part of the chosen probes for a quick study: `heredity study --limit N`. Promises: each technique has as
# many probes as any other, to one, as far as it has them. They are of different behaviours first, and drawn
# by the seed. A probe comes with its benign twin, and is asked under every attack that is for it. The same
# settings choose the same probes.
def limited(
    asked: tuple[Probe, ...], n: int | None, applied: Sequence[Attack], seed: int
) -> tuple[tuple[Probe, ...], ProbeLimit | None]:
    """`n` of the probes with their twins, in their order, and the limit; unset if all of them are asked.

    applied: the attacks of the plan, each of which keeps a probe that it is for. Raises UsageError if `n` is
    below 1, or below the number of such probes.
    """
    if n is None:
        return asked, None
    if n < 1:
        raise UsageError(f"A limit of {n} probes leaves nothing to ask.")
    known = {probe.id: probe for probe in asked}
    leading = [p for p in asked if p.kind == "breach" or p.twin not in known]
    if n >= len(leading):
        return asked, None
    techniques = list(dict.fromkeys(probe.technique for probe in leading))
    first = list(_needed(techniques, applied, asked))
    if len(first) > n:
        raise UsageError(
            f"A limit of {n} leaves attacks without a probe: it takes at least {len(first)}, one of each "
            "technique that an attack is for."
        )
    ordered = [*first, *(each for each in techniques if each not in first)]
    by_technique = {each: [p for p in leading if p.technique == each] for each in ordered}
    rounds = zip_longest(*(_order(probes, seed) for probes in by_technique.values()))
    drawn = (probe for probe in chain.from_iterable(rounds) if probe is not None)
    kept = {probe.id for probe, _ in zip(drawn, range(n), strict=False)}
    whole = tuple(p for p in asked if p.id in kept or (p.twin in kept and p.kind == "benign"))
    return whole, ProbeLimit(n, len(leading))


def _needed(techniques: Sequence[str], applied: Sequence[Attack], asked: Sequence[Probe]) -> Iterator[str]:
    """A technique for each attack that is not for all of them, each once."""
    covered_so_far: set[str] = set()
    for attack in applied:
        covered = {probe.technique for probe in asked if attack.covers(probe)}
        if covered and not covered >= set(techniques) and not covered & covered_so_far:
            name = next(each for each in techniques if each in covered)
            covered_so_far.add(name)
            yield name


def _order(probes: Sequence[Probe], seed: int) -> Iterator[Probe]:
    """Of one technique: a probe of each behaviour, in a random order, then a second of each, and so on."""
    behaviours: dict[str, list[Probe]] = {}
    # By digest, not by a generator: the order is the same with every version of every library.
    for probe in sorted(probes, key=lambda probe: digest([seed, probe.id])):
        behaviours.setdefault(probe.cluster, []).append(probe)
    return (p for p in chain.from_iterable(zip_longest(*behaviours.values())) if p is not None)


# --- plan.json -------------------------------------------------------------------------------------


def write_plan(
    folder: Path, plan: Plan, at: str = "", forecast: Callable[[], StudyForecast | None] = lambda: None
) -> Plan:
    """Save the plan with its time `at` and its forecast, and return the plan that holds in this folder.

    A folder keeps its plan. Equal questions and equal settings of the analysis resume it, with any judge, and
    also if its release declared no analysis. Raises NotComparable, with the differences, for another plan.
    """
    if (path := folder / PLAN).exists():
        held = read_plan(folder)
        if held != _as_declared(plan, held):
            refuse_changed_plugins(held)
            raise NotComparable(
                f"{folder} holds another study: {differences(held, plan)}. "
                "Give the same settings to resume it, or another folder for this one.",
                code="another-study",
            )
        return held
    if (folder / "responses.jsonl").exists():
        raise Damaged(f"{folder} has responses but no {PLAN}: they cannot be told apart. Use another folder.")
    file = PlanFile(digest(plan), plan.application.digest, plan, at or None, forecast() or None)
    files.write_atomic(path, encode(file) + b"\n")
    return plan


def _as_declared(plan: Plan, held: Plan) -> Plan:
    """`plan` with the analysis of `held`, if both declare the same settings, with its edges and plug-ins."""
    hashes, held_hashes = ([(p.folder, p.name, p.sha256) for p in one.plugins or ()] for one in (plan, held))
    plan = msgspec.structs.replace(plan, edges=held.edges)  # not every release finds the same
    if hashes == held_hashes:  # another version of a package may have the same files
        plan = msgspec.structs.replace(plan, plugins=held.plugins)
    is_same = _declared(plan) == _declared(held)
    return msgspec.structs.replace(plan, analysis=held.analysis) if is_same else plan


def _declared(plan: Plan) -> tuple[str, float, float, Stopping]:
    """The settings of a plan's analysis that a user chooses; the defaults if it has none."""
    analysis = Analysis() if plan.analysis is None else plan.analysis
    return analysis.endpoint, analysis.unclear_share, analysis.errors, plan.stopping


def refuse_changed_plugins(plan: Plan) -> None:
    """Raise NotComparable if a plug-in of the plan is not installed as it was, or was not given again."""
    for each in plan.plugins or ():
        its = registry.outside(each.folder, each.name)
        if its is None or its.sha256 != each.sha256:
            raise NotComparable(
                f"The study was planned with '{each.name}' of {each.release}, "
                f"{each.sha256[:8]}. Now it is {its.sha256[:8] if its else 'not here'}. "
                "Install it as it was, give the object again by the study's command, or use another folder.",
                code="another-study",
            )


def plan_seal(file: PlanFile) -> str:
    """16 hex digits over the plan's digest, its time and its forecast. Each run records it."""
    return digest([file.study, file.at, file.forecast])[:16]


def read_plan(folder: Path) -> Plan:
    """The plan of a study's folder. Raises NotComparable for another schema, Damaged for a broken file."""
    return read_saved(folder).plan


def read_saved(folder: Path) -> PlanFile:
    """The whole plan.json. Raises as `read_plan` does."""
    path = folder / PLAN
    try:
        data = files.read_file(path)
    except OSError:
        raise UsageError(f"{folder} holds no study: there is no {PLAN} in it.") from None
    check_schema(path, data)
    try:
        file = msgspec.json.decode(data, type=PlanFile)
    except (msgspec.DecodeError, ValueError) as error:
        what = "It is damaged, or of another version: restore it, or ask again in another folder."
        raise Damaged(f"{path}: {error}. {what}") from None
    if file.study != digest(file.plan):
        raise Damaged(f"{path}: the plan was changed after it was saved. Restore it, or use another folder.")
    if file.application_digest != file.plan.application.digest:
        raise Damaged(
            f"{path}: application_digest is not that of the application in it. "
            "Restore the file, or use another folder."
        )
    refuse_too_many(file.plan)
    return file


def check_schema(path: Path, data: bytes, newest: int = SCHEMA, advice: str = _READ_WITH) -> None:
    """Raise NotComparable, with the advice, for a file of another schema than this program's."""
    try:
        schema = msgspec.json.decode(data, type=_PlanSchema).schema
    except (msgspec.DecodeError, UnicodeDecodeError):
        return  # not JSON at all, or no schema: the strict decoding that follows reports it
    if schema != newest:
        raise NotComparable(
            f"{path} has schema {schema}, this heredity writes schema {newest}. {advice}",
            code="schema-mismatch",
        )


class _PlanSchema(msgspec.Struct):
    schema: int


def differences(held: Plan, new: Plan) -> str:
    """The differences between two plans, in one line."""
    options = ("--endpoint", "--unclear-share", "--error-share", "--stopping")
    settings = zip(options, _declared(held), _declared(new), strict=True)
    if held.stopping != new.stopping:  # its probes are the same, in a random order
        is_same = sorted(p.id for p in held.probes) == sorted(p.id for p in new.probes)
        new = msgspec.structs.replace(new, blocks=held.blocks, probes=held.probes if is_same else new.probes)
    parts = [f"{name} ({a} there, {b} asked for)" for name, a, b in settings if a != b]
    new = msgspec.structs.replace(new, analysis=held.analysis)
    for field in Plan.__struct_fields__:
        a, b = getattr(held, field), getattr(new, field)
        if a != b:
            parts.append(f"{_FLAGS.get(field, field)} ({_brief(a)} there, {_brief(b)} asked for)")
    return "; ".join(parts) or "nothing"


def _brief(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, Application):
        return f"{value.name} {value.digest[:8]}"
    if isinstance(value, tuple):
        shown = ", ".join(map(_name, value[:2])) + (", ..." if len(value) > 2 else "")
        return f"{len(value)}: {shown}, digest {digest(value)[:8]}" if len(value) > 2 else shown or "none"
    return str(value)


def _name(value: object) -> str:
    if isinstance(value, PlannedModel | PlannedPlugin):
        return value.name
    if isinstance(value, Probe):
        return value.id
    return value.probe if isinstance(value, SkippedProbe) else str(value)


def refuse_too_many(plan: Plan) -> None:
    """Raise UsageError if the plan has more than MAX_TRIALS trials."""
    if plan.n_trials > MAX_TRIALS:
        counts = dict(zip(("model", "attack", "probe", "sample"), plan.shape, strict=True))
        product = " x ".join(f"{n:,} {what}{'' if n == 1 else 's'}" for what, n in counts.items())
        raise UsageError(
            f"{product} are {plan.n_trials:,}, and one study holds at most {MAX_TRIALS:,} trials. "
            "Ask fewer samples, or make several studies of it."
        )


# --- models by name ---------------------------------------------------------------------------------

_SHORTEST_ID = 4  # characters of an id that name a model


class NamedModel(Protocol):
    """A model with an id and a name, such as a planned one or the card of a model in a result."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...


_Model = TypeVar("_Model", bound=NamedModel)


def model_of_study(models: Sequence[_Model], name: str) -> _Model:
    """The model of a study with this name, the name that it is short for, or this start of its id.

    `leaky` names `scripted:leaky`, if no other ends so.

    No store is opened. Raises UnknownName with the models of the study, and UsageError if two have the name.
    """
    matches = [model for model in models if name in (model.name, model.id)]
    matches = matches or [model for model in models if model.name in spellings(name)]
    if not matches and len(ending := [m for m in models if m.name.endswith(f":{name}")]) == 1:
        matches = ending
    if not matches and len(name) >= _SHORTEST_ID:
        matches = [model for model in models if model.id.startswith(name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UsageError(f"'{label(name)}' is {len(matches)} models of this study: give the id.")
    raise unknown_model(models, name)


def unknown_model(models: Sequence[NamedModel], name: str) -> UnknownName:
    """The error for a name that no model of a study has; it lists those that there are."""
    known = [label(model.name) for model in models]
    kind, listed = "model of this study", ", ".join(known)
    return UnknownName(kind, label(name), known, listed)
