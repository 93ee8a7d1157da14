"""A friendly conversation that goes from the general to the demand, and backs off from a refusal.

Source: Russinovich et al. 2024 (arXiv 2404.01833). This version needs no attacker model: the steps are
written for each kind of breach. The model's replies only decide whether to back off. Unlike the paper's, it
removes nothing from the chat.
The variant is the maximum number of turns, from 2 to 10; an application's `max_turns` may allow fewer.
"""

from __future__ import annotations

from heredity.redteam.attacks._ladder import Ladder
from heredity.redteam.attacks.protocols import Strategy

ATTACK: Strategy = Ladder("crescendo")
