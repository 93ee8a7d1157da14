"""`heredity power`: the sample size of a study, before any request is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from heredity.cli import Name, PathArgument, Verb, open_store

if TYPE_CHECKING:
    from pathlib import Path

    from heredity.core.records import Model
    from heredity.stats.power import RequiredTrials, SampleSizePlan, SampleSizeQuestion
    from heredity.study.plan import StudyForecast
    from heredity.study.study import Study


_NARROW = 86  # columns below which the table of a study has four columns


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
    "--models", type=int, default=2, show_default=True,
    help="Number of models; all pairs are compared (Holm).",
)  # fmt: skip
@click.option(
    "--edges", type=int, default=0, metavar="N",
    help="Compare N parents and children, instead of all pairs of models.",
)  # fmt: skip
@click.option(
    "--lineage", type=Name(), multiple=True, metavar="REF|PLAN.toml",
    help="Compare parents and children: of this model and its descendants in the store, or of this plan file "
    "of study or inherit. May be repeated.",
)  # fmt: skip
@click.option("--per-cluster", type=float, default=1.0, show_default=True, help="Trials per behaviour.")
@click.option("--correlation", type=float, default=0.0, show_default=True, help="Intra-cluster correlation.")
@click.option(
    "--judge-free", is_flag=True,
    help="No probe needs a judge.  [default: judged breaches are also compared, as in every suite]",
)  # fmt: skip
@click.option(
    "--study", type=PathArgument(), metavar="PLAN.toml|DIR",
    help="Print what the study of this plan file or folder can show, and how long it takes.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    gap: float | None, margin: float | None, baseline: float, discordant: float | None, power: float,
    alpha: float, models: int, edges: int, lineage: tuple[str, ...], per_cluster: float, correlation: float,
    judge_free: bool, study: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Plan how many trials a study needs.

    With --study, heredity prints what that plan can show, as `heredity study` does before its first request.
    A plan file of inherit has several studies, and no child of it is made. The assumptions are those of an
    earlier study of these models next to its folder, or defaults. The other options do not apply. The edges
    of related models are its primary family.

    Without it, the goal is to detect a gap, to show "not worse" within a margin, or both. The result has a
    plan of fixed size, and one that stops early (study --until-decided). For a large gap the second needs far
    fewer trials, but its maximum must be larger for the same power.
    """
    if study is not None:
        _show_planned(study, as_json)
        return
    if gap is None and margin is None:
        raise click.UsageError("Give --gap, --margin or both, or a plan with --study.")
    from heredity.stats.power import SampleSizeQuestion

    asked = SampleSizeQuestion(
        gap, margin, baseline, discordant, power, alpha, models, per_cluster, correlation,
        scopes=1 if judge_free else 2, edges=edges,
    )  # fmt: skip
    lineage_edges = _edges_of(lineage, edges) if lineage else []
    _show_size(asked._replace(edges=len(lineage_edges) or edges), lineage_edges, as_json)


def _edges_of(lineage: tuple[str, ...], n_given: int) -> list[str]:
    """The edges among these models, their descendants and the models of these plan files, each as a line."""
    from pathlib import Path

    from heredity.cli.study import further_keys
    from heredity.core.errors import UsageError
    from heredity.lab.plan import is_lineage_plan, read_plan
    from heredity.lineage import graph
    from heredity.study.study import planned_study

    if n_given:
        raise UsageError("--edges and --lineage both set the number of edges: give one.", code="bad-setting")
    models: dict[str, Model] = {}
    store = open_store()
    planned: list[str] = []
    for ref in lineage:
        if ref.endswith(".toml") and is_lineage_plan(Path(ref)):
            planned += read_plan(Path(ref)).edges
        elif ref.endswith(".toml"):
            ids = {model.id for model in planned_study(Path(ref), store, further_keys()).resolved.models}
            models |= {model.id: model for model in store.models() if model.id in ids}
        else:
            models |= {model.id: model for model in store.family(store.get(ref).record).asked}
    edges = graph.edges(list(models.values()), {model.id: model for model in store.models()} | models)
    if not (edges or planned):
        raise UsageError(
            f"No model of {', '.join(lineage)} descends from another one in the store. "
            "Give the number of edges that you plan: --edges N."
        )
    by_edge = {
        (e.parent, e.child): f"{models[e.child].name} of {models[e.parent].name}, {e.recipe}" for e in edges
    }
    return [*by_edge.values(), *planned]


def _show_size(asked: SampleSizeQuestion, edges: list[str], as_json: bool) -> None:
    import numpy as np

    from heredity.core.errors import UsageError
    from heredity.core.terminal import write_json
    from heredity.stats.power import plan_sample_size

    try:
        size = plan_sample_size(asked, np.random.default_rng(0))  # the same question, the same answer
    except ValueError as error:
        raise UsageError(f"{str(error)[:1].upper()}{str(error)[1:]}.") from None
    if as_json:
        write_json(size)
        return
    _show(size)
    if edges:
        from heredity.core.sanitize import plain
        from heredity.core.terminal import write

        write("\nThese edges are one family. Pairs of models that are no edge are not planned for.")
        for line in edges:
            write(f"  {plain(line)}")


