"""A part of the chosen probes for a quick study: `heredity study --limit N`.

    asked, limit = limited(asked, 12, applied, seed=0)

Promises: each technique has as many probes as any other, to one, as far as it has them. They are of
different behaviours first, and drawn by the seed. A probe comes with its benign twin, and is asked
under every attack that is for it. The same settings choose the same probes.
Leaves to others: saving the limit (plan.py), and saying that a result is of a part (declared_words.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from typing import TYPE_CHECKING

from heredity.core.errors import UsageError
from heredity.core.records import Probe, Record, digest

if TYPE_CHECKING:
    from heredity.redteam.attacks import Attack


class ProbeLimit(Record, frozen=True):
    """Of `n_chosen` probes, `n_asked` are in the plan. Twins are not counted, but where they stand alone."""

    n_asked: int
    n_chosen: int

    def __str__(self) -> str:
        return str(self.n_asked)


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
    drawn = _drawn({each: [p for p in leading if p.technique == each] for each in ordered}, seed)
    kept = {probe.id for probe, _ in zip(drawn, range(n), strict=False)}
    whole = tuple(p for p in asked if p.id in kept or (p.twin in kept and p.kind == "benign"))
    return whole, ProbeLimit(n, len(leading))


def _needed(techniques: Sequence[str], applied: Sequence[Attack], asked: Sequence[Probe]) -> Iterator[str]:
    """A technique for each attack that is not for all of them, each once."""
    found: set[str] = set()
    for attack in applied:
        covered = {probe.technique for probe in asked if attack.covers(probe)}
        if covered and not covered >= set(techniques) and not covered & found:
            name = next(each for each in techniques if each in covered)
            found.add(name)
            yield name


def _drawn(by_technique: dict[str, list[Probe]], seed: int) -> Iterator[Probe]:
    """One probe of each technique, then a second of each, and so on."""
    rounds = zip_longest(*(_order(probes, seed) for probes in by_technique.values()))
    return (probe for probe in chain.from_iterable(rounds) if probe is not None)


def _order(probes: Sequence[Probe], seed: int) -> Iterator[Probe]:
    """Of one technique: a probe of each behaviour, in a random order, then a second of each, and so on."""
    behaviours: dict[str, list[Probe]] = {}
    # By digest, not by a generator: the order is the same with every version of every library.
    for probe in sorted(probes, key=lambda probe: digest([seed, probe.id])):
        behaviours.setdefault(probe.cluster, []).append(probe)
    return (p for p in chain.from_iterable(zip_longest(*behaviours.values())) if p is not None)
