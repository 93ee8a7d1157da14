"""Small favours that are easily granted, each a little larger, before the demand.

Source: Freedman and Fraser 1966, and for models Weng et al. 2025 (arXiv 2502.19820). This version needs no
attacker model: the favours are written for each kind of breach. The model's replies only decide whether to
back off. The variant is the maximum number of turns, from 2 to 10; an application's `max_turns` may allow
fewer.
"""

from __future__ import annotations

from heredity.redteam.attacks._words import Ladder
from heredity.redteam.attacks.protocols import Strategy

ATTACK: Strategy = Ladder("foot_in_door")
