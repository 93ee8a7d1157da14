"""The recommendation of a study, by the user's own costs: expected cost, chance to be the best, and ranks.

    costs = parse_costs("breach=100,refusal=5,useless=1")
    save_costs(folder, costs)                       # from now on its reports end in the recommendation
    recommendation(folder).models[0].p_best

Promises: no cost is assumed. Without costs nothing is recommended. The same folder and costs give the same
numbers. Models share the draws, so that pairing is kept.
Leaves to others: the draws and ranks (stats/decision.py).
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from heredity.core.errors import Damaged, UnknownName, UsageError
from heredity.core.files import read_file, write_atomic
from heredity.core.records import SCHEMA, Estimate, Record, encode
from heredity.stats.decision import FailureKind, expected_costs
from heredity.study.estimates import ALL, JUDGE_FREE, JUDGED
from heredity.study.findings.same_conversations import note_conversations
from heredity.study.intervals import Intervals
from heredity.study.outcomes import BROKE, UNCLEAR, Codes, Outcomes, is_answered, read_outcomes
from heredity.study.plan import read_plan
from heredity.study.wording import NONE, percent

COSTS = "costs.json"
REQUESTS = 1000  # that a cost is of
ATTACKS = 0.01  # share of requests that are attacks, if the user gives none
_KEYS = ("breach", "refusal", "useless", "attacks")


class Costs(Record, frozen=True):
    """costs.json: what one failure costs, in any unit, and the share of requests that are attacks.

    breach    of one attack that succeeds
    refusal   of one benign request that is refused
    useless   of one benign request that gets no useful answer
    """

    breach: float = 0.0
    refusal: float = 0.0
    useless: float = 0.0
    attacks: float = ATTACKS
    schema: int = SCHEMA


class CostedModel(Record, frozen=True):
    """The expected cost of a model over REQUESTS requests. `parts` are by kind of failure, in its unit.

    `p_best` is the probability that no model costs less. Ranks count from 1, the cheapest; the true rank lies
    within them with the study's confidence. All are None if the cost is refused.
    """

    model: str
    cost: Estimate
    parts: dict[str, float]
    p_best: float | None
    rank_low: int | None
    rank_high: int | None


class Recommendation(Record, frozen=True):
    """The models by expected cost, the cheapest first. `is_clear`: the first is shown to cost least."""

    costs: Costs
    models: tuple[CostedModel, ...]

    @property
    def is_clear(self) -> bool:
        return bool(self.models) and self.models[0].rank_high == 1

    @property
    def note(self) -> str:
        """Why nothing is recommended; "" if something is."""
        return self.models[0].cost.note if self.models else ""


def parse_costs(text: str) -> Costs:
    """Costs from the command line: `breach=100,refusal=5,useless=1,attacks=0.01`.

    Raises UnknownName for another key. Raises UsageError for a value that is negative or not a number, for a
    share above 1, and if no cost is above 0.
    """
    given: dict[str, float] = {}
    for part in text.split(","):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in _KEYS:
            raise UnknownName("cost", key, _KEYS, ", ".join(_KEYS))
        if key in given:
            raise UsageError(f"--cost gives {key} twice.", code="name-twice")
        given[key] = _number(key, value)
    attacks = given.get("attacks", ATTACKS)
    costs = Costs(given.get("breach", 0.0), given.get("refusal", 0.0), given.get("useless", 0.0), attacks)
    if not costs.breach * attacks + (costs.refusal + costs.useless) * (1 - attacks) > 0:
        raise UsageError("--cost needs a cost above 0, such as breach=100,refusal=5,useless=1.")
    return costs


def _number(key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    most = 1.0 if key == "attacks" else 1e12
    example = "0.01" if key == "attacks" else "100"
    if not 0.0 <= value <= most:
        raise UsageError(f"--cost {key}={text} is not a number from 0 to {most:g}, such as {key}={example}.")
    return value


def save_costs(folder: Path, costs: Costs) -> None:
    """Keep the costs in the study's folder, so that every report of it ends in the recommendation."""
    write_atomic(folder / COSTS, encode(costs) + b"\n")


def read_costs(folder: Path) -> Costs | None:
    """The costs of the folder, or None. Raises Damaged for a broken file."""
    try:
        data = read_file(folder / COSTS)
    except FileNotFoundError:
        return None
    try:
        return msgspec.json.decode(data, type=Costs)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Damaged(f"{folder / COSTS}: {error}. Delete it, and give --cost again.") from None


def recommendation(folder: Path) -> Recommendation | None:
    """The recommendation by the costs in the folder, from its verdicts; None without costs."""
    costs = read_costs(folder)
    if costs is None:
        return None
    plan = read_plan(folder)
    outcomes = read_outcomes(plan, folder).outcomes
    note_conversations(outcomes, folder)
    return recommend(outcomes, costs)


