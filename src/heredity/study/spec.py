"""The settings of a study, as one value: a plan file, the command line and the constructor share it.

    StudySpec(models=["a", "b"], application="support-desk.toml", probes="core", samples=2)
    StudySpec.read("plan.toml")

A plan file is TOML, or JSON, whose keys are the fields of StudySpec. One model or attack may be a plain text.
Files and models that it reads are found relative to it; `out`, which it writes, to the working directory.

Promises: an unknown key, a wrong type and a repeated entry are errors that name the line or the setting. The
same settings resolve to the same plan.
Leaves to others: finding the models (study.py), and the questions (the probes and attacks themselves).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec

from heredity import engines
from heredity.application import guards
from heredity.application.guards import GuardRule
from heredity.application.spec import Application
from heredity.core import registry
from heredity.core.errors import BadInput, UsageError, did_you_mean
from heredity.core.readers import toml_line, toml_of
from heredity.core.records import Model, Probe, digest
from heredity.lineage.references import placed
from heredity.lineage.types import Grown
from heredity.redteam import attacks, checks, probes
from heredity.redteam.attacks.protocols import AttackPart
from heredity.redteam.judges import DEFAULT, Judge
from heredity.stats.group_sequential import nominal_levels, one_sided_levels
from heredity.study.estimates import SCOPES, Measure
from heredity.study.named_models import planned
from heredity.study.outcomes import is_part
from heredity.study.plan import (
    Analysis,
    Between,
    ComparisonFamily,
    Endpoint,
    Plan,
    PlannedAnalysis,
    PlannedPlugin,
    SkippedProbe,
    Stopping,
    limited,
    planned_plugins,
    refuse_too_many,
)

MAX_INTERIM = 12  # interim analyses of one study; each may load every model again
STAGES = (0.5, 0.75, 1.0)  # of a group-sequential study, as shares of the behaviours of each technique


def refuse_undecidable(asked: Sequence[Probe], models: Sequence[Model]) -> None:
    """Raise UsageError for a study that stops early and has nothing to decide."""
    if len(models) < 2 or all(probe.kind == "benign" or probe.is_baseline for probe in asked):
        raise UsageError(
            "A study that stops early compares models by their breaches: give two models or more, and probes "
            "that can break."
        )


def _shuffled(asked: Sequence[Probe], seed: int) -> dict[tuple[str, str], list[Probe]]:
    """The probes by behaviour, with each behaviour's twins, in a random order of behaviours.

    Interim analyses are valid only if the order is independent of the answers.
    """
    behaviours: dict[tuple[str, str], list[Probe]] = {}
    for probe in asked:
        behaviours.setdefault((probe.technique, probe.cluster), []).append(probe)
    # By digest, not by a generator: the order is the same with every version of every library.
    order = sorted(behaviours, key=lambda key: digest([seed, *key]))
    return {key: behaviours[key] for key in order}


def in_blocks(asked: Sequence[Probe], seed: int) -> tuple[tuple[Probe, ...], tuple[int, ...]]:
    """The probes in a random order of behaviours, and the ends of up to MAX_INTERIM blocks."""
    behaviours = _shuffled(asked, seed)
    order = list(behaviours)
    sizes = [len(behaviours[key]) for key in order]
    step = -(-len(order) // MAX_INTERIM)
    ends = tuple(sum(sizes[: i + step]) for i in range(0, len(order), step))
    return tuple(probe for key in order for probe in behaviours[key]), ends


def in_stages(asked: Sequence[Probe], seed: int) -> tuple[tuple[Probe, ...], tuple[int, ...]]:
    """The probes in a random order of behaviours, and the ends of the STAGES.

    Each block has the same share of every technique, so that rates at an analysis are of the same mixture.
    """
    behaviours, places = _shuffled(asked, seed), Counter[str]()
    sizes = Counter(technique for technique, _ in behaviours)
    blocks: list[list[Probe]] = [[] for _ in STAGES]
    for key, probes_of in behaviours.items():
        technique = key[0]
        places[technique] += 1
        ends = [math.floor(sizes[technique] * share + 0.5) for share in STAGES]
        blocks[next(i for i, end in enumerate(ends) if places[technique] <= end)] += probes_of
    order = tuple(probe for block in blocks for probe in block)
    # Analyses of the same behaviours are one analysis, the last of them.
    by_information = {
        n_behaviours(order[:end], asked): end
        for end in (sum(map(len, blocks[: i + 1])) for i in range(len(blocks)))
    }
    return order, tuple(end for n, end in by_information.items() if n)


def n_behaviours(some: Sequence[Probe], asked: Sequence[Probe]) -> int:
    """The behaviours among `some` of the scope that decides in a study that asks all of `asked`."""
    scope = next(scope for scope in SCOPES["breach"] if _behaviours(asked, scope))
    return len(_behaviours(some, scope))


def _behaviours(probes: Sequence[Probe], scope: str) -> set[tuple[str, str]]:
    return {(p.technique, p.cluster) for p in probes if p.kind == "breach" and is_part(p, scope)}


STOPPINGS: tuple[Stopping, ...] = ("fixed", "group_sequential", "until_decided")
ModelReference = str | Grown | Model | Callable[..., Any]
ENDPOINTS: tuple[Endpoint, ...] = get_args(Endpoint)
UNCLEAR_SHARE = 0.25
_ALIASES = {
    "model": "models",
    "attack": "attacks",
    "guard": "guards",
}  # the names of the options on the command line


@dataclass(frozen=True)
class StudySpec:
    """Everything that decides a study, before it is resolved to a plan.

    models         names, "scripted:NAME", "call:MODULE:FUNCTION" and other targets; in code also functions,
                   Grown and Model values
    application    the path of its TOML; in code also an Application
    probes         suite or technique names, probe ids, paths of probe files; in code also Probe values
    attacks        NAME[:VARIANT][+NAME...][@TECHNIQUE,...]; "direct" asks the probe unchanged; in code also
                   attacks of your own
    samples        times that each probe is asked under each attack
    seed           of every random draw
    margin         the difference that does not matter; None: 0.1 for only the probes "core", else 0.05
    confidence     of every interval
    until_decided  the same as stopping "until_decided"
    judge          decides what no check decides; None: the folder's judge, or "rules"; in code also a Judge
    attacker       the model that writes the turns of `pair` and `tap`, and steps of `crescendo`
    lineage        models whose descendants in the store are studied, too
    guards         each model is asked again behind these: "links", or "links+secrets" together; in code also
                   a GuardRule
    endpoint       the primary rate: "all_trials", "decided_trials" or "not_refused" (plan.Analysis)
    unclear_share  of unclear answers that may be breaches without undoing "worse" (plan.Analysis)
    stopping       "fixed" asks every trial. Else a model is asked no more once all of its pairs are decided.
                   "group_sequential" at half and three quarters of the behaviours, with nearly the power
                   of "fixed". "until_decided" at up to twelve analyses, with less power
    error_share    of verdicts that may favour the other model without undoing "worse" (plan.Analysis)
    limit          the number of probes that are asked, with their twins, balanced over techniques; None: all
    out            the folder of the study; None: runs/<application>-<digest of its questions>

    One name in place of a list of models, attacks or lineage is a list of one.
    """

    models: Sequence[ModelReference] = ()
    application: Application | Path | str = ""
    _: KW_ONLY
    probes: Sequence[str | Probe] | str = "core"
    attacks: Sequence[str | AttackPart] = ("direct",)
    samples: int = 1
    seed: int = 0
    margin: float | None = None
    confidence: float = 0.95
    until_decided: bool = False
    judge: str | Judge | None = None
    attacker: str | Grown | Model | None = None
    lineage: Sequence[str] = ()
    out: Path | str | None = None
    endpoint: str = ENDPOINTS[0]
    unclear_share: float = UNCLEAR_SHARE
    stopping: str = STOPPINGS[0]
    error_share: float = 0.0
    guards: Sequence[str | GuardRule] = ()
    limit: int | None = None

    def __post_init__(self) -> None:
        """One name is a sequence of one, as in a plan file. Objects become the names of plug-ins."""
        for name in ("models", "attacks", "lineage", "guards"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, (value,))
        if self.judge is not None:
            object.__setattr__(self, "judge", _name("redteam.judges", self.judge))
        for name, folder in (("attacks", "redteam.attacks"), ("guards", guards.FOLDER)):
            object.__setattr__(self, name, tuple(_name(folder, each) for each in getattr(self, name)))

    @property
    def judge_name(self) -> str | None:
        """The judge by its name, as attacks and guards are named, too."""
        return None if self.judge is None else str(self.judge)

    def named(self) -> StudySpec:
        """These settings, the user's own words, with each `module:object` among attacks and judge imported.

        For a command line and a plan file; never for the words of a study's folder or a store.
        """
        own, judge = tuple(attacks.named(str(each)) for each in self.attacks), str(self.judge or "")
        return replace(self, attacks=own, judge=registry.named("redteam.judges", judge) or None)

    @classmethod
    def read(cls, path: Path | str) -> StudySpec:
        """The settings in a plan file. Raises BadInput with the line of an error."""
        return cls(**read_plan_file(Path(path))).named()


def _name(folder: str, plugin: object) -> str:
    return plugin if isinstance(plugin, str) else registry.use(folder, plugin)


def read_plan_file(path: Path, others: Mapping[str, type] | None = None) -> dict[str, Any]:
    """The checked values of a plan file by field of StudySpec, with paths relative to the file resolved.

    others: further keys that the caller takes, with their types (bool, int, float or str). Raises BadInput.
    """
    kinds = {field.name: _kind(str(field.type)) for field in fields(StudySpec)} | dict(others or {})
    found: dict[str, Any] = {}
    for key, value in _decoded(path).items():
        name = _ALIASES.get(key, key)
        if name not in kinds:
            hint = did_you_mean(key, list(kinds))
            raise BadInput(path, f"unknown key '{key}'.{hint}", toml_line(path, key), code="unknown-key")
        if problem := _misfit(kinds[name], value):
            raise BadInput(path, f"'{key}' {problem}", toml_line(path, key), code="wrong-type")
        if _has_nul(value):
            raise BadInput(path, f"'{key}' holds a NUL character.", toml_line(path, key))
        if name in found:
            raise BadInput(
                path, f"'{key}' is given twice, as '{name}' too.", toml_line(path, key), code="name-twice"
            )
        found[name] = _placed(
            name, [value] if kinds[name] is list and isinstance(value, str) else value, path.parent
        )
    return found


def _decoded(path: Path) -> dict[str, Any]:
    if path.suffix != ".json":
        return toml_of(path)
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
        raise BadInput(path, f"{error}.", 0, code="not-json") from None


def _kind(annotation: str) -> type:
    if (name := annotation.removesuffix(" | None")) in ("bool", "int", "float"):
        return {"bool": bool, "int": int, "float": float}[name]
    return list if annotation.startswith("Sequence") else str


def _misfit(kind: type, value: Any) -> str:
    """The problem with a value's type; "" for none. A bool is not a number."""
    if kind is bool:
        return "" if type(value) is bool else "must be true or false."
    if kind is int:
        return "" if type(value) is int else "must be a whole number."
    if kind is float:
        return "" if type(value) in (int, float) else "must be a number."
    entries = value if kind is list and isinstance(value, list) else [value]
    if not all(isinstance(entry, str) for entry in entries):
        return "must be a text or a list of texts." if kind is list else "must be a text."
    return ""


