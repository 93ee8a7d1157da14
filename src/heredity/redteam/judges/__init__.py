"""Judges, which score an answer, and the measured quality of each. Each public file or folder is one judge.

To add a judge, add `judges/NAME.py` with a string `name`, a number `VERSION`, and one function:
`verdict(probe, response, application) -> Verdict`. A judge that can be wrong also has `manner(prompt, text)`.
A judge that takes more than its name has `make(rest, models)`, which gives an object with the same members.
`protocols.py` has what else a judge can do. Raise `VERSION` when a verdict changes, and only then: answers
judged by an earlier version are judged again.

    checks   deterministic: a probe's own check decides (redteam/checks/)
    rules    refusal, compliance, incoherence and emptiness by rules; measured on human labels
    learned  refusal and harmful compliance, trained on human labels; needs torch and an encoder in the store
    rubric   any model as judge: `rubric:MODEL`, `rubric:MODEL:yesno`, `rubric:MODEL:head`
    guard    a guard model with its own template: `guard:NAME`, `guard:NAME:MODEL` (redteam/guards/)
    panel    two judges or more: `panel:rules+learned`; if they disagree the verdict is unclear

Promises: a judge never raises on any text, and takes time linear in its length. An error row stays an error
and is never a verdict. `quality()` gives the measurements on human labels, with n.
"""

from __future__ import annotations

from heredity.application.spec import Application
from heredity.core.records import Probe, Response, Verdict
from heredity.redteam.judges import checks, rules
from heredity.redteam.judges._choice import Decider as Decider
from heredity.redteam.judges._choice import identity as identity
from heredity.redteam.judges._choice import is_answer as is_answer
from heredity.redteam.judges._choice import judge_rows as judge_rows
from heredity.redteam.judges._choice import load as load
from heredity.redteam.judges._choice import needs_judge as needs_judge
from heredity.redteam.judges._choice import pair_of as pair_of
from heredity.redteam.judges._choice import stored_models as stored_models
from heredity.redteam.judges._choice import task_of as task_of
from heredity.redteam.judges._choice import unprompted_checks as unprompted_checks
from heredity.redteam.judges.calibration.quality import Calibration as Calibration
from heredity.redteam.judges.calibration.quality import JudgeQuality as JudgeQuality
from heredity.redteam.judges.calibration.quality import ReadErrors as ReadErrors
from heredity.redteam.judges.calibration.quality import calibrate as calibrate
from heredity.redteam.judges.calibration.quality import calibration as calibration
from heredity.redteam.judges.calibration.quality import calibrations as calibrations
from heredity.redteam.judges.calibration.quality import check_errors_elsewhere as check_errors_elsewhere
from heredity.redteam.judges.calibration.quality import check_positive as check_positive
from heredity.redteam.judges.calibration.quality import check_quality as check_quality
from heredity.redteam.judges.calibration.quality import quality as quality
from heredity.redteam.judges.calibration.quality import quality_of_card as quality_of_card
from heredity.redteam.judges.protocols import DEFAULT as DEFAULT
from heredity.redteam.judges.protocols import Judge as Judge
from heredity.redteam.judges.protocols import Models as Models
from heredity.redteam.judges.protocols import Task as Task

_JUDGES: tuple[Judge, ...] = (checks, rules)  # a module is a judge: the type checker sees to it


def default_verdict(probe: Probe, response: Response, application: Application) -> Verdict:
    """The verdict of the built-in judges, for an attack that adapts to each reply while a study asks.

    A study's own verdicts are those of its `Decider`.

    Twins and probes with the check "refusal" go to `rules`, the default judge of a study. Every other check
    is deterministic: `checks`.
    """
    application = application.for_probe(probe)
    if needs_judge(probe):
        return rules.verdict(probe, response, application)
    return checks.verdict(probe, response, application)
