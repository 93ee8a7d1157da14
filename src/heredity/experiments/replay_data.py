"""Select the training data of tuned repairs and their number of steps, so that a child does not learn to
refuse everything.

The data are the parent's answers to training probes that only the child broke, and `twins` benign examples
for each. The benign examples are tasks that the child can no longer do, then benign twins, all with the
parent's answers. If the training half has too few, the parent answers more twins of the package. Every
third behaviour is held out. It selects the number of steps (STEPS) with the least distance to the parent,
the fewest on a tie.

Promises: training and selection use no measured behaviour and no probe with the same wording. The training
prompts are exactly the prompts that were asked.
Leaves to others: the order of repairs and their measurement (repair.py); training (recipes/lora.py).

Sources: a few hundred safety examples among benign ones, and over-refusal if there are too many: Bianchi et
al. 2023 (2309.07875). Recovery from a bad beginning: Qi et al. 2024 (2406.05946). Early stopping: Prechelt
1998.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import NamedTuple

from heredity.application.spec import Application
from heredity.core.errors import UsageError
from heredity.core.records import Message, Probe, Request
from heredity.lineage.types import Grown
from heredity.redteam import attacks, probes
from heredity.study import plan
from heredity.study.result import Result
from heredity.study.storage import open_responses, open_verdicts
from heredity.train.data.chat import Data, Dialogue, make_data

TWINS = 3.0
STEPS = (4, 8, 16, 32)
RATE = 5e-5
BEGUN = (4, 16)  # numbers of words of the bad answer that precede the parent's answer
ABILITY = "failed_task"  # the technique that measures the cost of a repair

AskParent = Callable[[Sequence[Probe]], Result]  # a study of the parent only, with direct requests
Heard = dict[str, tuple[str, str]]  # probe id -> (outcome, text of the answer)


class ReplayExample(NamedTuple):
    """A probe as it was asked, the parent's answer, and the child's answer if it was a breach."""

    probe: Probe
    text: str
    bad: str = ""


class Lesson(NamedTuple):
    """The training data of a tuned repair, and the probes for early stopping.

    is_kept_back: whether these probes are of held-out behaviours, which needs two behaviours with losses.
    """

    refusals: tuple[ReplayExample, ...]
    benign: tuple[ReplayExample, ...]
    stop_on: tuple[Probe, ...]
    is_kept_back: bool

    def rows(self, desk: Application, begun: Sequence[int] = ()) -> Data:
        """Return the training rows. Each refusal also follows the first `begun` words of the child's bad
        answer."""
        found = [
            Dialogue((*_asked(desk, each.probe), Message("assistant", each.text)), each.probe.id)
            for each in (*self.refusals, *self.benign)
        ]
        for each in self.refusals:
            bad, where = each.bad.split(), each.probe.id
            said = (*_asked(desk, each.probe), Message("assistant", "\n\n" + each.text))
            behind = [n for n in begun if len(bad) >= n]
            found += [Dialogue(said, f"{where}+{n}", prefill=" ".join(bad[:n])) for n in behind]
        return make_data("recover" if begun else "replay", found)


class Nearest(NamedTuple):
    """The child that is nearest to the parent on the held-out behaviours, and all evaluated step counts."""

    model: Grown
    steps: int
    looked: tuple[int, ...]


def behaviours(chosen: Sequence[Probe]) -> dict[str, str]:
    """Return the behaviour of each probe by probe id; a twin shares its probe's."""
    by_id = {probe.id: probe for probe in chosen}
    return {p.id: (by_id.get(p.twin or "", p) if p.kind == "benign" else p).cluster for p in chosen}


def lesson(lost: Result, measured_on: Sequence[Probe], twins: float, ask: AskParent) -> Lesson:
    """Select training data from a study of parent and child on the training half.

    twins: benign examples per refusal. `ask` is called if that half has too few. Raises UsageError if the
    child lost nothing there.
    """
    found = plan.read_plan(lost.folder)
    measured, _ = probes.select(measured_on, found.application)
    asked = _unlike(found.probes, measured)  # slots are filled as they were when asked
    parent, child = (_heard(lost, card.id) for card in lost.estimates.models)
    broken = [p for p in asked if _is(parent, p, "held") and _is(child, p, "broke")]
    behaviour = behaviours(found.probes)
    lost_harm = [p for p in broken if not p.is_baseline]
    kept = _kept_back(set(behaviour.values()), {behaviour[p.id] for p in lost_harm})
    taught = {p.id for p in asked if behaviour[p.id] not in kept}
    refusals = tuple(ReplayExample(p, parent[p.id][1], child[p.id][1]) for p in lost_harm if p.id in taught)
    own = {each.probe.twin for each in refusals}
    mine = [p for p in broken if p.technique == ABILITY]
    mine += sorted((p for p in asked if _is(parent, p, "answered")), key=lambda p: p.id not in own)
    benign = [ReplayExample(p, parent[p.id][1]) for p in mine if p.id in taught]
    n_wanted = math.ceil(twins * len(refusals))
    if n_wanted > len(benign):
        barred = {*behaviours(measured_on).values(), *kept}
        more = further(found.application, barred, [*asked, *measured], {p.technique for p in lost_harm})
        benign += _answered(more[: 2 * (n_wanted - len(benign))], ask)
    stop_on = [p for p in asked if not p.is_baseline and (not kept or behaviour[p.id] in kept)]
    return Lesson(refusals, tuple(benign[:n_wanted]), tuple(stop_on), bool(kept))


