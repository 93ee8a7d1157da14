"""`heredity plan`: estimate the cost of a pre-training run, or fit a scaling law."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from heredity.cli import Amount, Name, Verb, open_store


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
@click.option("--tensor-parallel", "tensor", type=click.IntRange(1), default=1, show_default=True,
              metavar="N", help="Devices that split each matrix; only planned.")  # fmt: skip
@click.option("--pipeline-parallel", "pipeline", type=click.IntRange(1), default=1, show_default=True,
              metavar="N", help="Stages of layers; only planned.")  # fmt: skip
@click.option("--mfu", type=float, metavar="SHARE",
              help="Share of the peak FLOPs that matmuls reach.  [default: 0.4; cpu: measured]")  # fmt: skip
@click.option("--reserve", type=float, default=0.1, show_default=True, help="Share of memory to leave free.")
@click.option("--rehearse", is_flag=True, help="Run a step of the best layout on fake tensors (needs torch).")
@click.option("--fit", is_flag=True, help="Fit a scaling law to RUNs, at least five models of the store.")
@click.option("--compute", type=Amount(), metavar="FLOPS",
              help="Compute budget to extrapolate to.  [default: 100 x the largest run]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    what: tuple[str, ...],
    gpu: str,
    base: str | None,
    gpus: int,
    vocabulary: int | None,
    side: int | None,
    rehearse: bool,
    fit: bool,
    compute: float | None,
    as_json: bool,
    **terms: Any,
) -> None:
    """Estimate what a pre-training run costs, or fit a scaling law.

    From a recipe: parameters, FLOPs, memory per device, the best sharding, and time. It needs no corpus.
    With --fit: how the loss of runs made here falls with compute, and the loss to expect from a larger
    budget. For a plan file of study or inherit: heredity power --study.
    """
    from heredity.cli import _plans
    from heredity.core.errors import UsageError

    if fit:
        from heredity.lab.scaling_laws import scaled

        store = open_store()
        _plans.show_law(scaled([store.get(name) for name in what], compute or 0.0), as_json)
        return
    if len(what) > 1:
        raise UsageError(
            f"A plan takes one recipe, not {len(what)}. To fit a scaling law to runs, add --fit."
        )
    from heredity.recipes.pretrain import recipe as pretrain
    from heredity.train.planning import forecast

    _refuse_other_plans(Path(what[0]))
    store = open_store()
    beside = {} if base is None else {"base": store.whole(store.get(base))}
    recipe = pretrain.read(Path(what[0]), beside, needs_corpus=False)
    work = recipe.workload(vocabulary or 0, side or 0, is_on_cpu=gpu == forecast.CPU)
    found = forecast.forecast(work, forecast.find_gpu(gpu, work), gpus, forecast.Assumptions(**terms))
    rehearsed = None
    if rehearse:
        if terms["tensor"] * terms["pipeline"] > 1:
            raise UsageError(
                "--rehearse runs a step of heredity's own loop, which has no tensor or pipeline parallelism."
            )
        from heredity.train.planning.rehearsal import rehearse as run

        rehearsed = run(work, found.best)
    _plans.show(found, rehearsed, as_json)


def _refuse_other_plans(path: Path) -> None:
    """Name the verb for the plan of a lineage or of a study. Raises BadInput."""
    from heredity.core.errors import BadInput
    from heredity.core.readers import toml_of

    if path.suffix == ".toml" and not toml_of(path).keys().isdisjoint(("child", "probes")):
        raise BadInput(
            path, f"this is no recipe of a pre-training. What it can show: heredity power --study {path}"
        )  # fmt: skip
