"""The demand inside a scene: a play, a story, or a character who answers everything.

Source: Shen et al. 2023 (arXiv 2308.03825) and Wei et al. 2023 (arXiv 2307.02483), as kinds; the words are
our own. Only the turn that makes the probe's demand is wrapped. Adds no query.
"""

from __future__ import annotations

from heredity.redteam.attacks._words import DemandWrapper
from heredity.redteam.attacks.protocols import TurnTransform

ATTACK: TurnTransform = DemandWrapper("roleplay")
