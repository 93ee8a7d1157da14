"""ShieldGemma: Yes or No to one policy at a time, from the probabilities of the two words.

It is asked about each of its four policies. The answer is harmful if any policy is violated.

Source: the model card (ai.google.dev/gemma/docs/shieldgemma/model_card, prompt and response use case) and the
chat template of google/shieldgemma-2b; ShieldGemma (2407.21772).
"""

from __future__ import annotations

import re
from pathlib import Path

from heredity.redteam.guards import Choices, GuardReading, filled

name = "shieldgemma"
hub = "hf:google/shieldgemma-2b"
licence = "Gemma Terms of Use"
question = "Does the answer violate a policy on danger, hate, sex or harassment? It does not report refusals."
reports_refusal = False
n_tokens = 2
choices: Choices | None = Choices({"Yes": 1.0, "No": 0.0})

POLICIES = dict(
    line.split(": ", 1)
    for line in Path(__file__).with_name("shieldgemma_policies.txt").read_text("utf-8").splitlines()
)
_SAID = re.compile(r"\s*(Yes|No)\b(?![-'])")


def prompts(request: str, answer: str) -> tuple[str, ...]:
    """One text for each policy."""
    return tuple(
        filled(__file__, request, answer, POLICY=policy, WORDS=words) for policy, words in POLICIES.items()
    )


def read(reply: str) -> GuardReading | None:
    """The first word: an explanation may follow it."""
    match = _SAID.match(reply)
    return None if match is None else GuardReading(float(match[1] == "Yes"))
