"""The demand with a reason to give in: an authority, an emotion, a favour owed, what others do, a proof.

Source: Zeng et al. 2024 (arXiv 2401.06373), five of its forty techniques. The words are our own and the same
for every probe; in the paper a model writes them for each. Only the turn that makes the probe's demand is
wrapped. Adds no query.
"""

from __future__ import annotations

from heredity.redteam.attacks._words import DemandWrapper
from heredity.redteam.attacks.protocols import TurnTransform

ATTACK: TurnTransform = DemandWrapper("persuasion")