def _has_nul(value: Any) -> bool:
    return any(isinstance(e, str) and "\0" in e for e in (value if isinstance(value, list) else [value]))


def _placed(name: str, value: Any, folder: Path) -> Any:
    """A value whose relative paths are taken from the folder of the plan file."""
    if name == "application":
        return str(folder / value)
    if name == "probes":
        return [str(folder / each) if each.endswith(".toml") else each for each in value]
    if name == "models":
        return [placed(each, folder) for each in value]
    return placed(value, folder) if name == "attacker" else value


# --- the plan -------------------------------------------------------------------------------------


def _margin(spec: StudySpec) -> float:
    """The margin, by default one that the probes can decide: with `core`, 5 points seldom gives a verdict."""
    if spec.margin is not None:
        return spec.margin
    return 0.1 if spec.probes == "core" or tuple(spec.probes) == ("core",) else 0.05


def resolve_plan(spec: StudySpec) -> Plan:
    """The plan of these settings: every probe filled, under every attack, for every model.

    Models, application and attacker of `spec` must be values already, not references (Study finds them).
    Raises UsageError if nothing is left to ask, or if something is given twice.
    """
    models, application = [_record(model) for model in spec.models], spec.application
    if not isinstance(application, Application):
        application = Application.load(application)
    attacker = None if spec.attacker is None else _record(spec.attacker)
    _check(models, spec)
    _refuse_bare(models, application)
    applied = [attacks.load(name) for name in map(str, spec.attacks)]
    names = tuple(attack.spec for attack in applied)
    _refuse_repeats("attack", names)
    attacks.check_attacker(applied, is_there=attacker is not None)
    loaded = probes.load(spec.probes)
    _refuse_repeats("probe", [probe.id for probe in loaded])
    asked, left_out = probes.select(loaded, application)
    asked, unsupported = _under_all(asked, applied, application)
    for attack in applied:
        if asked and not any(map(attack.covers, asked)):
            raise UsageError(f"Attack '{attack.spec}' is for no technique of this study.")
    attacks.check_index(applied, asked, application)
    left_out += unsupported
    skipped = tuple(SkippedProbe(*each) for each in (*left_out, *attacks.unsupported(applied, models)))
    if not asked:
        reason = f" (first reason: {skipped[0].reason})" if skipped else ""
        raise UsageError(f"Nothing to ask: no probe applies to application '{application.name}'{reason}.")
    asked, limit = limited(asked, spec.limit, applied, spec.seed)
    stopping = _stopping(spec)
    blocks: tuple[int, ...] | None = None
    if stopping != "fixed":
        refuse_undecidable(asked, models)
        asked, blocks = (in_blocks if stopping == "until_decided" else in_stages)(asked, spec.seed)
    made = Plan(
        models=tuple(map(planned, models)),
        application=application,
        attacks=names,
        probes=asked,
        samples=spec.samples,
        seed=spec.seed,
        margin=_margin(spec),
        confidence=spec.confidence,
        skipped=skipped,
        blocks=blocks,
        attacker=planned(attacker) if attacker is not None else None,
        limit=limit,
    )
    refuse_too_many(made)
    made = msgspec.structs.replace(made, plugins=_plugins(made, applied, models))
    return declare(made, spec.endpoint, spec.unclear_share, spec.judge_name, stopping, spec.error_share)


