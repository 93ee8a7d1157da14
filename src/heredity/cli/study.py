"""`heredity study`: ask, judge and compare models. Its options are also the keys of a plan file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heredity.cli import (
    COST_HELP,
    Name,
    PathArgument,
    Verb,
    _remote,
    device_option,
    full_option,
    open_store,
    record_options,
    shown_start,
    shown_work,
)  # fmt: skip
from heredity.study.spec import FLAGS, StudySpec, locate_sources, read_plan_file

if TYPE_CHECKING:
    from heredity.engines.remote.services import Calls
    from heredity.lineage.store import Store
    from heredity.lineage.types import Grown
    from heredity.study.advice import Costs
    from heredity.study.plan import Plan
    from heredity.study.result import Result
    from heredity.study.study import Study
    from heredity.study.workers import StudyPart, Workers

_MAX_ERRORS = 5  # distinct ones that are printed
_UNDECIDED = 4  # exit code, as of `heredity gate` for errors in the run
_KINDS = (
    (click.types.BoolParamType, bool),
    (click.types.IntParamType, int),
    (click.types.FloatParamType, float),
)
_NO_KEYS = {"plan", "debug", "help", "yes", "retry_errors", "dry_run", "gather", "shard", "full"}


def _read_plan(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:  # noqa: ARG001
    """Use a plan file's keys as defaults of the options with the same names, after checking them."""
    if value is None or value.is_dir():
        return value
    given = read_plan_file(value, further_keys())
    ctx.default_map = {FLAGS.get(name, name): entry for name, entry in given.items()}
    return value


def further_keys() -> dict[str, type]:
    """The keys of a plan file that are options of this command, with their types."""
    return {p.name: _kind(p) for p in command.params if p.name and p.name not in _NO_KEYS}


def _kind(option: click.Parameter) -> type:
    """The type of an option's value in a plan file."""
    for param_type, kind in _KINDS:
        if isinstance(option.type, param_type):
            return kind
    return list if option.multiple else str


def _refuse_beside_a_folder(ctx: click.Context) -> None:
    """Refuse options of a plan together with a folder, whose own plan applies. A judge may be another one."""
    sources = {flag: ctx.get_parameter_source(flag) for flag in FLAGS.values() if flag != "judge"}
    given = [name for name, source in sources.items() if source is click.core.ParameterSource.COMMANDLINE]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise click.UsageError(
            f"A study's folder already has its plan, and {flags} would change it. Give only the folder, or "
            "all options and another folder as --out.",
            ctx,
        )


@click.command(
    "study", cls=Verb, example="heredity study --model smollm2-135m-instruct --application desk.toml"
)
@click.argument(
    "plan", metavar="[PLAN.toml|DIR]", type=PathArgument(), required=False, is_eager=True,
    callback=_read_plan,
)  # fmt: skip
@record_options(StudySpec)
@click.option(
    "--yes", is_flag=True,
    help="Download missing models without asking. Without a terminal, free ones are downloaded anyway.",
)  # fmt: skip
@click.option("--cost", type=Name(), help=COST_HELP, metavar="NAME=COST,...")
@click.option("--retry-errors", is_flag=True, help="Ask again the trials that failed with an error.")
@click.option(
    "--dry-run", is_flag=True,
    help="Show what the plan can show, its trials, time and price. Ask nothing, and take no folder.",
)  # fmt: skip
@device_option
@click.option(
    "--workers", type=click.IntRange(1), metavar="N",
    help="Processes that ask at once, each with a model of its own. The rows are those of one process.",
)  # fmt: skip
@click.option(
    "--shard", type=Name(), metavar="I/N",
    help="Ask part I of N only, as a task of a Slurm array. `heredity study DIR` then collects the parts.",
)  # fmt: skip
@click.option(
    "--gather", is_flag=True, help="Collect the parts of --shard and show their progress; ask nothing."
)
@click.option(
    "--on", type=Name(), metavar="ray[://HOST:PORT]",
    help="Run the workers on a Ray cluster: one of this machine, or a running one that asks for a token.",
)  # fmt: skip
@click.option(
    "--replay", type=PathArgument(), metavar="DIR",
    help="Serve the tool results that the study in DIR recorded, and run no tool.",
)  # fmt: skip
@full_option
@_remote.options
def command(
    plan: Path | None, yes: bool, retry_errors: bool, dry_run: bool, workers: int | None, on: str | None,
    shard: str | None, gather: bool, replay: Path | None, cost: str | None, full: bool, **given: Any,
) -> int:  # fmt: skip
    """Ask the same probes of several models in one application.

    You may interrupt it at any time: the same command resumes, and asks for no recorded answer again. A plan
    file in TOML has the same options as keys (models = ["a", "b"], application = "desk.toml"). Options on the
    command line override it. Given a study's folder, heredity resumes that study; answers from
    `heredity import` are judged again. Another --judge judges the recorded answers again, without asking the
    models.

    If models descend from each other, the report shows what each kept and lost of its parent's behaviour, and
    whether it is worse. The exit code is 4 if nothing was decided.
    """
    settings = {name: given.pop(flag) for name, flag in FLAGS.items()}
    _refuse_misfits(plan, settings, workers, on, shard, gather)
    with shown_start():
        from heredity.application.toolbox import recorded_in
        from heredity.study import advice
        from heredity.study.workers import StudyPart, Workers

    costs = None if cost is None else advice.parse_costs(cost)  # a mistake shows before anything is asked
    store, how = open_store(), _remote.calls(**given)
    part = None if shard is None else StudyPart.parse(shard)
    several = None if workers is None else Workers(workers, on=on or "", calls=how)
    if replay is not None:
        recorded_in(replay)
    spec = StudySpec(**settings)
    study = _study(plan, spec, store, how, yes=yes, is_dry=dry_run, is_saved=part is None)
    study.replay = replay
    if gather:
        return _show_parts(study)
    if part is not None:
        return _ask_part(study, store, part, retry_errors)
    _warn(study)
    if dry_run:
        return _show_size(study)
    return _run(study, store, several, costs, retry_errors=retry_errors, full=full)