def recommend(outcomes: Outcomes, costs: Costs) -> Recommendation:
    """The models by expected cost. An unclear answer is not a breach, and has no use for a benign user."""
    plan = outcomes.plan
    attacks = sorted(outcomes.probes(JUDGE_FREE, "breach") + outcomes.probes(JUDGED, "breach"))
    twins = outcomes.probes(ALL, "over_refusal")
    n_attacks, n_benign = REQUESTS * costs.attacks, REQUESTS * (1 - costs.attacks)
    asked, benign = _codes(outcomes, attacks), _codes(outcomes, twins)
    useless = (benign == UNCLEAR) | outcomes.useless_of(twins)
    kinds = [
        kind
        for kind in (
            [
                _kind(outcomes, "breach", costs.breach * n_attacks, asked, asked == BROKE, attacks),
                _kind(outcomes, "refusal", costs.refusal * n_benign, benign, benign == BROKE, twins),
                _kind(
                    outcomes, "useless", costs.useless * n_benign, benign, useless & (benign != BROKE), twins
                ),
            ]
        )
        if kind.cost > 0
    ]
    confidence = Intervals.over(outcomes, *range(len(plan.models))).confidence
    by_model = expected_costs(kinds, np.random.default_rng(0), confidence)
    models = [
        CostedModel(
            model.id,
            each.cost,
            {} if each.parts is None else dict(zip((k.name for k in kinds), each.parts, strict=True)),
            each.p_best,
            each.rank_low,
            each.rank_high,
        )
        for model, each in zip(plan.models, by_model, strict=True)
    ]
    return Recommendation(costs, tuple(sorted(models, key=_cost)))


def _cost(costed_model: CostedModel) -> float:
    return costed_model.cost.value if costed_model.cost.value is not None else 0.0


def _codes(outcomes: Outcomes, probes: list[int]) -> Codes:
    """(model, trial)"""
    n_models = len(outcomes.plan.models)
    return np.array([outcomes.codes_of(m, ALL, probes) for m in range(n_models)]).reshape(n_models, -1)


def _kind(
    outcomes: Outcomes, name: str, cost: float, codes: Codes, failed: NDArray[np.bool_], probes: list[int]
) -> FailureKind:
    values = np.where(is_answered(codes), failed.astype(np.float64), np.nan)
    return FailureKind(name, cost, values, outcomes.clusters_of(ALL, probes))


# --- the recommendation ------------------------------------------------------------------------------

HOW_TO_DECIDE = (
    "No costs were given, so no model is recommended. Give your own, for example "
    "heredity report DIR --cost breach=100,refusal=5,useless=1."
)


def amount(value: float | None) -> str:
    """A cost with three digits: `1,230`, `4.56`."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cost_words(costed: CostedModel) -> str:
    """An expected cost with its interval: `120 (80 to 190)`."""
    return f"{amount(costed.cost.value)} ({amount(costed.cost.low)} to {amount(costed.cost.high)})"


def recommendation_words(recommendation: Recommendation | None, called: dict[str, str]) -> list[str]:
    """The recommendation in plain sentences, with its assumptions; how to get one without costs."""
    if recommendation is None:
        return [HOW_TO_DECIDE]
    if recommendation.note:
        return [f"No model is recommended: {recommendation.note}."]
    return [*_best(recommendation, called), _assumed(recommendation.costs)]


def _best(recommendation: Recommendation, called: dict[str, str]) -> list[str]:
    first, name = recommendation.models[0], called.get(recommendation.models[0].model, "?")
    cost = f"{cost_words(first)} per {REQUESTS:,} requests"
    if len(recommendation.models) == 1:
        return [f"{name} costs {cost}. One model gives nothing to choose from."]
    if recommendation.is_clear:
        return [f"By your costs, take {name}: it costs {cost}, less than every other model."]
    close = [called.get(m.model, "?") for m in recommendation.models[1:] if (m.rank_low or 1) == 1]
    return [
        f"By your costs {name} is cheapest, with {cost}. That is not shown: "
        f"the probability that it costs least is {percent(first.p_best)}.",
        f"Not shown to cost more: {', '.join(close)}. Decide among them by something else, or ask more.",
    ]


def _assumed(costs: Costs) -> str:
    return (
        f"Assumed: a breach costs {amount(costs.breach)}, a refused benign request {amount(costs.refusal)}, "
        f"a benign request without a useful answer {amount(costs.useless)}. "
        f"{percent(costs.attacks, 1)} of the requests are attacks like the probes of this study."
    )
