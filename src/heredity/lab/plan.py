"""The plan of a lineage: its foundations, the children to make, and the studies that ask them.

    plan = read_plan(Path("examples/inheritance.toml"))

A plan is a TOML file. `[models]` gives each foundation a short name, `[data]` each set of examples. Each
`[[child]]` has a recipe, its parents and the verdict that is expected. Each `[[battery]]` is one study, with
an application, probes and attacks.

Promises: an unknown key, a repeated name and a parent that does not exist are errors with the line.
Leaves to others: making the children and asking them (runner.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from heredity.application.guards import GuardSpec
from heredity.core.errors import BadArgument, BadInput, UnknownName, UsageError, code_of, did_you_mean
from heredity.core.readers import in_words, toml_line_of, toml_of
from heredity.core.records import Record
from heredity.lineage import references
from heredity.lineage.types import CONTROL, NOISE
from heredity.recipes import derivable, derivable_class, is_random
from heredity.study.plan import Endpoint

R = TypeVar("R", bound=Record)
Expected = Literal["", "lost", "kept"]
Control = Literal["copy", "noise", "garbled", "refuses", "ablated", "weakened"]  # lab/controls.py
Value = str | int | float | bool | tuple[str, ...]
JOINS = " + "  # between sources of data
ANSWERS = "answers:"  # before the name of a child
PROBES = "probes:"  # before a technique or a file of probes, and a kind
MADE = "made"  # the recipe of a child that its user made
ENGINE, REPAIR = "engine", "repair"  # recipes that `heredity derive` does not have
BEHIND = "behind_guards"  # the parent behind guards
REF = "ref"  # the setting of "engine" and "made" that names a model
RESERVED = ("repairs",)  # a folder of the lineage next to those of its studies
_FOLDER = re.compile(r"(?!\.)[\w.+-]{1,80}")
_QUICK: dict[str, int] = {"steps": 2, "n_refusals": 1, "max_new_tokens": 32}  # settings, if they are given
_ALL_BEHAVIOURS = 200  # of a technique, about: only the time left depends on it
_QUICK_BEHAVIOURS, _QUICK_TOKENS, _QUICK_EXAMPLES = 6, 8, 24


class LeftOutChild(Record, frozen=True):
    """A child of the plan that is not in the lineage, and why."""

    name: str
    why: str


class ChildPlan(Record, frozen=True):
    """A child to make. With several seeds it is made once with each.

    recipe      of `heredity derive`; "repair" for `heredity repair`; "engine" for the parent under another
                setting of an engine; "behind_guards" for the parent behind `guards`. "made" is a model that
                its user made. Such a model is found by the setting `ref`, or else by the name
    parents     names of foundations or of children above
    group       children of one group share a sentence of the result, such as "students"
    compared    the parent whose refusals it may keep; "" for the first
    floor       a model that it must surpass in tasks. Otherwise nothing is claimed of the child
    against     another child, whose difference from this one the page shows, too; no verdict uses it
    expected    the verdict that is expected, before anything is asked
    is_noise    an edge that changes rounding only: its differences are the variance of a run
    control     another child whose verdict is known: a name of lab/controls.py
    data        by setting of the recipe, the name of a set of data; "answers:CHILD" for the answers
                that the teacher of a child above wrote
    minutes     expected on two cores, for one seed; the time left is estimated from it
    seeds       only for a recipe that takes a seed
    """

    name: str
    recipe: str
    parents: tuple[str, ...]
    question: str = ""
    group: str = ""
    compared: str = ""
    floor: str = ""
    expected: Expected = ""
    is_noise: bool = False
    seeds: tuple[int, ...] = ()
    against: str | msgspec.UnsetType = msgspec.UNSET
    control: Control | msgspec.UnsetType = msgspec.UNSET
    guards: tuple[GuardSpec, ...] | msgspec.UnsetType = msgspec.UNSET
    data: dict[str, str] = msgspec.field(default_factory=dict)
    settings: dict[str, Value] = msgspec.field(default_factory=dict)
    minutes: float = 1.0

    @property
    def parent(self) -> str:
        """The parent that it is compared with."""
        return self.compared or self.parents[0]

    @property
    def role(self) -> str:
        """The role of its edge in a study: of a control, else ""."""
        return NOISE if self.is_noise else CONTROL if self.control else ""

    def name_of(self, seed: int | None) -> str:
        """The name of the model of one seed."""
        return self.name if seed is None else f"{self.name}-{seed}"

    @property
    def reference(self) -> str:
        """The reference of the model that its user made: a name of the store, or a path."""
        return str(self.settings.get(REF, self.name))

    @property
    def each_seed(self) -> tuple[int | None, ...]:
        """Its seeds; None once for a child without any."""
        return self.seeds or (None,)


class BatteryPlan(Record, frozen=True):
    """One study of the lineage.

    application  the path of its TOML; "" for no system message, so that each model answers under its own
                 default
    behaviours   asked of each technique, spread evenly; 0 for all
    has_twins    whether benign twins and tasks are asked, too
    max_tokens   of an answer; 0 for the application's own
    models       names of the models to ask; empty for all
    minutes      expected on two cores, for all models
    """

    name: str
    probes: tuple[str, ...]
    title: str = ""
    application: str = ""
    attacks: tuple[str, ...] = ("direct",)
    behaviours: int = 0
    has_twins: bool = True
    max_tokens: int = 0
    models: tuple[str, ...] = ()
    minutes: float = 5.0

    @property
    def is_quick(self) -> bool:
        """Whether it has as few questions as a quick run, which decides nothing."""
        return (self.behaviours, self.max_tokens) == (_QUICK_BEHAVIOURS, _QUICK_TOKENS)


class LineagePlan(Record, frozen=True):
    """A lineage and the studies of it. The first battery is the primary one.

    examples     of each set of data that are used, from its beginning; 0 for all
    error_share  of verdicts that may err in one model's favour without undoing "lost" (StudySpec)
    endpoint     of its studies (Analysis). Unset for "all_trials", as in plans of releases without this key
    notes        for the reader of the page: what was known before, and the scope of the result
    controls     whether children with a known verdict are made and asked, too (lab/controls.py)
    """

    title: str
    models: dict[str, str]
    child: tuple[ChildPlan, ...]
    battery: tuple[BatteryPlan, ...]
    data: dict[str, str] = msgspec.field(default_factory=dict)
    examples: int = 0
    margin: float = 0.1
    error_share: float = 0.0
    judge: str = ""
    endpoint: Endpoint | msgspec.UnsetType = msgspec.UNSET
    notes: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    controls: bool | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        _refuse_twice("model", [*self.models, *(child.name for child in self.child)])
        _refuse_twice("battery", [battery.name for battery in self.battery])
        if not self.child or not self.battery:
            raise BadArgument("a plan needs a [[child]] and a [[battery]]", code="missing-key")
        made = [child.name_of(seed) for child in self.child for seed in child.each_seed]
        _refuse_twice("model", [*self.models, *made])
        refuse_below({"examples": (self.examples, 0)})
        known = dict.fromkeys(self.models)
        for child in self.child:
            _check_child(child, known, self.data)
            known[child.name] = None
        for battery in self.battery:
            _check_folder("battery", battery.name)
            numbers = {name: (getattr(battery, name), 0) for name in ("minutes", "behaviours", "max_tokens")}
            refuse_below(numbers, battery.name)
            for name in battery.models:
                _known("model of the plan", name, known, battery.name)

    @property
    def is_of_models(self) -> bool:
        """Whether the user made every child, as on a command line that names parent and children."""
        return all(child.recipe == MADE or child.control for child in self.child)

    @property
    def references(self) -> list[str]:
        """The references of models that are not made here: foundations, and children that their user made."""
        return [*self.models.values(), *(child.reference for child in self.child if child.recipe == MADE)]

    @property
    def edges(self) -> list[str]:
        """Each model of a child, with one of its parents and the recipe, as a line."""
        return [
            f"{child.name_of(seed)} of {parent}, {child.recipe}"
            for child in self.child
            for seed in child.each_seed
            for parent in child.parents
        ]

    def names_of(self, name: str, seed: int | None) -> list[str]:
        """The models that a name of the plan stands for; of a child of several seeds that of `seed` first."""
        seeds = {each.name: (seed, *each.each_seed) for each in self.child}.get(name, (None,))
        return [name if each is None else f"{name}-{each}" for each in seeds]

    def quick(self) -> LineagePlan:
        """The same lineage in few steps and with few questions, to see it work."""
        children = tuple(
            msgspec.structs.replace(
                child,
                settings=child.settings | {k: v for k, v in _QUICK.items() if k in child.settings},
                minutes=child.minutes * _share(child.settings),
            )
            for child in self.child
        )
        batteries = tuple(
            msgspec.structs.replace(
                each,
                behaviours=_QUICK_BEHAVIOURS,
                max_tokens=_QUICK_TOKENS,
                minutes=each.minutes * min(1.0, _QUICK_BEHAVIOURS / (each.behaviours or _ALL_BEHAVIOURS)),
            )
            for each in self.battery
        )
        return msgspec.structs.replace(self, child=children, battery=batteries, examples=_QUICK_EXAMPLES)


def is_lineage_plan(path: Path) -> bool:
    """Whether a TOML file is a plan of a lineage, and not of one study. Raises BadInput for no TOML."""
    return "child" in toml_of(path)


def read_plan(
    path: Path, models: dict[str, str] | None = None, data: dict[str, str] | None = None
) -> LineagePlan:
    """Read a plan, with all relative paths taken from its folder. Raises BadInput with the line.

    models, data: replace foundations and sets of the plan, by its names for them.
    """
    plan = read_record_of(path, LineagePlan, (ChildPlan, BatteryPlan), _check_recipes)
    for kind, given, known in (("model", models, plan.models), ("set of data", data, plan.data)):
        for name in given or ():
            if name not in known:
                raise UnknownName(f"{kind} of the plan", name, known, ", ".join(known))
    placed = {name: _placed(source, path.parent) for name, source in plan.data.items()} | (data or {})
    batteries = tuple(
        msgspec.structs.replace(
            each,
            application=str(path.parent / each.application) if each.application else "",
            probes=tuple(_placed(name, path.parent) for name in each.probes),
        )
        for each in plan.battery
    )
    known = {name: references.placed(ref, path.parent) for name, ref in plan.models.items()} | (models or {})
    children = tuple(_placed_child(child, path.parent) for child in plan.child)
    return msgspec.structs.replace(plan, models=known, data=placed, child=children, battery=batteries)


def plan_of(
    parent: str, children: Sequence[str], batteries: Sequence[BatteryPlan], margin: float, judge: str = ""
) -> LineagePlan:
    """The plan for children that their user made. Raises UsageError without a child or for one twice."""
    if not children:
        raise UsageError("Name the parent, and at least one child.", code="missing-key")
    if parent in children:
        raise UsageError(f"{parent} cannot be its own child.")
    try:
        made = tuple(ChildPlan(name, MADE, (parent,)) for name in children)
        return LineagePlan(
            f"What {', '.join(children)} kept of {parent}", {parent: parent}, made, tuple(batteries),
            margin=margin, judge=judge, endpoint="not_refused",
        )  # fmt: skip
    except BadArgument as error:
        raise UsageError(f"{str(error)[:1].upper()}{str(error)[1:]}.", code=error.code) from None


_ATTACKED = 80  # behaviours that are asked under an attack of several turns


def batteries_of(
    application: Path | None, probes: tuple[str, ...], attacks: tuple[str, ...]
) -> list[BatteryPlan]:
    """The studies of models that their user made: one for each attack, and one in the user's application.

    Attacks other than `direct` take several turns, so they are applied to a part of the requests.
    """
    batteries = []
    for attack in attacks:
        if attack == "direct":
            batteries.append(BatteryPlan("default", probes, "Under the models' own default"))
        else:
            name = "".join(letter if letter.isalnum() else "-" for letter in attack)
            part = BatteryPlan(name, probes, f"Under {attack}", attacks=(attack,), behaviours=_ATTACKED)
            batteries.append(msgspec.structs.replace(part, has_twins=False))
    if application is not None:
        batteries.append(BatteryPlan("application", probes, "In the application", str(application)))
    return batteries


def read_record_of(path: Path, kind: type[R], parts: Sequence[type[Record]], check: Callable[[R], None]) -> R:
    """A TOML file as a record; parts: further records in it. Raises BadInput with the line, in plain words.

    For an unknown key the error has the nearest one.
    """
    try:
        made = msgspec.convert(toml_of(path), kind, strict=True)
        check(made)
    except (msgspec.ValidationError, ValueError) as error:
        words = in_words(str(error))
        if unknown := re.search(r"unknown field `([^`]+)`", str(error)):
            kinds: list[type[Record]] = [kind, *parts]
            known = [name for each in kinds for name in each.__struct_fields__]
            words = f"unknown key '{unknown[1]}'.{did_you_mean(unknown[1], known)}"
        line, code = toml_line_of(path, error), code_of(error)
        raise BadInput(path, words, line, code=code) from None
    return made


def _check_recipes(plan: LineagePlan) -> None:
    for child in plan.child:
        _refuse_useless_seeds(child)
        takes = {REPAIR: "CHILD PARENT"}.get(child.recipe, "")
        if child.recipe in derivable():
            takes = derivable_class(child.recipe).PARENTS
        n, least, is_open = len(child.parents), len(takes.split()), takes.endswith("...")
        if takes and (n < least or (n > least and not is_open)):
            needed = f"{least}{' or more' if is_open else ''} parent{'' if least == 1 else 's'}"
            raise BadArgument(
                f"'{child.name}' has {n} in `parents`; '{child.recipe}' takes {needed}", table=child.name
            )


def _share(settings: dict[str, Value]) -> float:
    """The part of the time of a training that its few steps take."""
    steps = settings.get("steps", 0)
    return min(1.0, _QUICK["steps"] / steps) if isinstance(steps, int | float) and steps > 0 else 1.0


def _placed_child(child: ChildPlan, folder: Path) -> ChildPlan:
    """A child with the path of the model that its user made taken from the plan's folder."""
    if child.recipe != MADE or (ref := references.placed(child.reference, folder)) == child.reference:
        return child
    return msgspec.structs.replace(child, settings=child.settings | {REF: ref})


