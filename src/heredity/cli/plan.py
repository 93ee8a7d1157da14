"""`heredity plan`: estimate the cost of a pre-training run, or fit a scaling law."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heredity.cli import Amount, Name, Verb, open_store
from heredity.core.sanitize import plain
from heredity.core.terminal import cell, out, table, write, write_json

if TYPE_CHECKING:
    from heredity.lab.scaling_laws import Scaled
    from heredity.train.forecast import Forecast, LayoutForecast
    from heredity.train.rehearsal import Rehearsal

_GB = 1e9
_LAYERS = {0: "none", 1: "all", 2: "half"}  # by LayoutForecast.recompute


def show(forecast: Forecast, rehearsed: Rehearsal | None, as_json: bool) -> None:
    """Print a plan."""
    if as_json:
        write_json({"plan": forecast, "rehearsed": rehearsed})
        return
    devices = f"{forecast.n_gpus:,} x {forecast.gpu.title}"
    n, tokens = _count(sum(forecast.parameters.values())), _count(forecast.work.tokens)
    write(f"{n} parameters on {tokens} {forecast.unit}s, {devices}\n")
    _parts(forecast)
    grid = table("memory per device", "GB", right=("GB",))
    for name, size in forecast.best.memory.items():
        grid.add_row(cell(name), cell(f"{size / _GB:.2f}"))
    grid.add_row(cell("total, at the peak of a step"), cell(f"{forecast.best.needed / _GB:.2f}"))
    grid.add_row(
        cell("available, less the reserve"), cell(f"{(1 - forecast.reserve) * forecast.gpu.memory / _GB:.2f}")
    )
    out().print(grid)
    _ways(forecast)
    from heredity.train.forecast import LEFT_OUT, chunks_per_device

    best, work, units = forecast.best, forecast.work, f"{forecast.unit}s"
    each = chunks_per_device(work, forecast.n_gpus) * work.chunk
    lines = [
        f"\nFLOPs   {forecast.flops:.3g} in {forecast.n_steps:,} steps of {work.batch:,} {units}, "
        f"{each:,} per device",
        f"time    {_time(forecast.seconds)}: {best.seconds:.3f} s per step{_validation(forecast)}, "
        f"{forecast.tokens_a_second:,.0f} {units}/s, {forecast.gpu_hours:,.0f} device hours",
        f"run it  {_settings(best)}",
        f"MFU     {forecast.mfu:.0%} {'estimated from measurements' if forecast.is_measured else 'stated'} "
        f"for matmuls, {forecast.reached_mfu:.0%} for the whole run",
    ]
    if (busy := work.batch / (each * forecast.n_gpus)) < 0.95:
        chunks = "contexts" if forecast.unit == "token" else units
        lines.append(
            f"note    devices are busy {busy:.0%} of the time, because a step's {chunks} do not divide "
            f"evenly: a batch of {each * forecast.n_gpus:,} takes no longer"
        )
    for line in (*lines, f"without {LEFT_OUT}", *_rehearsed(rehearsed)):
        write(line)


def show_law(scaled: Scaled, as_json: bool) -> None:
    """Print a scaling law and its runs."""
    if as_json:
        write_json(
            {
                "runs": scaled.runs,
                "at": scaled.at,
                "compute": scaled.compute._asdict() | {"law": scaled.compute.law._asdict()},
                "parameters and tokens": None if scaled.both is None else scaled.both._asdict(),
            }
        )
        return
    columns = ("run", "parameters", "tokens", "FLOPs", "bits per byte", "predicted")
    grid = table(*columns, right=columns[1:])
    for run in scaled.runs:
        numbers = (_count(run.parameters), _count(run.tokens), f"{run.flops:.3g}", f"{run.loss:.4f}")
        grid.add_row(*map(cell, (plain(run.name), *numbers, f"{scaled.compute.law.at(run.flops):.4f}")))
    out().print(grid)
    law, (low, high) = scaled.compute.law, scaled.compute.interval
    write(f"\nL = {law.floor:.4g} + {law.factors[0]:.4g} x C^-{law.powers[0]:.4g}, {scaled.compute.n} runs")
    interval = f"[{low:.4f}, {high:.4f}]"
    write(f"At {scaled.at:.3g} FLOPs: {scaled.compute.loss:.4f} {interval} bits per byte, 95 % by bootstrap")
    if scaled.both is not None:
        both = scaled.both
        terms = (f"{a:.4g} x {x}^-{b:.4g}" for a, b, x in zip(both.factors, both.powers, "ND", strict=True))
        write(f"L = {both.floor:.4g} + {' + '.join(terms)}")


def _parts(forecast: Forecast) -> None:
    grid = table("part", "parameters", right=("parameters",))
    for name, n in forecast.parameters.items():
        grid.add_row(cell(name), cell(f"{n:,}"))
    grid.add_row(cell("all"), cell(f"{sum(forecast.parameters.values()):,}"))
    out().print(grid)
    column = f"FLOPs per {forecast.unit}"
    grid = table("part", column, right=(column,))
    for name, flops in forecast.flops_a_token.items():
        grid.add_row(cell(name), cell(f"{flops:.4g}"))
    total = sum(forecast.flops_a_token.values())
    grid.add_row(cell("all"), cell(f"{total:.4g}"))
    out().print(grid)


def _ways(forecast: Forecast) -> None:
    columns = (
        "sharding",
        "shards",
        "replicas",
        "recompute",
        f"{forecast.unit}s",
        "batches",
        "GB",
        "s per step",
    )
    grid = table(*columns, right=columns[4:])
    for way in forecast.ways:
        mark = "  *" if way == forecast.best else ""
        numbers = (
            f"{way.microbatch:,}",
            f"{way.n_microbatches:,}",
            f"{way.needed / _GB:.1f}",
            f"{way.seconds:.3f}",
        )
        layout = (way.layout.kind + mark, f"{way.layout.shards:,}", f"{way.layout.replicas:,}")
        grid.add_row(*map(cell, (*layout, _LAYERS[way.recompute], *numbers)))
    out().print(grid)


def _settings(way: LayoutForecast) -> str:
    """The recipe's settings for a layout (docs/how-to/children.md)."""
    settings = f"replicas = {way.layout.replicas}, recompute = {'true' if way.recompute else 'false'}"
    settings += f", recompute_every = {way.recompute}" if way.recompute > 1 else ""
    return settings + (', reduce = "each"' if way.layout.shards > 1 and way.n_microbatches > 1 else "")


