"""A judge's errors on one more family of answers, predicted from the families that people labelled.

A study's answers are of models that no label is of. A judge's errors differ from one family of answers to
another, so pooled labels give intervals that are too narrow.

Promises: every correction has the variance between families. It is averaged with that of the shipped judges,
which a judge with labels of one family takes whole.
Leaves to others: the labels' counts (quality.py, readings.py), the corrected rate (stats/judge_error.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from heredity.core.records import Estimate
from heredity.redteam.judges.calibration import readings
from heredity.redteam.judges.calibration.measure import Calibration
from heredity.redteam.judges.calibration.quality import (
    HEAD_CARD,
    LEARNED_CARD,
    TASKS,
    as_calibration,
    newest_calibration,
    read_card,
    shipped,
    trained_calibrations,
)
from heredity.redteam.judges.protocols import DEFAULT, Task
from heredity.stats.judge_error import (
    PredictedShare,
    Spread,
    correct_for_family,
    family_variance,
    predict_share,
    rogan_gladen,
)

OWN = "shipped probes: "  # begins the name of a family whose answers to the shipped probes people read
# Labels of one family of answers each, for the spread between them. Half of XSTest's rows are those on which
# the rules were developed; as one family of four that flatters them little.
_FAMILIES: dict[Task, tuple[str, ...]] = {
    "harm": (
        "GPTFuzz: ChatGPT under jailbreaks",
        "JAILJUDGE: many models under attacks",
        "PyRIT: objective achieved (sets left out)",
        "XSTest: Mistral, unsafe prompts (sets left out)",
    ),
    "refusal": (
        "XSTest safe prompts: Llama-2",
        "XSTest: Mistral",
        "PyRIT: refusal (sets left out)",
    ),
}


class PredictedErrors(NamedTuple):
    """A judge's errors on one more family of answers, and the families that predict them."""

    sens: PredictedShare
    spec: PredictedShare
    labels: str
    families: tuple[Calibration, ...]


def predicted_errors(
    task: Task, judge: str = DEFAULT, judged_by: str = "", root: Path | None = None
) -> PredictedErrors | None:
    """The errors that correct a judge's rate, with the spread between families; None if nothing was measured.

    A few families tell little about their spread, so it is averaged with that of the shipped judges. A judge
    with labels of one family takes theirs. A user's
    measurements of the judge `judged_by`, kept in the store `root`, replace the shipped ones.
    """
    found = label_families(task, judge, judged_by, root)
    sens = [(each.sens_k, each.sens_n) for each in found if each.sens_n]
    spec = [(each.spec_k, each.spec_n) for each in found if each.spec_n]
    if not sens or not spec:
        return None
    names, is_single = "; ".join(each.labels for each in found), min(len(sens), len(spec)) == 1
    said = f"{names} (one family: widened by the spread that other judges show)" if is_single else names
    of_sens, of_spec = _spread()
    return PredictedErrors(_predicted(sens, of_sens), _predicted(spec, of_spec), said, found)


def _predicted(counts: Sequence[tuple[float, float]], spread: Spread) -> PredictedShare:
    return predict_share([k for k, _ in counts], [n for _, n in counts], spread)


def label_families(
    task: Task, judge: str = DEFAULT, judged_by: str = "", root: Path | None = None
) -> tuple[Calibration, ...]:
    """A judge's counts on each family of answers that people labelled."""
    if root is not None and (kept := newest_calibration(root, judge, judged_by, task)) is not None:
        every, *families = kept.calibrations()
        return tuple(families) or (every,)
    trained = {read_card(path).judge: path for path in (LEARNED_CARD, HEAD_CARD)}
    if judge in trained and task == "harm":
        return trained_calibrations(trained[judge])[1:]
    if judge not in (DEFAULT, *trained):
        return ()
    table = [row for row in shipped().table if (row.judge, row.task) == ("rules", task)]
    card = [row for row in read_card(LEARNED_CARD).measured if (row.judge, row.task) == ("rules", task)]
    rows = {
        row.labels: Calibration(row.sens_k, row.sens_n, row.spec_k, row.spec_n, row.labels) for row in card
    } | {row.labels: as_calibration(row) for row in table}
    return (*(rows[name] for name in _FAMILIES[task] if name in rows), *_own_answers(task))


