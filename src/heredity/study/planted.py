"""The passages that the attacks of a plan put next to its application's index, by trial.

Promises: the same plan has the same passages. A trial with an overlay has the hash of it in its id.
Leaves to others: the passages themselves (redteam/attacks/), and searching (application/retrieval/).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import UnsetType

from heredity.core.records import Retrieved, digest
from heredity.redteam import attacks

if TYPE_CHECKING:
    from heredity.study.plan import Plan
    from heredity.study.storage import RawResponse


class PlantedPassages:
    """The planted passages of a plan's trials. Attacks and probes are named by their places in the plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan, retrieval = plan, plan.application.retrieval
        self._index = "" if isinstance(retrieval, UnsetType) else retrieval.read_hash
        applied = enumerate(plan.attacks if self._index else ())
        self._attacks = {a: found for a, spec in applied if (found := attacks.planned(spec)).deliveries}
        self._known: dict[tuple[int, int], tuple[Retrieved, ...]] = {}

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
            planted = self._attacks[attack].delivered(self._plan.probes[probe]).planted
            self._known[key] = () if isinstance(planted, UnsetType) else planted
        return self._known[key]

    def is_found(self, row: RawResponse) -> bool | None:
        """Whether a passage of its trial came before a turn; None if the trial's attack plants none."""
        rest, probe = divmod(row.index // self._plan.samples, len(self._plan.probes))
        attack = rest % len(self._plan.attacks)
        if attack not in self._attacks:
            return None
        found = {passage.chunk for exchange in row.exchanges for passage in exchange.retrieved}
        return any(each.chunk in found for each in self.of(attack, probe))

    def overlay(self, attack: int, probe: int) -> bytes:
        """The hash of a trial's overlay, as a part of what is asked; empty for none."""
        planted = self.of(attack, probe)
        return b"\0" + digest([self._index, planted]).encode() if planted else b""
