"""The plan of a study from its settings: which probes are asked, in which order, and what is compared.

    plan = resolve_plan(StudySpec([model], application, probes="core"))

Promises: the same settings resolve to the same plan.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from heredity import engines
from heredity.application import guards
from heredity.application.guards import GuardSpec
from heredity.application.spec import Application
from heredity.core import registry
from heredity.core.errors import Damaged, UsageError, did_you_mean
from heredity.core.records import Model, Probe, RecipeRecord, digest
from heredity.lineage.graph import Edge
from heredity.lineage.store import Store, rule_model
from heredity.lineage.types import Grown
from heredity.redteam import attacks, checks, probes
from heredity.redteam.judges import DEFAULT
from heredity.redteam.probes.public import PublicFile
from heredity.stats.sequential import nominal_levels, one_sided_levels
from heredity.study.estimates import PROBE_KINDS, SCOPES, Measure
from heredity.study.outcomes import is_part
from heredity.study.plan import (
    Analysis,
    Between,
    ComparisonFamily,
    Plan,
    PlannedAnalysis,
    PlannedModel,
    PlannedPlugin,
    SkippedProbe,
    Stopping,
    limited,
    planned_plugins,
    refuse_too_many,
)
from heredity.study.spec import ENDPOINTS, STOPPINGS, UNCLEAR_SHARE, ModelReference, StudySpec

MAX_INTERIM = 12  # interim analyses of one study; each may load every model again
PUBLIC, ADAPTIVE = "public", "crescendo:3"  # a suite, and the fixed adaptive attack on it
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


# --- models ---------------------------------------------------------------------------------------
# A target such as `call:` is not resolved from the name in a file: a study's folder may come from anyone.


def stored_model(store: Callable[[], Store], name: str) -> Grown:
    """A scripted model, or one of the store. Raises UnknownName."""
    return rule_model(name) if name.startswith("scripted:") else store().named(name)


def with_families(models: Sequence[Grown], tops: Sequence[Grown], store: Callable[[], Store]) -> list[Grown]:
    """The models, and every family below `tops` that the store can ask, each model once."""
    by_id = {each.record.id: each for each in models}
    for top in tops:
        for each in store().family(top.record).asked:
            grown = top if each.id == top.record.id else Grown(each, store().folder(each))
            by_id.setdefault(each.id, grown)
    return list(by_id.values()) if tops else list(models)


BEHIND_GUARDS = "behind_guards"


# --- behind guards -----------------------------------------------------------------------------------
# Models behind guards as models of a study: each is compared with itself without them, trial by trial.
# Promises: a guarded model is not in the store. Its id covers the model and every setting of its guards.
def with_guards(models: Sequence[Grown], named: Sequence[str], application: Application) -> list[Grown]:
    """The models, each followed by itself behind each of the guards.

    named: guards that a study switches on together, as "links" or "links+secrets". Raises UnknownName, and
    UsageError for one that holds for all models anyway.
    """
    chosen = [guards.chosen(names, application.all_guards) for names in named]
    standing = {spec.label for spec in application.standing_guards}
    if twice := next((s.label for some in chosen for s in some if s.label in standing), None):
        raise UsageError(
            f"The guard '{twice}' of application '{application.name}' is always on. Write is_on = false there"
            " to compare a model with it and without."
        )
    all_models: list[Grown] = []
    for model in models:
        all_models.append(model)
        all_models += [guarded_model(model, some) for some in chosen]
    return all_models


def planned_model(model: Model) -> PlannedModel:
    """A model as a plan holds it."""
    base = PlannedModel(model.id, model.name, model.family, model.licence, model.format)
    if model.recipe.kind != BEHIND_GUARDS:
        return base
    specs = msgspec.convert(model.recipe.settings["guards"], tuple[GuardSpec, ...])
    return replace(base, of=model.parents[0], guards=specs)


def model_to_load(plan: Plan, model: PlannedModel) -> PlannedModel:
    """The model of a plan that is loaded for one of its models. Raises Damaged if the plan lacks it."""
    if (model.of or model.guards) and model.id != _id(model.of or "", model.guards or ()):
        raise Damaged(f"The id of '{model.name}' in the plan is not that of a model behind these guards.")
    for each in plan.asked_models:
        if each.id == (model.of or model.id):
            return each
    raise Damaged(f"The plan has '{model.name}', but not the model behind its guards.")


def is_guarded(model: Model) -> bool:
    """Whether a record is that of a model behind guards."""
    return model.recipe.kind == BEHIND_GUARDS


def guarded_model(model: Grown, specs: tuple[GuardSpec, ...]) -> Grown:
    """A model behind these guards, as a model of a study."""
    record, labels = model.record, "+".join(spec.label for spec in specs)
    settings: dict[str, object] = {"guards": msgspec.to_builtins(specs)}
    made = replace(
        record,
        id=_id(record.id, specs),
        name=f"{record.name}+{labels}",
        parents=(record.id,),
        recipe=RecipeRecord(BEHIND_GUARDS, settings),
    )
    return Grown(made, model.folder)


def _id(of: str, specs: tuple[GuardSpec, ...]) -> str:
    return digest([BEHIND_GUARDS, of, {"guards": msgspec.to_builtins(guards.content(specs))}])


# --- the plan -------------------------------------------------------------------------------------


def _margin(spec: StudySpec) -> float:
    """The margin, by default one that the probes can decide: with `core`, 5 points seldom gives a verdict."""
    if spec.margin is not None:
        return spec.margin
    return 0.1 if spec.probes == "core" or tuple(spec.probes) == ("core",) else 0.05


def resolve_plan(spec: StudySpec, edges: tuple[Edge, ...] = ()) -> Plan:
    """The plan of these settings: every probe filled, under every attack, for every model.

    edges: the descent among the models.
    Models, application and attacker of `spec` must be values already, not references (Study finds them).
    Raises UsageError if nothing is left to ask, or if something is given twice.
    """
    models, application = [_record(model) for model in spec.models], spec.application
    if not isinstance(application, Application):
        application = Application.load(application)
    attacker = None if spec.attacker is None else _record(spec.attacker)
    _check(models, spec)
    _refuse_bare(models, application)
    sets = _public_files(spec.probes)
    applied = [attacks.load(name) for name in map(str, spec.attacks or _default_attacks(sets))]
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
        models=tuple(map(planned_model, models)),
        application=application,
        attacks=names,
        probes=asked,
        samples=spec.samples,
        seed=spec.seed,
        margin=_margin(spec),
        confidence=spec.confidence,
        skipped=skipped,
        blocks=blocks,
        attacker=planned_model(attacker) if attacker is not None else None,
        edges=edges or None,
        limit=limit,
        public=sets or None,
    )
    refuse_too_many(made)
    made = msgspec.structs.replace(made, plugins=_plugins(made, applied, models))
    return declare(made, spec.endpoint, spec.unclear_share, spec.judge_name, stopping, spec.error_share)


def _public_files(chosen: Sequence[str | Probe] | str) -> tuple[PublicFile, ...]:
    """The files of the public sets, absent ones too; () if the sets are not chosen."""
    is_chosen = PUBLIC in ([chosen] if isinstance(chosen, str) else chosen)
    return probes.public.load()[1] if is_chosen else ()


def _default_attacks(sets: Sequence[PublicFile]) -> list[str]:
    """The attacks of a study that names none; on the public sets one that adapts to replies, too."""
    named = dict.fromkeys(file.technique for file in sets if file.n)
    return ["direct", *([f"{ADAPTIVE}@{','.join(named)}"] if named else [])]


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


def declare(
    plan: Plan, endpoint: str = ENDPOINTS[0], unclear_share: float = UNCLEAR_SHARE,
    judge: str | None = None, stopping: Stopping | None = None, error_share: float = 0.0,
) -> Plan:  # fmt: skip
    """The plan with its analysis. Raises UsageError for an unknown endpoint or a share outside its range.

    stopping: None keeps that of the plan.
    """
    known, rule = _known_name("endpoint", endpoint, ENDPOINTS), stopping or plan.stopping
    if not 0 <= unclear_share <= 1:
        raise UsageError(f"unclear_share must be from 0 to 1, not {unclear_share}.", code="bad-setting")
    if not 0 <= error_share < 0.5:
        raise UsageError(f"error_share must be from 0 to below 0.5, not {error_share}.", code="bad-setting")
    families = families_of(plan)
    used = [("redteam.judges", word) for word in re.split("[:+]", judge or DEFAULT)]
    for folder in ("study.findings", "study.report"):
        used += [(folder, name) for name in registry.names(folder)]
    # No attack of recorded answers is known.
    recorded = plan.application.rendering == "recorded"
    asked = [] if recorded else [attacks.load(spec) for spec in plan.attacks]
    analysis = Analysis(
        endpoint=known,
        unclear_share=float(unclear_share),
        stopping=rule,
        judge=judge or DEFAULT,
        families=families,
        primary=_primary(families),
        error_share=float(error_share) if error_share else None,
        interim=_planned_analyses(plan) if rule == "group_sequential" else None,
        steps="by_behaviour" if any(each.has_steps for each in asked) else None,
        ends_at_breach=any(each.is_adaptive for each in asked) or None,
        plugins=planned_plugins(used),
    )
    return msgspec.structs.replace(plan, analysis=analysis)


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
    """The families over which Holm corrects: by measure, all pairs of models and all edges."""
    edges = [edge for edge in plan.edges or () if not edge.is_control]
    counts: tuple[tuple[Between, int], ...] = (
        ("pairs", len(plan.pairs)),
        ("edges", len({(edge.parent, edge.child) for edge in edges})),
    )
    return tuple(
        ComparisonFamily(between, measure, scopes, n * len(scopes))
        for between, n in counts
        for measure in SCOPES
        if n and (scopes := asked_scopes(plan, measure))
    )


def asked_scopes(plan: Plan, measure: Measure) -> tuple[str, ...]:
    """The scopes of a measure that have a probe in the plan, in the order of their importance."""
    probes = [probe for probe in plan.probes if probe.kind == PROBE_KINDS[measure]]
    ordered = reversed(SCOPES[measure]) if plan.public else SCOPES[measure]  # the public sets come first
    return tuple(scope for scope in ordered if any(is_part(probe, scope) for probe in probes))


def _primary(families: tuple[ComparisonFamily, ...]) -> ComparisonFamily | None:
    """Breaches before over-refusal, edges before pairs, and judge-free breaches before judged ones."""
    order = sorted(families, key=lambda family: (family.measure != "breach", family.between != "edges"))
    if not order:
        return None
    first = order[0]
    return msgspec.structs.replace(first, scopes=first.scopes[:1], n=first.n // len(first.scopes))
