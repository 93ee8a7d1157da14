"""How an answer is scored, and how good the judge is. Each public file here is one judge.

A file `judges/<name>.py` has a string `name` and one function,
`verdict(probe, response, application) -> Verdict`; one that can be wrong also has `manner(prompt, text)`.

    checks   deterministic: a secret, a marker, the system prompt, a tool call or a pattern came out
    rules    refusal, compliance, incoherence or emptiness, told apart by rules; measured on human labels

Promises: a judge never raises on any text, in time linear in its length; an error row stays an error and is
never a verdict; `quality()` is what was measured on human labels, with n.
Leaves to others: what rates mean once a judge's error is known (stats/, estimates.py).
"""

from __future__ import annotations

from typing import Protocol

from heredity import registry
from heredity.application import Application
from heredity.judges import checks, rules
from heredity.judges._quality import Calibration, JudgeQuality, calibrate, calibration, calibrations, quality
from heredity.judges._version import version
from heredity.records import Probe, Response, Verdict

__all__ = [
    "Calibration",
    "Judge",
    "JudgeQuality",
    "calibrate",
    "calibration",
    "calibrations",
    "decide",
    "names",
    "quality",
    "version",
]


class Judge(Protocol):
    """Turns a response into a verdict."""

    @property
    def name(self) -> str:
        """The judge's name, as it stands in verdict rows and in the table of quality."""

    def verdict(self, probe: Probe, response: Response, application: Application) -> Verdict:
        """The verdict on one response; an error row gives outcome None with the error."""


_JUDGES: tuple[Judge, ...] = (checks, rules)  # a module is a judge: the type checker sees to it


def names() -> list[str]:
    """The judges that there are."""
    return registry.names("judges")


def decide(probe: Probe, response: Response, application: Application) -> Verdict:
    """The verdict of the judge that fits this probe.

    Twins and probes with the check "refusal" go to `rules`; every other check is deterministic: `checks`.
    """
    if probe.kind == "benign" or probe.check.kind == "refusal":
        return rules.verdict(probe, response, application)
    return checks.verdict(probe, response, application)
