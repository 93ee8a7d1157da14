"""What a study will ask, resolved to the last word before the first request; its digest names the study.

Promises: plan.json holds everything that decides the questions, so the same plan asks the same questions in
the same order; a trial is a number, and its id and seed follow from it; a folder never holds two plans.
Leaves to others: asking (study.py, pump.py) and what an answer was worth (judges/, estimates.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from heredity.application.spec import Application
from heredity.core import files
from heredity.core.errors import Damaged, NotComparable, UsageError
from heredity.core.records import SCHEMA, Model, Probe, Record, digest, encode
from heredity.lineage.graph import Edge
from heredity.redteam import attacks, probes

FILE = "plan.json"
LOOKS = 12  # at most, in a study until decided: every look may load every model anew
MOST_TRIALS = 100_000_000  # two bytes of memory each where they are counted


class PlannedModel(Record, frozen=True):
    """A model of the study: what the rows and the report need of its lineage record."""

    id: str
    name: str
    family: str
    licence: str
    format: str


class Skipped(Record, frozen=True):
    """A probe ("*": all) that cannot be asked in this application or of one of the models, and why."""

    probe: str
    reason: str


class Plan(Record, frozen=True):
    """plan.json without its digest. `probes` are filled: every slot holds the application's own words.

    `blocks`, where the study asks only until its pairs are decided: the numbers of probes after which it
    looks, the probes being in an order drawn by chance, behaviour by behaviour. Unset where all is asked.
    """

    models: tuple[PlannedModel, ...]
    application: Application
    attacks: tuple[str, ...]
    probes: tuple[Probe, ...]
    samples: int
    seed: int
    margin: float
    confidence: float
    skipped: tuple[Skipped, ...]
    schema: int = SCHEMA
    # Unset, not null, is not written: a plan that asks all has the digest that it always had.
    blocks: tuple[int, ...] | msgspec.UnsetType = msgspec.UNSET
    attacker: PlannedModel | msgspec.UnsetType = msgspec.UNSET  # writes what some attacks say
    edges: tuple[Edge, ...] | msgspec.UnsetType = msgspec.UNSET  # who comes from whom, where any does

    @property
    def is_until_decided(self) -> bool:
        return self.blocks is not msgspec.UNSET

    @property
    def ends(self) -> tuple[int, ...]:
        """The number of probes at each look; all of them at once in a plan that asks all."""
        return (len(self.probes),) if isinstance(self.blocks, msgspec.UnsetType) else self.blocks

    @property
    def n_trials(self) -> int:
        """Models x attacks x probes x samples."""
        return len(self.models) * self.n_per_model

    @property
    def n_per_model(self) -> int:
        """Trials that one model is asked; model i has the indices from i times this."""
        return len(self.attacks) * len(self.probes) * self.samples


class PlanFile(Record, frozen=True):
    """plan.json: the plan, and the digest that names the study and shows a plan that was edited by hand."""

    study: str
    application_digest: str
    plan: Plan
    schema: int = SCHEMA


def resolve(
    models: Sequence[Model],
    application: Application,
    probe_names: Sequence[str | Probe] | str = "core",
    attack_names: Sequence[str] = ("direct",),
    samples: int = 1,
    seed: int = 0,
    margin: float = 0.05,
    confidence: float = 0.95,
    until_decided: bool = False,
    attacker: Model | None = None,
) -> Plan:
    """Everything that a study will ask. Raises UsageError where that is nothing, or twice the same.

    until_decided: in an order drawn by chance from `seed`, with looks on the way (decide.py). attacker: the
    model that writes for the attacks that need one.
    """
    _check(models, attack_names, samples, margin, confidence)
    _refuse_bare(models, application)
    laid = [attacks.load(name) for name in attack_names]
    specs = tuple(attack.spec for attack in laid)
    _refuse_repeats("attack", specs)
    attacks.check_attacker(laid, is_there=attacker is not None)
    loaded = probes.load(probe_names)
    _refuse_repeats("probe", [probe.id for probe in loaded])
    asked, left_out = probes.select(loaded, application)
    asked, unlaid = _under_all(asked, laid, application)
    left_out += unlaid
    skipped = tuple(
        Skipped(probe, reason) for probe, reason in (*left_out, *attacks.unsupported(laid, models))
    )
    if not asked:
        reason = f" (first reason: {skipped[0].reason})" if skipped else ""
        raise UsageError(
            f"Nothing to ask: no probe applies to application '{application.name}'{reason}.",
            code="nothing-to-ask",
        )
    blocks: tuple[int, ...] | msgspec.UnsetType = msgspec.UNSET
    if until_decided:
        asked, blocks = _in_blocks(asked, models, seed)
    made = Plan(
        models=tuple(map(_planned, models)),
        application=application,
        attacks=specs,
        probes=asked,
        samples=samples,
        seed=seed,
        margin=margin,
        confidence=confidence,
        skipped=skipped,
        blocks=blocks,
        attacker=_planned(attacker) if attacker is not None else msgspec.UNSET,
    )
    _refuse_too_many(made)
    return made


def _planned(m: Model) -> PlannedModel:
    return PlannedModel(m.id, m.name, m.family, m.licence, m.format)


def _in_blocks(
    asked: tuple[Probe, ...], models: Sequence[Model], seed: int
) -> tuple[tuple[Probe, ...], tuple[int, ...]]:
    """The probes, behaviours shuffled and each kept whole with its twins; and where the looks are.

    Evidence may be looked at as often as one likes only if the order has nothing to do with the answers.
    """
    if len(models) < 2 or all(probe.kind == "benign" or probe.is_baseline for probe in asked):
        raise UsageError(
            "A study until decided compares models by their breaches: give two models or more, and probes "
            "that can break.",
            code="nothing-to-decide",
        )
    behaviours: dict[tuple[str, str], list[Probe]] = {}
    for probe in asked:
        behaviours.setdefault((probe.technique, probe.cluster), []).append(probe)
    # By digest rather than by a generator: the order is the same with every version of every library.
    order = sorted(behaviours, key=lambda key: digest([seed, *key]))
    sizes = [len(behaviours[key]) for key in order]
    step = -(-len(order) // LOOKS)
    ends = tuple(sum(sizes[: i + step]) for i in range(0, len(order), step))
    return tuple(probe for key in order for probe in behaviours[key]), ends


def _under_all(
    asked: Sequence[Probe], laid: Sequence[attacks.Attack], application: Application
) -> tuple[tuple[Probe, ...], tuple[tuple[str, str], ...]]:
    """The probes that every attack can be laid over, and the (id, reason) of those that are left out.

    Rates by attack compare over the same probes. A twin goes with its breach-seeking probe.
    """
    how = attacks.context_for(application)
    reasons: dict[str, str] = {}
    for probe in asked:
        if reason := next((r for attack in laid if (r := attack.skips(probe, how))), ""):
            reasons.setdefault(probe.id, reason)
            if probe.twin is not None:
                reasons.setdefault(probe.twin, f"its counterpart is skipped: {reason}")
    kept = tuple(probe for probe in asked if probe.id not in reasons)
    return kept, tuple((probe.id, reasons[probe.id]) for probe in asked if probe.id in reasons)


def write(folder: Path, plan: Plan) -> None:
    """Save the plan, or find the same one already there and change nothing.

    Raises NotComparable, saying what differs, where the folder holds another plan.
    """
    path = folder / FILE
    if path.exists():
        held = read(folder)
        if held != plan:
            raise NotComparable(
                f"{folder} holds another study: {differences(held, plan)}. "
                "Give the same settings to go on with it, or another folder for this one.",
                code="another-study",
            )
        return
    if (folder / "responses.jsonl").exists():
        raise Damaged(
            f"{folder} has responses but no {FILE}: they cannot be told apart. Use another folder.",
            code="plan-missing",
        )
    files.write_atomic(path, encode(PlanFile(digest(plan), plan.application.digest, plan)) + b"\n")


def read(folder: Path) -> Plan:
    """The plan of a study's folder. Raises NotComparable for another schema, Damaged for a broken file."""
    path = folder / FILE
    try:
        data = path.read_bytes()
    except OSError:
        raise UsageError(f"{folder} holds no study: there is no {FILE} in it.", code="not-a-study") from None
    check_schema(path, data)
    try:
        file = msgspec.json.decode(data, type=PlanFile)
    except (msgspec.DecodeError, ValueError) as error:
        raise Damaged(
            f"{path}: {error}. Restore the file, or ask again in another folder.", code="plan-damaged"
        ) from None
    if file.study != digest(file.plan):
        raise Damaged(
            f"{path}: the plan was changed after it was saved. Restore it, or use another folder.",
            code="plan-changed",
        )
    if file.application_digest != file.plan.application.digest:
        raise Damaged(
            f"{path}: application_digest is not that of the application in it. "
            "Restore the file, or use another folder.",
            code="plan-digest-wrong",
        )
    _refuse_too_many(file.plan)
    return file.plan