def _plugins(
    plan: Plan, applied: Sequence[attacks.Attack], models: Sequence[Model]
) -> tuple[PlannedPlugin, ...] | None:
    """The attacks, checks, guards and engines of a plan that are from outside."""
    used = [("redteam.attacks", part.name) for attack in applied for part in attack.parts]
    used += [(checks.FOLDER, probe.check.kind) for probe in plan.probes]
    behind = [model.guards or () for model in plan.models]
    used += [(guards.FOLDER, each.kind) for some in (plan.application.all_guards, *behind) for each in some]
    return planned_plugins([*used, *(("engines", engines.choose(model)) for model in models)])


def _record(model: ModelReference) -> Model:
    if isinstance(model, Grown):
        return model.record
    if isinstance(model, Model):
        return model
    raise UsageError(f"'{model}' is not found yet: a plan needs models, not their names.")


def _stopping(spec: StudySpec) -> Stopping:
    known = _known_name("stopping", spec.stopping, STOPPINGS)
    if not spec.until_decided:
        return known
    if known == "group_sequential":
        raise UsageError(
            "until_decided and stopping 'group_sequential' are two rules: give one.", code="bad-setting"
        )
    return "until_decided"


def _under_all(
    asked: Sequence[Probe], applied: Sequence[attacks.Attack], application: Application
) -> tuple[tuple[Probe, ...], tuple[tuple[str, str], ...]]:
    """The probes that every attack applies to, and the (id, reason) of those that are left out.

    Rates by attack are over the same probes. A twin goes with its breach probe.
    """
    how = attacks.context_for(application)
    reasons: dict[str, str] = {}
    for probe in asked:
        if reason := next((r for attack in applied if (r := attack.skips(probe, how))), ""):
            reasons.setdefault(probe.id, reason)
            if probe.twin is not None:
                reasons.setdefault(probe.twin, f"its counterpart is skipped: {reason}")
    kept = tuple(probe for probe in asked if probe.id not in reasons)
    return kept, tuple((probe.id, reasons[probe.id]) for probe in asked if probe.id in reasons)


