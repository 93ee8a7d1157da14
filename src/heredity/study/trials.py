"""The trials of a plan: their order, ids and seeds, and which of them are still pending."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import msgspec

from heredity.core.records import Probe
from heredity.study.plan import Plan, PlannedModel


class Trial(msgspec.Struct, frozen=True, gc=False):
    """One cell of the plan: the smallest thing that is asked, answered and judged."""

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
        self._study_seed = f"{plan.seed}\0".encode()

    def __len__(self) -> int:
        return self.plan.n_trials

    def trial(self, index: int) -> Trial:
        """The trial at this place. Raises IndexError outside the plan."""
        plan = self.plan
        if not 0 <= index < plan.n_trials:
            raise IndexError(f"trial {index} is outside a plan of {plan.n_trials}")
        rest, sample = divmod(index, plan.samples)
        rest, p = divmod(rest, len(plan.probes))
        m, a = divmod(rest, len(plan.attacks))
        model, attack, probe = plan.models[m], plan.attacks[a], plan.probes[p]
        # The model is left out of the seed on purpose: every model draws the same luck, so pairs are paired.
        asked = f"{probe.id}\0{attack}\0{sample}".encode()
        # 53 bits: a JSON reader that keeps numbers as doubles reads the same seed.
        seed = int.from_bytes(hashlib.blake2b(self._study_seed + asked, digest_size=8).digest(), "big") >> 11
        return Trial(
            index, model, attack, probe, sample, seed, trial_id(model.id, self.application, asked, seed)
        )

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
        return 0 <= index < self.plan.n_trials and self.trial(index).id == trial


def trial_id(model: str, application: str, asked: bytes, seed: int) -> str:
    """32 hex digits of SHA-256 over model id, application digest, probe, attack, sample and seed."""
    # NUL between the parts: none of them can hold one, so two trials never spell the same bytes.
    return hashlib.sha256(f"{model}\0{application}\0".encode() + asked + b"\0%d" % seed).hexdigest()[:32]


def pending(done: bytearray, indices: Iterable[int]) -> Iterator[int]:
    """Those of `indices` whose bit in `done` is not set, without a list of them."""
    return (i for i in indices if not done[i >> 3] & (1 << (i & 7)))


def mark(done: bytearray, index: int) -> bool:
    """Set the bit; False where it was set already."""
    bit = 1 << (index & 7)
    was = done[index >> 3] & bit
    done[index >> 3] |= bit
    return not was