def _rehearsed(rehearsal: Rehearsal | None) -> list[str]:
    if rehearsal is None:
        return []
    return [
        f"\nrehearsed on {rehearsal.n_devices:,} fake devices, forward and backward: "
        f"{rehearsal.parameters:,} parameters; a microbatch's peak is {rehearsal.peak / _GB:.2f} GB by "
        f"torch's tracker, {rehearsal.predicted / _GB:.2f} by arithmetic"
    ]


def _validation(forecast: Forecast) -> str:
    share = 1 - forecast.n_steps * forecast.best.seconds / forecast.seconds
    return f" ({share:.0%} of the time is validation)" if share >= 0.01 else ""


def _time(seconds: float) -> str:
    for name, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:,.1f} s"


def _count(n: float) -> str:
    for name, size in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if n >= size:
            return f"{n / size:.2f}{name}"
    return f"{n:,.0f}"


@click.command("plan", cls=Verb, example="heredity plan base.toml --gpu h100 --gpus 1024 --rehearse")
@click.argument("what", metavar="RECIPE.toml | RUN...", type=Name(), nargs=-1, required=True)
@click.option("--gpu", type=Name(), default="h100", show_default=True, metavar="NAME",
              help="h100, h200, b200, a100-80, rtx4090, or cpu (this machine, measured).")  # fmt: skip
@click.option("--from", "base", type=Name(), metavar="BASE",
              help="Plan to continue this model of the store, which sets size and shape.")  # fmt: skip
@click.option("--gpus", type=int, default=1, show_default=True, help="Number of devices.")
@click.option("--vocab-size", "vocabulary", type=click.IntRange(1),
              help="Vocabulary size, if there is no corpus yet.")  # fmt: skip
@click.option("--image-size", "side", type=click.IntRange(1),
              help="Image size in pixels, if there is no corpus yet.")  # fmt: skip
@click.option("--mfu", type=float, metavar="SHARE",
              help="Share of the peak FLOPs that matmuls reach.  [default: 0.4; cpu: measured]")  # fmt: skip
@click.option("--reserve", type=float, default=0.1, show_default=True, help="Share of memory to leave free.")
@click.option("--rehearse", is_flag=True, help="Run a step of the best layout on fake tensors (needs torch).")
@click.option("--fit", is_flag=True, help="Fit a scaling law to RUNs, at least five models of the store.")
@click.option("--compute", type=Amount(), metavar="FLOPS",
              help="Compute budget to extrapolate to.  [default: 100 x the largest run]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    what: tuple[str, ...], gpu: str, base: str | None, gpus: int, vocabulary: int | None, side: int | None,
    rehearse: bool, fit: bool, compute: float | None, as_json: bool, **terms: Any,
) -> None:  # fmt: skip
    """Estimate what a pre-training run costs, or fit a scaling law.

    From a recipe: parameters, FLOPs, memory per device, the best sharding, and time. It needs no corpus.
    With --fit: how the loss of runs made here falls with compute, and the loss to expect from a larger
    budget. For a plan file of study or inherit: heredity power --study.
    """
    from heredity.core.errors import Unavailable, UsageError, how_to_install

    if fit:
        from heredity.lab.scaling_laws import scaled

        store = open_store()
        show_law(scaled([store.get(name) for name in what], compute or 0.0), as_json)
        return
    if len(what) > 1:
        raise UsageError(
            f"A plan takes one recipe, not {len(what)}. To fit a scaling law to runs, add --fit."
        )
    from heredity.recipes.pretrain import recipe as pretrain
    from heredity.train import forecast

    _refuse_other_plans(Path(what[0]))
    store = open_store()
    beside = {} if base is None else {"base": store.whole(store.get(base))}
    recipe = pretrain.read(Path(what[0]), beside, needs_corpus=False)
    work = recipe.workload(vocabulary or 0, side or 0, is_on_cpu=gpu == forecast.CPU)
    device = forecast.find_gpu(gpu, work)
    try:
        from heredity.train.rehearsal import count_flops
        from heredity.train.rehearsal import rehearse as run
    except ImportError:
        raise Unavailable(f"Counting FLOPs needs torch. {how_to_install('torch')}") from None
    plan = forecast.forecast(work, count_flops(work), device, gpus, forecast.Assumptions(**terms))
    show(plan, run(work, plan.best) if rehearse else None, as_json)


def _refuse_other_plans(path: Path) -> None:
    """Name the verb for the plan of a lineage or of a study. Raises BadInput."""
    from heredity.core.errors import BadInput
    from heredity.core.readers import toml_of

    if path.suffix == ".toml" and not toml_of(path).keys().isdisjoint(("child", "probes")):
        raise BadInput(
            path, f"this is no recipe of a pre-training. What it can show: heredity power --study {path}"
        )  # fmt: skip