def check_schema(path: Path, data: bytes) -> None:
    """Raise NotComparable where a file was written under another schema than this program's."""
    try:
        found = msgspec.json.decode(data, type=_Versioned).schema
    except (msgspec.DecodeError, UnicodeDecodeError):
        return  # not JSON at all, or no schema: the strict reading that follows says so
    if found != SCHEMA:
        raise NotComparable(
            f"{path} has schema {found}, this heredity writes schema {SCHEMA}. "
            "Read it with the version that made it, or ask again in another folder.",
            code="schema-mismatch",
        )


class _Versioned(msgspec.Struct):
    schema: int


def differences(held: Plan, new: Plan) -> str:
    """What differs between two plans, in a line."""
    found = []
    if held.is_until_decided != new.is_until_decided:  # its probes are the same, in an order that is drawn
        found.append(f"--until-decided ({'' if held.is_until_decided else 'not '}there)")
        is_same = sorted(p.id for p in held.probes) == sorted(p.id for p in new.probes)
        new = msgspec.structs.replace(new, blocks=held.blocks, probes=held.probes if is_same else new.probes)
    for field in Plan.__struct_fields__:
        a, b = getattr(held, field), getattr(new, field)
        if a != b:
            found.append(f"{field} ({_brief(a)} there, {_brief(b)} asked for)")
    return "; ".join(found) or "nothing"


