"""`heredity inherit`: what children kept of a parent's safety, measured in one command."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from heredity.cli import Name, PathArgument, Verb, device_option, open_store, shown_start, shown_work

if TYPE_CHECKING:
    from heredity.lab.inherit import LineageResult
    from heredity.lab.plan import BatteryPlan, LineagePlan

_MARGIN = 0.1
_PROBES, _ATTACKS = ("refusals", "failed_task"), ("direct", "crescendo")
_ATTACKED = 80  # behaviours that are asked under an attack of several turns
_OF_MODELS = ("application", "probes", "attack")  # options that a plan file has itself


@click.command("inherit", cls=Verb, example="heredity inherit smollm2-135m-instruct my-tuned-model")
@click.argument("models", metavar="PARENT CHILD... | PLAN.toml | DIR", type=Name(), nargs=-1, required=True)
@click.option(
    "--model", "renamed", type=Name(), multiple=True, metavar="NAME=REF",
    help="Another model for a foundation of the plan; repeatable.",
)  # fmt: skip
@click.option(
    "--data", type=Name(), multiple=True, metavar="NAME=FILE",
    help="Other examples for a set of the plan; repeatable.",
)  # fmt: skip
@click.option(
    "--application", type=PathArgument(), metavar="FILE",
    help="Ask in this application, too. The models' own default is always asked.",
)  # fmt: skip
@click.option("--probes", type=Name(), multiple=True, default=list(_PROBES), metavar="NAME",
              help="As for a study; not with a plan.  [default: refusals, failed_task]")  # fmt: skip
@click.option("--attack", type=Name(), multiple=True, default=list(_ATTACKS), metavar="NAME",
              help="Each has a study; not with a plan.  [default: direct, crescendo]")  # fmt: skip
@click.option("--margin", type=float, metavar="SHARE", help="Non-inferiority margin.  [default: 0.1]")
@click.option("--judge", type=Name(), metavar="JUDGE", help="As for a study.  [default: rules]")
@click.option("--yes", is_flag=True, help="Download missing models without asking.")
@click.option("--quick", is_flag=True, help="Few steps and few questions, to see it work.")
@click.option(
    "--out", type=PathArgument(), metavar="DIR", help="Folder of the studies.  [default: runs/PARENT-...]"
)
@click.option("--page", type=PathArgument(), metavar="FILE",
              help="Write the page here, too, with its figure next to it.")  # fmt: skip
@click.option("--full", is_flag=True, help="Print all sentences and children, not only fifteen lines.")
@device_option
@click.pass_context
def command(
    ctx: click.Context, models: tuple[str, ...], renamed: tuple[str, ...], data: tuple[str, ...],
    application: Path | None, probes: tuple[str, ...], attack: tuple[str, ...], margin: float | None,
    judge: str | None, yes: bool, quick: bool, out: Path | None, page: Path | None, full: bool,
) -> None:  # fmt: skip
    """Measure what children kept of a parent's safety.

    Parent and children are asked harmful requests, their benign twins and easy tasks. They answer under their
    own default, without a system message. A child may be a model of the store, a folder or a GGUF file. If it
    has no recorded parent, heredity records PARENT as its parent.

    A plan file has a whole lineage: children to make, and the studies of them. heredity prints the power of
    each study before it makes or asks anything. The result is a page with a verdict on every edge, a figure
    and five sentences. You may stop it at any time: the same command resumes. Given the folder of a finished
    lineage, it writes the page again.
    """
    from heredity.cli._findings import show_page
    from heredity.core.files import RESULTS

    with shown_start():
        from heredity.lab import inherit as run

    if len(models) == 1 and Path(models[0]).is_dir():
        folder = Path(models[0])
        _refuse_beside(ctx, str(folder), set(ctx.params) - {"models", "page", "yes", "full"})
        result = run.read_result(folder)
    else:
        if _is_file(models):
            _refuse_beside(ctx, models[0], _OF_MODELS)
        batteries = _batteries(application, probes, attack)
        plan = _plan(models, _pairs("model", renamed), _pairs("data", data), batteries, margin, judge or "")
        plan = plan.quick() if quick else plan
        folder = out or RESULTS / f"{Path(models[0]).stem}-{run.plan_digest(plan)[:8]}"
        result = _inherited(plan, folder, yes)
    show_page(run.page_of(result), folder, page, full)


def _inherited(plan: LineagePlan, folder: Path, yes: bool) -> LineageResult:
    """Ask before models are downloaded, then make the children and measure them."""
    from heredity.cli._pulling import consent
    from heredity.core.terminal import note
    from heredity.lab.inherit import inherit

    store = open_store()
    for ref in plan.references:
        consent(store, ref, yes)
    with shown_work(store, "preparing the lineage") as display:
        return inherit(plan, store, folder, display, note)


def _refuse_beside(ctx: click.Context, what: str, names: Collection[str]) -> None:
    """Refuse options that would have no effect next to `what`. Raises UsageError."""
    given = [name for name in sorted(names) if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if given:
        flags = ", ".join(f"--{'model' if name == 'renamed' else name}" for name in given)
        raise click.UsageError(f"{flags} would have no effect: {what} already has its plan.", ctx)


def _is_file(models: tuple[str, ...]) -> bool:
    """Whether these arguments are a plan file."""
    return len(models) == 1 and models[0].endswith(".toml")


def _pairs(option: str, given: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE options as a dictionary."""
    pairs: dict[str, str] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name or not value:
            raise click.UsageError(f"--{option} needs NAME=VALUE, not '{each}'.")
        pairs[name] = value
    return pairs


def _plan(
    models: tuple[str, ...], others: dict[str, str], examples: dict[str, str], batteries: list[BatteryPlan],
    margin: float | None, judge: str,
) -> LineagePlan:  # fmt: skip
    """The plan of a file, or of models that exist. Raises UsageError for options that do not go together."""
    import msgspec

    from heredity.lab.plan import plan_of, read_plan

    if not _is_file(models):
        if others or examples:
            raise click.UsageError("--model and --data change a plan file. Give one.")
        return plan_of(models[0], models[1:], batteries, _MARGIN if margin is None else margin, judge)
    plan = read_plan(Path(models[0]), others, examples)
    margin = plan.margin if margin is None else margin
    return msgspec.structs.replace(plan, margin=margin, judge=judge or plan.judge)


def _batteries(
    application: Path | None, probes: tuple[str, ...], attacks: tuple[str, ...]
) -> list[BatteryPlan]:
    """The studies of models that their user made: one for each attack, and one in the user's application.

    Attacks other than `direct` take several turns, so they are applied to a part of the requests.
    """
    import msgspec

    from heredity.lab.plan import BatteryPlan

    batteries = []
    for attack in attacks:
        if attack == "direct":
            batteries.append(BatteryPlan("default", probes, "Under the models' own default"))
        else:
            name = "".join(letter if letter.isalnum() else "-" for letter in attack)
            part = BatteryPlan(name, probes, f"Under {attack}", attacks=(attack,), behaviours=_ATTACKED)
            batteries.append(msgspec.structs.replace(part, has_twins=False))
    if application is not None:
        batteries.append(BatteryPlan("application", probes, "In the application", str(application)))
    return batteries