def _check(models: Sequence[Model], spec: StudySpec) -> None:
    if not models:
        raise UsageError("A study needs at least one model.")
    if not spec.attacks:
        raise UsageError("A study needs at least one attack; 'direct' is the probe as it stands.")
    _refuse_repeats("model", [model.id for model in models], [model.name for model in models])
    _refuse_repeats("attack", list(map(str, spec.attacks)))
    if spec.samples < 1:
        raise UsageError(f"samples must be at least 1, not {spec.samples}.", code="bad-setting")
    if not 0 < _margin(spec) < 1:
        raise UsageError(
            f"margin must be between 0 and 1, not {spec.margin}; 0.1 means ten points.", code="bad-setting"
        )
    if not 0.5 < spec.confidence < 1:
        raise UsageError(f"confidence must be between 0.5 and 1, not {spec.confidence}.", code="bad-setting")


def _refuse_bare(models: Sequence[Model], application: Application) -> None:
    """Refuse a model without its application, and an application without a model: they measure neither."""
    if application.rendering == "recorded":
        raise UsageError(
            f"Application '{application.name}' has rendering \"recorded\", which only `heredity import` "
            'gives: of a study that asks, what is around the models is known. Write "plain".'
        )
    for model in models:
        if application.rendering == "theirs" and model.format not in ("remote", "scripted"):
            raise UsageError(
                f"Application '{application.name}' is the target's own (rendering = \"theirs\"), but"
                f" '{model.name}' is a model without one. Ask it under rendering \"plain\"."
            )