def _refuse_misfits(
    plan: Path | None, settings: Mapping[str, object], workers: int | None, on: str | None, shard: str | None,
    gather: bool,
) -> None:  # fmt: skip
    """Raise UsageError for options that are missing, or that do not go together."""
    ctx = click.get_current_context()
    missing = [] if settings["models"] or settings["lineage"] else ["--model (once for each) or --lineage"]
    missing += [] if settings["application"] is not None else ["--application"]
    if plan is not None and plan.is_dir():
        _refuse_beside_a_folder(ctx)
    elif missing:
        raise click.UsageError(f"A study needs {', and '.join(missing)}.", ctx)
    if on is not None and workers is None:
        raise click.UsageError("--on needs --workers N.", ctx)
    if shard is not None and (workers is not None or gather):
        raise click.UsageError("--shard stands without --workers and --gather.", ctx)


def _study(
    plan: Path | None, spec: StudySpec, store: Store, how: Calls, *, yes: bool, is_dry: bool, is_saved: bool
) -> Study:
    """The study of a folder, or a new one of these settings, whose models are made ready.

    yes: models are pulled without a question. is_dry: nothing is asked. is_saved: the plan is saved here.
    """
    from heredity.application.spec import Application
    from heredity.core import registry

    with shown_start():
        from heredity.study.study import Study

    loader = _remote.loader(store, how)
    if plan is not None and plan.is_dir():
        judge = registry.named("redteam.judges", str(spec.judge or "")) or None
        return Study.open(plan, store=store, engine_loader=loader, judge=judge)
    layer = Application.load(str(spec.application))
    grown = _models(store, [*map(str, spec.models)], [*map(str, spec.lineage)], yes, is_dry)
    writers = [] if spec.attacker is None else _models(store, [str(spec.attacker)], [], yes, is_dry)
    _remote.check([*grown, *writers], how, needs_keys=not is_dry)
    writer = next(iter(writers), None)
    named = replace(spec, models=grown, application=layer, attacker=writer, lineage=()).named()
    study = Study(named, store=store, engine_loader=loader)
    study.sources = locate_sources(Path(str(spec.application)), layer, spec.probes)
    if is_saved:  # the tasks of an array make the plan one after the other
        _remote.show_costs(_saved_plan(study, grown, is_dry), grown, how)
    return study


def _ask_part(study: Study, store: Store, part: StudyPart, retry_errors: bool) -> int:
    from heredity.core.terminal import note

    with shown_work(store) as display:
        folder = study.ask_part(part, display, retry_errors=retry_errors)
    note(f"Part {part.i} of {part.n} is in {folder}. Collect all parts: heredity study {study.folder}")
    return 0


def _run(
    study: Study,
    store: Store,
    several: Workers | None,
    costs: Costs | None,
    *,
    retry_errors: bool,
    full: bool,
) -> int:
    """Run the study, write its report, and show it."""
    from heredity.cli import _findings
    from heredity.core.progress import phase
    from heredity.study import advice
    from heredity.study.plan import read_plan
    from heredity.study.report import html

    with shown_work(store, "preparing the study") as display:
        result = study.run(display, retry_errors=retry_errors, workers=several)
        if costs is not None:
            advice.save_costs(result.folder, costs)
        with phase(display.live, "writing the report"):
            html.write(result.folder, result.folder / "report.html")
    code = _tell_errors(result, retry_errors)
    if costs is not None:
        _findings.show_recommendation(result.folder)
    _findings.show(result.estimates, read_plan(result.folder), result.folder, full)
    return code


