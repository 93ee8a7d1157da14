"""`heredity power`: the sample size of a study, before any request is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from heredity.cli import Verb

if TYPE_CHECKING:
    from heredity.stats.sample_size import RequiredTrials, SampleSizePlan


@click.command("power", cls=Verb, example="heredity power --gap 0.10 --baseline 0.2 --margin 0.05")
@click.option("--gap", type=float, metavar="SHARE", help="Difference to detect; 0.1 is ten points.")
@click.option("--margin", type=float, metavar="SHARE", help="Non-inferiority margin.")
@click.option(
    "--baseline", type=float, default=0.2, show_default=True, help="Breach rate of the better model."
)
@click.option(
    "--discordant", type=float, metavar="SHARE",
    help="Share of discordant trials of two models.  [default: as if independent]",
)  # fmt: skip
@click.option(
    "--power", type=float, default=0.8, show_default=True, help="Probability of detecting the difference."
)
@click.option("--alpha", type=float, default=0.05, show_default=True, help="Significance level.")
@click.option(
    "--models",
    type=int,
    default=2,
    show_default=True,
    help="Number of models; all pairs are compared (Holm).",
)
@click.option("--per-cluster", type=float, default=1.0, show_default=True, help="Trials per behaviour.")
@click.option("--correlation", type=float, default=0.0, show_default=True, help="Intra-cluster correlation.")
@click.option(
    "--judge-free", is_flag=True,
    help="No probe needs a judge.  [default: judged breaches are also compared, as in every suite]",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    gap: float | None,
    margin: float | None,
    baseline: float,
    discordant: float | None,
    power: float,
    alpha: float,
    models: int,
    per_cluster: float,
    correlation: float,
    judge_free: bool,
    as_json: bool,
) -> None:
    """Plan how many trials a study needs.

    The goal is to detect a gap, to show "not worse" within a margin, or both. The result has a plan of fixed
    size, and one that stops early (study --until-decided). For a large gap the second needs far fewer
    trials, but its maximum must be larger for the same power.
    """
    import numpy as np

    from heredity.core.errors import UsageError
    from heredity.core.terminal import write_json
    from heredity.stats.sample_size import SampleSizeQuestion, plan_sample_size

    asked = SampleSizeQuestion(
        gap, margin, baseline, discordant, power, alpha, models, per_cluster, correlation,
        scopes=1 if judge_free else 2,
    )  # fmt: skip
    try:
        found = plan_sample_size(asked, np.random.default_rng(0))  # the same question, the same answer
    except ValueError as error:
        raise UsageError(f"{str(error)[:1].upper()}{str(error)[1:]}.") from None
    if as_json:
        write_json(found)
    else:
        _show(found)


def _show(found: SampleSizePlan) -> None:
    from heredity.core.terminal import cell, out, table, write

    n_tests = found.n_pairs * found.scopes
    pairs = "1 pair" if found.n_pairs == 1 else f"{found.n_pairs} pairs"
    pairs += " in judge-free and in judged breaches" if found.scopes > 1 else ""
    pairs += f" (Holm over {n_tests})" if n_tests > 1 else ""
    clusters = "" if found.design_effect == 1 else f", design effect {found.design_effect:.2f}"
    write(f"Trials of each of {found.models} models, {pairs}, {100 * found.power:g} % power{clusters}\n")
    columns = ("to show", "discordant", "fixed plan", "stops early: at most", "mean", "median")
    grid = table(*columns, right=columns[1:])
    for need, what in (
        (found.difference, f"a gap of {_points(found.gap)}"),
        (found.not_worse, f"not worse by {_points(found.margin)}"),
    ):
        if need is not None:
            grid.add_row(cell(what), *map(cell, _numbers(need)))
    out().print(grid)
    write("")
    for width in found.widths:
        both = f"{100 * width.fixed:.1f} points wide, {100 * width.anytime:.1f} if valid at any time"
        write(f"After {width.n:,} trials the interval of a rate of {100 * width.rate:g} % is {both}.")


def _points(share: float | None) -> str:
    return f"{100 * (share or 0):g} points"


def _numbers(need: RequiredTrials) -> list[str]:
    counts = (need.fixed, need.sequential_most, round(need.sequential_mean), need.sequential_median)
    return [f"{100 * need.discordance:.0f} %", *(f"{n:,}" for n in counts)]