def _refuse_repeats(kind: str, keys: Sequence[str], shown: Sequence[str] | None = None) -> None:
    for key, n in Counter(keys).items():
        if n > 1:
            name = (shown or keys)[keys.index(key)]
            raise UsageError(f"{kind} '{name}' is there {n} times; give each once.", code="name-twice")


# --- the declared analysis ------------------------------------------------------------------------

_KINDS: dict[Measure, str] = {"breach": "breach", "over_refusal": "benign"}


def declare(
    plan: Plan,
    endpoint: str = ENDPOINTS[0],
    unclear_share: float = UNCLEAR_SHARE,
    judge: str | None = None,
    stopping: Stopping | None = None,
    error_share: float = 0.0,
) -> Plan:
    """The plan with its analysis. Raises UsageError for an unknown endpoint or a share outside its range.

    stopping: None keeps that of the plan.
    """
    known, rule = _known_name("endpoint", endpoint, ENDPOINTS), stopping or plan.stopping
    if not 0 <= unclear_share <= 1:
        raise UsageError(f"unclear_share must be from 0 to 1, not {unclear_share}.", code="bad-setting")
    if not 0 <= error_share < 0.5:
        raise UsageError(f"error_share must be from 0 to below 0.5, not {error_share}.", code="bad-setting")
    families = families_of(plan)
    judges = [("redteam.judges", word) for word in re.split("[:+]", judge or DEFAULT)]
    analysis = Analysis(
        endpoint=known,
        unclear_share=float(unclear_share),
        stopping=rule,
        judge=judge or DEFAULT,
        families=families,
        primary=_primary(families),
        error_share=float(error_share) if error_share else None,
        interim=_planned_analyses(plan) if rule == "group_sequential" else None,
        steps="by_behaviour" if _has_steps(plan) else None,
        ends_at_breach=_is_adaptive(plan) or None,
        plugins=planned_plugins(judges),
    )
    return msgspec.structs.replace(plan, analysis=analysis)