def _own_answers(task: Task) -> tuple[Calibration, ...]:
    """The default judge on answers to the shipped probes that people read: each model is a family."""
    kind = "benign" if task == "refusal" else "breach"
    rows = [row for row in readings.shipped_readings() if (row.judge, row.kind) == (DEFAULT, kind)]
    found = []
    for model in sorted({row.model for row in rows}):
        counts = readings.count_readings((row for row in rows if row.model == model), "decided_trials")
        sens_k, sens_n = counts[:2] if counts.sens_n >= readings.FEWEST else (0.0, 0.0)
        spec_k, spec_n = counts[2:] if counts.spec_n >= readings.FEWEST else (0.0, 0.0)
        if sens_n or spec_n:
            found.append(Calibration(sens_k, sens_n, spec_k, spec_n, f"{OWN}{model}"))
    return tuple(found)


def _spread(without: str = "") -> tuple[Spread, Spread]:
    """The variance between families over the shipped judges and tasks, of sensitivity and of specificity.

    Judges share families, so all of them count for no more degrees of freedom than one judge's families.
    without: a family that is left out, by `_root` of its name.
    """
    names = (DEFAULT, read_card(LEARNED_CARD).judge, read_card(HEAD_CARD).judge)
    every = dict.fromkeys(label_families(task, judge) for task in TASKS for judge in names)
    kept = [[each for each in families if _root(each.labels) != without] for families in every]
    sens = [[(c.sens_k, c.sens_n) for c in families if c.sens_n] for families in kept]
    spec = [[(c.spec_k, c.spec_n) for c in families if c.spec_n] for families in kept]
    return _pooled_variance(sens), _pooled_variance(spec)


def _pooled_variance(of_judges: Sequence[Sequence[tuple[float, float]]]) -> Spread:
    several = [counts for counts in of_judges if len(counts) > 1]
    found = [family_variance([k for k, _ in c], [n for _, n in c]) for c in several]
    weights = [len(counts) - 1 for counts in several]
    mean = sum(w * v for w, v in zip(weights, found, strict=True)) / sum(weights)
    return Spread(mean, float(max(weights)))


def _root(labels: str) -> str:
    """The family of labels, however a judge's card names it: "GPTFuzz (sets left out)" is "GPTFuzz"."""
    name = labels.partition(" (")[0]
    return name if name.startswith(("XSTest", "PyRIT")) else name.partition(":")[0]


# --- does it hold? ----------------------------------------------------------------------------------

TRUE_RATES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)


class FamilyCoverage(NamedTuple):
    """How many of n judged rates of a family that was left out have the true rate in their interval.

    `covered_pooled` is of labels of the other families taken together, without a spread. `width` is the mean
    width of the intervals with it. A refused correction covers nothing.
    """

    n: int
    covered: int
    covered_pooled: int
    width: float


def leave_one_out(task: Task, judge: str = DEFAULT, n: int = 200) -> FamilyCoverage:
    """Correct the judged rate of each shipped family by the labels of the others, at several true rates.

    n: trials behind each judged rate. The judged rate is the one that the family's own errors give.
    """
    families = [each for each in label_families(task, judge) if each.sens_n and each.spec_n]
    covered, covered_pooled, widths = 0, 0, []
    for out in families:
        others = [each for each in families if each is not out]
        of_sens, of_spec = _spread(_root(out.labels))
        sens = _predicted([(each.sens_k, each.sens_n) for each in others], of_sens)
        spec = _predicted([(each.spec_k, each.spec_n) for each in others], of_spec)
        pooled = (
            sum(each.sens_k for each in others),
            sum(each.sens_n for each in others),
            sum(each.spec_k for each in others),
            sum(each.spec_n for each in others),
        )
        for truth in TRUE_RATES:
            judged = truth * out.sens_k / out.sens_n + (1 - truth) * (1 - out.spec_k / out.spec_n)
            found = correct_for_family(round(judged * n), n, sens, spec)
            covered += _holds(found, truth)
            covered_pooled += _holds(rogan_gladen(round(judged * n), n, *pooled), truth)
            if found.low is not None and found.high is not None:
                widths.append(found.high - found.low)
    total = len(families) * len(TRUE_RATES)
    return FamilyCoverage(total, covered, covered_pooled, sum(widths) / max(1, len(widths)))


def _holds(found: Estimate, truth: float) -> bool:
    return found.low is not None and found.high is not None and found.low <= truth <= found.high