def _show(size: SampleSizePlan) -> None:
    from heredity.core.sanitize import plural
    from heredity.core.terminal import cell, out, table, wrapped, write

    n_tests = size.n_pairs * size.scopes
    of = "edge" if size.is_of_edges else "pair"
    pairs = plural(size.n_pairs, of)
    pairs += " in breaches that checks decide and that a judge decides" if size.scopes > 1 else ""
    pairs += f" (Holm over {n_tests})" if n_tests > 1 else ""
    clusters = "" if size.design_effect == 1 else f", design effect {size.design_effect:.2f}"
    models = "model" if size.is_of_edges else f"of {size.models} models"
    width = out().width
    write(wrapped(f"Trials of each {models}, {pairs}, {100 * size.power:g} % power{clusters}", width) + "\n")
    columns = ("to show", "discordant", "fixed plan", "early: at most", "mean", "median")
    grid = table(*columns, right=columns[1:], whole=columns[:1])
    for need, what in (
        (size.difference, f"a gap of {_points(size.gap)}"),
        (size.not_worse, f"not worse by {_points(size.margin)}"),
    ):
        if need is not None:
            grid.add_row(cell(what), *map(cell, _numbers(need)))
    out().print(grid)
    write("")
    for each in size.widths:
        both = f"{100 * each.fixed:.1f} points wide, {100 * each.anytime:.1f} if valid at any time"
        line = f"After {plural(each.n, 'trial')} the interval of a rate of {100 * each.rate:g} % is {both}."
        write(wrapped(line, width))


def _points(share: float | None) -> str:
    return f"{100 * (share or 0):g} points"


def _numbers(need: RequiredTrials) -> list[str]:
    counts = (need.fixed, need.sequential_most, round(need.sequential_mean), need.sequential_median)
    return [f"{100 * need.discordance:.0f} %", *(f"{n:,}" for n in counts)]


def _show_planned(path: Path, as_json: bool) -> None:
    """Show the study of a plan or a folder, or each study of a lineage."""
    from heredity.cli.study import further_keys
    from heredity.core.sanitize import plain, plural
    from heredity.core.terminal import write
    from heredity.lab import inherit as run
    from heredity.lab.plan import is_lineage_plan, read_plan
    from heredity.study.study import planned_study

    if path.suffix != ".toml" or not is_lineage_plan(path):
        _show_study(planned_study(path, open_store(), further_keys()), as_json)
        return
    plan = read_plan(path)
    work = run.planned_work(plan, open_store())
    if as_json:
        from heredity.core.terminal import write_json

        write_json({name: study.forecast() for name, study in work.studies.items()})
        return
    for battery in plan.battery:
        write(plain(f"{battery.title or battery.name}:"))
        _show_study(work.studies[battery.name], as_json=False)
        write("")
    making, asking = (f"{max(1, round(each))} min" for each in (work.minutes_to_make, work.minutes_to_ask))
    children = plural(work.n_children, "child")
    write(f"The plan expects {making} to make {children} on two cores, and {asking} to ask.")


def _show_study(study: Study, as_json: bool) -> None:
    from heredity.core.errors import UsageError
    from heredity.core.sanitize import plain
    from heredity.core.terminal import out, wrapped, write, write_json
    from heredity.study.forecast import forecast_lines, left_out

    forecast = study.forecast()
    if forecast is None:
        raise UsageError("This plan compares nothing: give two models or more, and probes.")
    if as_json:
        write_json(forecast)
        return
    for line in (*forecast_lines(study.resolved, forecast), *left_out(study.resolved)):
        write(wrapped(plain(line), out().width))
    write("")
    _show_rows(forecast)


def _show_rows(forecast: StudyForecast) -> None:
    """The rows by family of comparisons. A narrow screen gets fewer columns, so that no word is broken."""
    from heredity.core.terminal import cell, out, table

    is_narrow = out().width < _NARROW
    columns: tuple[str, ...] = ("comparison", "behaviours", "worse from", "not worse")
    if not is_narrow:
        columns = (*columns[:2], "effective n", "Holm over", *columns[2:], "needs")
    grid, family = table(*columns, right=columns[1:], whole=columns[:1]), ""
    order = {"edges": 0, "pairs": 1}  # the primary family comes first
    for row in sorted(forecast.rows, key=lambda row: order[row.between]):
        if family != (family := f"{row.between} by {row.measure.replace('_', '-')}"):
            grid.add_row(cell(family, "bold"))
        worse = "-" if row.detectable is None else f"{100 * row.detectable:.0f} points"
        numbers = [f"{row.n_clusters:,}", worse, f"{row.not_worse:.2f}"]
        if not is_narrow:
            inside = [f"{row.n_effective:.0f}", f"{row.n_comparisons:,}"]
            numbers = [
                *numbers[:1],
                *inside,
                *numbers[1:],
                f"{row.clusters_needed:,}" if row.clusters_needed < 1e9 else "-",
            ]
        grid.add_row(cell(f"  {row.technique}"), *map(cell, numbers))
    out().print(grid)
    legend = (
        f"Not worse: the power of it for equal models. Needs: behaviours for a power of {forecast.power:g}."
    )
    out().print(legend.partition(" Needs")[0] if is_narrow else legend, style="dim")
