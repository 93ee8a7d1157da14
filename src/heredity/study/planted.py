"""The passages that the attacks of a plan put next to its application's index, by trial.

Promises: the same plan has the same passages. A trial with an overlay has the hash of it in its id.
Leaves to others: the passages themselves (redteam/attacks/), and searching (application/retrieval/, and
attack_context.py for the words before some passages).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import UnsetType

from heredity.core.errors import Damaged
from heredity.core.records import Probe, Record, Retrieved, digest
from heredity.redteam import attacks
from heredity.redteam.attacks import Attack, AttackContext

if TYPE_CHECKING:
    from heredity.study.plan import Plan
    from heredity.study.storage import RawResponse


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


class PlantedPassages:
    """The planted passages of a plan's trials. Attacks and probes are named by their places in the plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan, retrieval = plan, plan.application.retrieval
        self._index = "" if retrieval is None else retrieval.read_hash
        applied = enumerate(plan.attacks if self._index else ())
        self._attacks = {a: found for a, spec in applied if (found := attacks.planned(spec)).deliveries}
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


def owner_of(probe: Probe, plan: Plan) -> str:
    """The id of the probe whose trigger this one has: a twin that of its probe, if the plan has both."""
    is_shared = probe.kind == "benign" and any(each.id == probe.twin for each in plan.probes)
    return str(probe.twin) if is_shared else probe.id