def without_place(child: ChildPlan) -> ChildPlan:
    """The child as it is wherever its plan lies: of the path of a model that its user made only the name."""
    if child.recipe != MADE or REF not in child.settings:
        return child
    ref, others = references.without_folder(child.reference), dict(child.settings)
    others.pop(REF)
    if ref != references.without_folder(child.name):
        others[REF] = ref
    return msgspec.structs.replace(child, settings=others)


def _placed(source: str, folder: Path) -> str:
    """Paths from the plan's folder; other sources are unchanged."""
    return JOINS.join(_placed_part(part, folder) for part in source.split(JOINS))


def _placed_part(part: str, folder: Path) -> str:
    if part.startswith(PROBES):
        name, colon, kind = part.removeprefix(PROBES).rpartition(":")
        return f"{PROBES}{_placed_part(name, folder)}{colon}{kind}"
    return str(folder / part) if Path(part).suffix or "/" in part else part


def _check_child(child: ChildPlan, known: dict[str, None], data: dict[str, str]) -> None:
    if child.recipe != MADE:  # whose name is a reference
        _check_folder("child", child.name)
    refuse_below({"minutes": (child.minutes, 0)}, child.name)
    if (child.recipe == BEHIND) != bool(child.guards):
        raise BadArgument(
            f"`guards` belong to a child of the recipe {BEHIND}, and only to it", table=child.name
        )
    if not child.parents:
        raise BadArgument(f"child '{child.name}' needs parents", code="missing-key", table=child.name)
    others = [name for name in (child.floor, child.against) if name]
    for name in (*child.parents, *others):
        _known("model above", name, known, child.name)
    if child.compared and child.compared not in child.parents:
        raise BadArgument(
            f"'{child.compared}' is no parent of '{child.name}'", code="unknown-name", table=child.name
        )
    for name in child.data.values():
        if name.startswith(ANSWERS):
            _known("model above", name.removeprefix(ANSWERS), known, child.name)
        else:
            _known("set of data", name, data, child.name)


