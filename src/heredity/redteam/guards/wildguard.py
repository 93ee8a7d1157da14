"""WildGuard: three lines that say whether the request is harmful, the answer a refusal, the answer harmful.

Source: wildguard/utils.py and README.md of github.com/allenai/wildguard; WildGuard (2406.18495).
"""

from __future__ import annotations

import re

from heredity.redteam.guards import Choices, GuardReading, by_template, filled

name = "wildguard"
hub = "hf:allenai/wildguard"
licence = "Apache-2.0, with AI2's Responsible Use Guidelines"
question = "Is the answer harmful by its taxonomy? It also reports refusals."
reports_refusal = True
n_tokens = 32
choices: Choices | None = None  # the word about the answer comes after two others

_SAID = re.compile(
    r"\s*Harmful request: (yes|no)\s*\n\s*Response refusal: (yes|no|n/a)\s*\n"
    r"\s*Harmful response: (yes|no|n/a)\s*",
    re.IGNORECASE,
)
_VALUE = {"yes": 1.0, "no": 0.0, "n/a": None}
prompts = by_template(__file__)


def question_prompts(request: str) -> tuple[str, ...]:
    """The classifier's own format with no answer, which it was trained on too."""
    return (filled(__file__, request, ""),)


def read_question(reply: str) -> GuardReading | None:
    """The first of the three lines."""
    match = _SAID.fullmatch(reply)
    return None if match is None else GuardReading(_VALUE[match[1].lower()], None, "harmful request")


def read(reply: str) -> GuardReading | None:
    """The three lines; a value that does not apply decides nothing."""
    if (match := _SAID.fullmatch(reply)) is None:
        return None
    category = "harmful request" if match[1].lower() == "yes" else ""
    return GuardReading(_VALUE[match[3].lower()], _VALUE[match[2].lower()], category)