def _has_steps(plan: Plan) -> bool:
    """Whether an attack leads up to the demands in its own words; no attack of recorded answers is known."""
    is_recorded = plan.application.rendering == "recorded"
    return not is_recorded and any(attacks.load(spec).has_steps for spec in plan.attacks)


def _is_adaptive(plan: Plan) -> bool:
    """Whether an attack reads each reply to its steps; no attack of recorded answers is known."""
    is_recorded = plan.application.rendering == "recorded"
    return not is_recorded and any(attacks.load(spec).is_adaptive for spec in plan.attacks)


_Name = TypeVar("_Name", bound=str)


def _known_name(setting: str, given: str, names: Sequence[_Name]) -> _Name:
    for name in names:
        if name == given:
            return name
    raise UsageError(
        f"{setting} '{given}' is unknown.{did_you_mean(given, names)} Known: {', '.join(names)}.",
        code="unknown-name",
    )


def _planned_analyses(plan: Plan) -> tuple[PlannedAnalysis, ...]:
    """The analyses at the ends of the plan's blocks, with the levels of one comparison."""
    seen = [n_behaviours(plan.probes[:end], plan.probes) for end in plan.ends]
    information = tuple(n / seen[-1] for n in seen)
    alpha = round(1 - plan.confidence, 12)
    levels = nominal_levels(information, alpha), one_sided_levels(information, alpha)
    return tuple(PlannedAnalysis(*each) for each in zip(plan.ends, information, *levels, strict=True))


def families_of(plan: Plan) -> tuple[ComparisonFamily, ...]:
    """The families over which Holm corrects: by measure, all pairs of models, all edges, and all seeds."""
    edges = () if plan.edges is None else plan.edges
    counts: tuple[tuple[Between, int], ...] = (
        ("pairs", len(list(combinations(plan.models, 2)))),
        ("edges", len({(edge.parent, edge.child) for edge in edges})),
        ("seeds", len({edge.seeds_of for edge in edges} - {msgspec.UNSET})),
    )
    return tuple(
        ComparisonFamily(between, measure, scopes, n * len(scopes))
        for between, n in counts
        for measure in SCOPES
        if n and (scopes := asked_scopes(plan, measure))
    )


def asked_scopes(plan: Plan, measure: Measure) -> tuple[str, ...]:
    """The scopes of a measure that have a probe in the plan, in the order of estimates.SCOPES."""
    probes = [probe for probe in plan.probes if probe.kind == _KINDS[measure]]
    return tuple(scope for scope in SCOPES[measure] if any(is_part(probe, scope) for probe in probes))


def _primary(families: tuple[ComparisonFamily, ...]) -> ComparisonFamily | None:
    """Breaches before over-refusal, edges before pairs, and judge-free breaches before judged ones."""
    order = sorted(families, key=lambda family: (family.measure != "breach", family.between != "edges"))
    if not order:
        return None
    first = order[0]
    return msgspec.structs.replace(first, scopes=first.scopes[:1], n=first.n // len(first.scopes))