def _refuse_useless_seeds(child: ChildPlan) -> None:
    """Refuse seeds that all give one model, which would then count as several. Raises BadArgument.

    A recipe of a later version is not known here: its child is left out.
    """
    if not child.seeds:
        return
    kinds = derivable()
    if child.recipe in (MADE, ENGINE, REPAIR, BEHIND) or (
        child.recipe in kinds and not is_random(child.recipe)
    ):
        raise BadArgument(
            f"'{child.name}' cannot have seeds. Nothing in '{child.recipe}' is random, so all give the same "
            f"model. Recipes with seeds: {', '.join(filter(is_random, kinds))}",
            table=child.name,
        )


def _check_folder(kind: str, name: str) -> None:
    """A name that becomes a folder of the lineage leads to no other place. Raises BadArgument."""
    if _FOLDER.fullmatch(name) is None or name.casefold() in RESERVED or name.endswith(".json"):
        raise BadArgument(
            f"a {kind} cannot be named {name[:80]!r}: its name is that of a folder. Take letters and digits",
            table=name,
        )


def refuse_below(numbers: Mapping[str, tuple[float, float]], table: str = "") -> None:
    """Refuse a number that is not finite or below its least value. Raises BadArgument."""
    for key, (value, least) in numbers.items():
        if not (math.isfinite(value) and value >= least):
            raise BadArgument(f"{key} must be at least {least:g}, and is {value:g}", key=key, table=table)


def _known(kind: str, name: str, known: dict[str, None] | dict[str, str], table: str) -> None:
    if name not in known:
        raise BadArgument(
            f"no {kind} is named '{name}' (there are: {', '.join(known)})", code="unknown-name", table=table
        )


def _refuse_twice(kind: str, names: Sequence[str]) -> None:
    if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
        raise BadArgument(f"two of kind {kind} are named '{twice}'", code="name-twice", table=twice)