def _saved_plan(study: Study, models: Sequence[Grown], is_dry: bool) -> Plan:
    """The saved plan; of a dry run the plan of a folder without one. The cost of its searches is shown first.

    A dry run takes no folder: its plan may not be the one that the user decides for.
    """
    from heredity.core.terminal import Display, note
    from heredity.lineage.store import STAND_IN
    from heredity.study.plan import PLAN
    from heredity.study.study import forecast_searches

    if line := forecast_searches(study.resolved, study.folder):
        note(line)
    is_ahead = any(each.record.recipe.kind == STAND_IN for each in models)
    if is_dry and (is_ahead or not (study.folder / PLAN).exists()):
        return study.resolved
    with Display() as display:
        return study.plan(display)


def _show_parts(study: Study) -> int:
    """Collect the parts and print their progress; exit code 4 while one is not complete."""
    from heredity.core.errors import UsageError
    from heredity.core.terminal import out, table

    parts = study.collect()
    if not parts:
        raise UsageError(f"{study.folder} has no parts: --shard I/N asks one.")
    shown = table("part", "done", "trials", right=("part", "done", "trials"))
    for each in parts:
        shown.add_row(f"{each.part.i}/{each.part.n}", f"{each.n_done:,}", f"{each.n_total:,}")
    n_done, n_total = sum(each.n_done for each in parts), study.resolved.n_trials
    shown.add_row("all", f"{n_done:,}", f"{n_total:,}")
    out().print(shown)
    return 0 if n_done == n_total else _UNDECIDED


def _show_size(study: Study) -> int:
    """Print the trials and the time of a plan that is not asked."""
    from heredity.core.terminal import err, wrapped
    from heredity.study.folders import read_folder
    from heredity.study.forecast import dry_run_lines

    counts = read_folder(study.folder)
    n_answered = 0 if counts is None else counts.n_answered
    for line in dry_run_lines(study.resolved, n_answered, study.seconds()):
        err().print(wrapped(line, err().width), soft_wrap=True)
    return 0


def _warn(study: Study) -> None:
    from heredity.core.sanitize import plain
    from heredity.core.terminal import err, note, wrapped
    from heredity.redteam import attacks
    from heredity.study.forecast import forecast_lines, left_out
    from heredity.study.storage import RESPONSES

    made = study.resolved
    if not (study.folder / RESPONSES).exists() and (forecast := study.forecast()) is not None:
        for line in (*forecast_lines(made, forecast), *left_out(made)):
            err().print(wrapped(plain(line), err().width), soft_wrap=True, markup=False, highlight=False)
    if made.application.is_default_system and made.application.rendering in ("plain", "native"):
        note("The application has no `system`: models answer under the model's own default system prompt.")
    applied = made.applied()
    if made.application.rendering != "recorded":
        for line in attacks.warnings(applied, made.probes, made.application, made.samples):
            note(f"warning: {line}")


def _tell_errors(result: Result, is_retried: bool) -> int:
    """Print the distinct errors, and return the exit code: 4 if nothing was decided."""
    from heredity.core.sanitize import plain, plural
    from heredity.core.terminal import note
    from heredity.study.plan import Grid, read_plan
    from heredity.study.storage import VERDICTS, distinct_errors

    estimates = result.estimates
    if estimates.n_errors:
        errors = distinct_errors(result.folder, Grid(read_plan(result.folder)))
        for message, n in errors[:_MAX_ERRORS]:
            note(plain(f"error in {plural(n, 'trial')}: {message}"))
        if len(errors) > _MAX_ERRORS:
            note(f"{len(errors) - _MAX_ERRORS:,} other errors are in {result.folder / VERDICTS}")
        if not estimates.is_recorded:
            again = f"Ask them {'once more' if is_retried else 'again'}: same command, --retry-errors"
            note(f"{estimates.n_errors:,} of {estimates.n_planned:,} trials failed with an error. {again}")
    if any(rate.n_held or rate.n_broke for rate in estimates.rates):
        return 0
    note("Nothing was decided: no answer held or broke.")
    return _UNDECIDED


def _models(
    store: Store, refs: Sequence[str], lineage: Sequence[str], yes: bool, is_dry: bool
) -> list[Grown]:
    """The models and every family of `lineage`, ready to be asked; of a dry run stand-ins of those missing.

    Models of a family that are left out are reported.
    """
    from heredity.cli import pull
    from heredity.core.terminal import note
    from heredity.lineage.references import ready_models
    from heredity.study.resolve import with_families

    if is_dry:
        models, tops = ([pull.stand_in_for(store, ref) for ref in some] for some in (refs, lineage))
    else:
        find = partial(pull.stored, store, yes=yes)
        announce, shown = partial(pull.announce, store), partial(shown_work, store, "converting")
        models = ready_models(refs, store, find, announce, shown)
        tops = list(map(find, lineage))
    chosen = with_families(models, tops, lambda: store)
    for each in (each for each in chosen if each not in models and not is_dry):
        pull.ready(store, each)
    ids = {each.record.id for each in chosen}
    for model, why in (left for top in tops for left in store.family(top.record).left_out):
        if model.id not in ids:
            note(f"left out: {model.name} {model.id[:8]} ({why})")
    return chosen
