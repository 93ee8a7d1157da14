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
its twin. An item whose own text holds its marker is refused, so that quoting never counts as obeying.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from heredity.core import registry
from heredity.core.errors import UnknownName, UsageError
from heredity.core.records import Probe
from heredity.redteam.probes import importers as importing
from heredity.redteam.probes import public
from heredity.redteam.probes.bank import Bank, applies, fill, read_bank, select, slot_values

__all__ = [
    "SUITES",
    "Technique",
    "applies",
    "fill",
    "importing",
    "load",
    "public",
    "select",
    "slot_values",
    "techniques",
]

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
    if name.startswith(importing.PREFIX):
        return importing.load_import(name).probes
    if name.endswith(".toml"):
        return read_bank(Path(name)).probes
    if name in registry.names("redteam.probes", ".toml"):
        return _bank(name).probes
    path = Path(name)
    if path.suffix in _FILES or (path.suffix and path.is_file()):
        kinds = ", ".join(importing.kinds())
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