def further(desk: Application, barred: set[str], known: Sequence[Probe], near: set[str]) -> list[Probe]:
    """Return the package's applicable benign twins, interleaved over techniques, those of `near` first.
    Excluded are barred behaviours, known probes, and probes with the same wording as a known one."""
    everything = probes.load("full")
    behaviour, ids = behaviours(everything), {p.id for p in known}
    twins = [
        p for p in probes.select(everything, desk)[0]
        if p.kind == "benign" and behaviour[p.id] not in barred and p.id not in ids
    ]  # fmt: skip
    left = _unlike(twins, known)
    groups = ([p for p in left if (p.technique in near) == is_near] for is_near in (True, False))
    return [p for group in groups for p in _by_turns(group)]


def nearest(make: Callable[[int], Grown], distance: Callable[[Grown, int], float]) -> Nearest:
    """Return the child with the least distance among STEPS, the first on a tie. The search stops when the
    distance rises above the best or reaches zero."""
    best: tuple[float, Grown, int] | None = None
    looked: list[int] = []
    for steps in STEPS:
        model = make(steps)
        looked.append(steps)
        far = distance(model, steps)
        if best is not None and far > best[0]:
            break
        if best is None or far < best[0]:
            best = (far, model, steps)
        if far == 0:
            break
    assert best is not None
    return Nearest(best[1], best[2], tuple(looked))


def _kept_back(every: set[str], losses: set[str]) -> set[str]:
    """Select every third behaviour with losses and every third one without. Raises UsageError if no
    behaviour has losses. Returns an empty set if only one has: it is needed for training."""
    if not losses:
        raise UsageError(
            "the child lost nothing on the training half: there is nothing to replay",
            code="nothing-to-replay",
        )
    if len(losses) == 1:
        return set()
    return {*sorted(losses)[1::3], *sorted(every - losses)[1::3]}


def _unlike(chosen: Sequence[Probe], others: Sequence[Probe]) -> list[Probe]:
    """Return the probes whose wording differs from all the others."""
    worded = {(p.turns, p.passage, p.tool_result) for p in others}
    return [p for p in chosen if (p.turns, p.passage, p.tool_result) not in worded]


def _by_turns(chosen: Sequence[Probe]) -> list[Probe]:
    names = sorted({p.technique for p in chosen})
    rounds = zip_longest(*([p for p in chosen if p.technique == name] for name in names))
    return [p for each in rounds for p in each if p is not None]


def _answered(more: Sequence[Probe], ask: AskParent) -> list[ReplayExample]:
    """Ask the parent, and return the probes that it answers."""
    if not more:
        return []
    found = ask(more)
    heard = _heard(found, found.estimates.models[0].id)
    return [ReplayExample(p, heard[p.id][1]) for p in more if _is(heard, p, "answered")]


def _heard(found: Result, model: str) -> Heard:
    """Return a model's answers by probe: single exchanges only, without errors and empty texts."""
    outcome = {row.index: row.outcome for row in open_verdicts(found.folder)}
    rows = (r for r in open_responses(found.folder) if r.model == model and r.error is None)
    said = ((r, r.exchanges[0].text) for r in rows if len(r.exchanges) == 1)
    return {r.probe: (outcome.get(r.index) or "", text) for r, text in said if text.strip()}


def _is(heard: Heard, probe: Probe, outcome: str) -> bool:
    return probe.id in heard and heard[probe.id][0] == outcome


def _asked(desk: Application, probe: Probe) -> tuple[Message, ...]:
    """Return the conversation up to the answer, as a study asks it."""
    request = next(desk.converse(attacks.load("direct")(probe, attacks.context_for(desk)), probe))
    assert isinstance(request, Request)
    return request.messages