def _brief(value: Any) -> str:
    if value is msgspec.UNSET:
        return "none"
    if isinstance(value, Application):
        return f"{value.name} {value.digest[:8]}"
    if isinstance(value, tuple):
        names = [getattr(v, "name", None) or getattr(v, "id", None) or getattr(v, "probe", v) for v in value]
        shown = ", ".join(str(name) for name in names[:4]) + (", ..." if len(names) > 4 else "")
        return f"{len(value)}: {shown}, digest {digest(value)[:8]}" if len(value) > 4 else shown or "none"
    return str(value)


def _check(
    models: Sequence[Model], attack_names: Sequence[str], samples: int, margin: float, confidence: float
) -> None:
    if not models:
        raise UsageError("A study needs at least one model.", code="no-model")
    if not attack_names:
        raise UsageError(
            "A study needs at least one attack; 'direct' is the probe as it stands.", code="no-attack"
        )
    _refuse_repeats("model", [model.id for model in models], [model.name for model in models])
    _refuse_repeats("attack", list(attack_names))
    if samples < 1:
        raise UsageError(f"samples must be at least 1, not {samples}.", code="bad-setting")
    if not 0 < margin < 1:
        raise UsageError(f"margin must be between 0 and 1, not {margin}.", code="bad-setting")
    if not 0.5 < confidence < 1:
        raise UsageError(f"confidence must be between 0.5 and 1, not {confidence}.", code="bad-setting")


def _refuse_bare(models: Sequence[Model], application: Application) -> None:
    """A model without its application, or an application without a model, is no measurement of either."""
    if application.rendering == "recorded":
        raise UsageError(
            f"Application '{application.name}' has rendering \"recorded\", which only `heredity import` "
            'gives: of a study that asks, what is around the models is known. Write "plain".',
            code="only-imported",
        )
    for model in models:
        if application.rendering == "theirs" and model.format not in ("remote", "scripted"):
            raise UsageError(
                f"Application '{application.name}' is the target's own (rendering = \"theirs\"), but"
                f" '{model.name}' is a model without one. Ask it under rendering \"plain\".",
                code="rendering-theirs",
            )


def _refuse_too_many(plan: Plan) -> None:
    if plan.n_trials > MOST_TRIALS:
        counts = {"model": len(plan.models), "attack": len(plan.attacks), "probe": len(plan.probes)}
        counts["sample"] = plan.samples
        product = " x ".join(f"{n:,} {what}{'' if n == 1 else 's'}" for what, n in counts.items())
        raise UsageError(
            f"{product} are {plan.n_trials:,} trials, and one study holds at most {MOST_TRIALS:,}. "
            "Ask fewer samples, or make several studies of it.",
            code="too-many-trials",
        )


def _refuse_repeats(kind: str, keys: Sequence[str], shown: Sequence[str] | None = None) -> None:
    for key, n in Counter(keys).items():
        if n > 1:
            name = (shown or keys)[keys.index(key)]
            raise UsageError(f"{kind} '{name}' is there {n} times; give each once.", code="given-twice")
