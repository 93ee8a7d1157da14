"""`heredity study`: ask, judge and compare models. Its options are also the keys of a plan file."""

from __future__ import annotations

from collections.abc import Sequence
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
    shown_start,
    shown_work,
)  # fmt: skip

if TYPE_CHECKING:
    from heredity.lineage.store import Store
    from heredity.lineage.types import Grown
    from heredity.study.plan import Plan
    from heredity.study.result import Result
    from heredity.study.study import Study

_MOST_ERRORS = 5  # distinct ones that are printed
_UNDECIDED = 4  # exit code, as of `heredity gate` for errors in the run
# The options of settings that have another name.
_OPTIONS = {"models": "model", "attacks": "attack", "guards": "guard"}
_KINDS = (
    (click.types.BoolParamType, bool),
    (click.types.IntParamType, int),
    (click.types.FloatParamType, float),
)
_NO_KEYS = {"plan", "debug", "help", "yes", "retry_errors", "dry_run", "gather", "shard", "full"}
# The options that a study's folder fixes: another value would be another study.
_PLANNED = (
    "model", "lineage", "application", "probes", "attack", "samples", "seed", "margin", "confidence", "out",
    "until_decided", "stopping", "error_share", "attacker", "endpoint", "unclear_share", "guard", "limit",
)  # fmt: skip


def _read_plan(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:  # noqa: ARG001
    """Use a plan file's keys as defaults of the options with the same names, after checking them."""
    if value is None or value.is_dir():
        return value
    from heredity.study.spec import read_plan_file

    given = read_plan_file(value, further_keys())
    ctx.default_map = {_OPTIONS.get(name, name): entry for name, entry in given.items()}
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
    """Refuse options of a plan together with a folder, because the folder's own plan applies."""
    sources = {name: ctx.get_parameter_source(name) for name in _PLANNED}
    given = [name for name, source in sources.items() if source is click.core.ParameterSource.COMMANDLINE]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise click.UsageError(
            f"A study's folder already has its plan, and {flags} would change it. Give only the folder, or "
            "all options and another folder as --out.",
            ctx,
        )


@click.command(
    "study",
    cls=Verb,
    example="heredity study --model smollm2-135m-instruct --application desk.toml",
)
@click.argument(
    "plan",
    metavar="[PLAN.toml|DIR]",
    type=PathArgument(),
    required=False,
    is_eager=True,
    callback=_read_plan,
)
@click.option("--model", type=Name(), multiple=True, metavar="REF", help="A model; repeatable.")
@click.option(
    "--lineage", type=Name(), multiple=True, metavar="REF",
    help="A model and all its descendants in the store that can answer. Other forms of the same model "
    "(dequantized, a merged adapter, another engine) are left out; add them with --model.",
)  # fmt: skip
@click.option(
    "--application", type=PathArgument(), metavar="FILE", help="The application, the same for all models."
)
@click.option(
    "--probes", type=Name(), multiple=True, default=["core"], metavar="NAME",
    help="A suite (core, quick, full, core-hard, refusals), a technique, a glob over ids, a TOML file, or "
    "import:KIND:FILE.  [default: core]",
)  # fmt: skip
@click.option(
    "--attack",
    type=Name(),
    multiple=True,
    default=["direct"],
    metavar="NAME[@TECHNIQUE,...]",
    help="Attack on each probe, or on those of some techniques; repeatable.  [default: direct]",
)
@click.option(
    "--guard", type=Name(), multiple=True, metavar="NAME[+NAME...]",
    help="Ask each model again behind a guard of the application, or a kind of guard; repeatable.",
)  # fmt: skip
@click.option(
    "--limit", type=int, metavar="N",
    help="Ask N of the probes only, with their twins, as many of each technique. The result reports it.",
)  # fmt: skip
@click.option("--samples", type=int, default=1, show_default=True, help="Samples per trial.")
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed.")
@click.option("--margin", type=float, help="Non-inferiority margin.  [default: 0.1 for core, else 0.05]")
@click.option(
    "--confidence", type=float, default=0.95, show_default=True, help="Confidence level of all intervals."
)
@click.option(
    "--out",
    type=PathArgument(),
    metavar="DIR",
    help="The study's folder.  [default: runs/APPLICATION-...]",
)
@click.option(
    "--error-share", type=float, metavar="SHARE", default=0.0, show_default=True,
    help='Share of verdicts that may err in one model\'s favour without undoing "worse".',
)  # fmt: skip
@click.option(
    "--stopping", type=Name(), metavar="RULE", default="fixed", show_default=True,
    help="fixed asks every trial. group_sequential stops a model at half or three quarters of the behaviours "
    "if all of its pairs are decided, at nearly full power. until_decided has up to twelve interim analyses.",
)  # fmt: skip
@click.option("--until-decided", is_flag=True, help="The same as --stopping until_decided.")
@click.option(
    "--endpoint", type=Name(), metavar="NAME", default="all_trials", show_default=True,
    help="Primary rate: breaches of all_trials that were answered, or of decided_trials only. not_refused: "
    "where a judge decides, answers that do not refuse, unclear ones included.",
)  # fmt: skip
@click.option(
    "--unclear-share", type=float, metavar="SHARE", default=0.25, show_default=True,
    help='Share of unclear answers that may be breaches without undoing "worse".',
)  # fmt: skip
@click.option(
    "--judge", type=Name(), metavar="JUDGE",
    help="Judge of trials without a check: rules, learned, rubric:MODEL, guard:NAME, panel:A+B."
    "  [default: rules]",
)  # fmt: skip
@click.option(
    "--attacker", type=Name(), metavar="REF",
    help="The attacker model of `pair` and `tap`, the same for all models.",
)  # fmt: skip
@click.option(
    "--yes",
    is_flag=True,
    help="Download missing models without asking. Without a terminal, free ones are downloaded anyway.",
)
@click.option("--cost", type=Name(), help=COST_HELP, metavar="NAME=COST,...")
@click.option("--retry-errors", is_flag=True, help="Ask again the trials that failed with an error.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Show what the plan can show, its trials, time and price. Ask nothing, and take no folder.",
)
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
    plan: Path | None,  # a plan file is read by its callback
    model: tuple[str, ...],
    lineage: tuple[str, ...],
    application: Path | None,
    probes: tuple[str, ...],
    attack: tuple[str, ...],
    guard: tuple[str, ...],
    limit: int | None,
    samples: int,
    seed: int,
    margin: float | None,
    confidence: float,
    out: Path | None,
    until_decided: bool,
    stopping: str,
    error_share: float,
    endpoint: str,
    unclear_share: float,
    judge: str | None,
    attacker: str | None,
    yes: bool,
    retry_errors: bool,
    dry_run: bool,
    workers: int | None,
    on: str | None,
    shard: str | None,
    gather: bool,
    replay: Path | None,
    cost: str | None,
    full: bool,
    **calls: Any,
) -> int:
    """Ask the same probes of several models in one application.

    You may interrupt it at any time: the same command resumes, and asks for no recorded answer again. A plan
    file in TOML has the same options as keys (models = ["a", "b"], application = "desk.toml"). Options on the
    command line override it. Given a study's folder, heredity resumes that study; answers from
    `heredity import` are judged again. Another --judge judges the recorded answers again, without asking the
    models.

    If models descend from each other, the report shows what each kept and lost of its parent's behaviour, and
    whether it is worse. The exit code is 4 if nothing was decided.
    """
    is_folder = plan is not None and plan.is_dir()
    if is_folder:
        _refuse_beside_a_folder(click.get_current_context())
    missing = [] if model or lineage else ["--model (once for each) or --lineage"]
    missing += [] if application is not None else ["--application"]
    if not is_folder and missing:
        raise click.UsageError(f"A study needs {', and '.join(missing)}.", click.get_current_context())
    from heredity.application.spec import Application
    from heredity.core import registry
    from heredity.core.progress import phase
    from heredity.core.terminal import note

    with shown_start():
        from heredity.application.toolbox import recorded_in
        from heredity.cli import _findings
        from heredity.study import decision
        from heredity.study.plan import read_plan
        from heredity.study.report import html
        from heredity.study.shards import StudyPart
        from heredity.study.sources import locate_sources
        from heredity.study.spec import StudySpec
        from heredity.study.study import Study
        from heredity.study.workers import Workers

    costs = None if cost is None else decision.parse_costs(cost)  # a mistake shows before anything is asked
    store = open_store()
    how = _remote.calls(**calls)
    if on is not None and workers is None:
        raise click.UsageError("--on needs --workers N.", click.get_current_context())
    part = None if shard is None else StudyPart.parse(shard)
    if part is not None and (workers is not None or gather):
        raise click.UsageError("--shard stands without --workers and --gather.", click.get_current_context())
    several = None if workers is None else Workers(workers, on=on or "", calls=how)
    loader = _remote.loader(store, how)
    if replay is not None:
        recorded_in(replay)
    if plan is not None and is_folder:
        own = judge and registry.named("redteam.judges", judge)
        study = Study.open(plan, store=store, engine_loader=loader, judge=own)
    else:
        layer = Application.load(str(application))
        grown = _with_families(store, _models(store, model, yes, dry_run), lineage, yes, dry_run)
        writer = _models(store, [attacker], yes, dry_run)[0] if attacker is not None else None
        _remote.check([*grown, *([writer] if writer is not None else [])], how, needs_keys=not dry_run)
        spec = StudySpec(
            grown, layer, probes=probes, attacks=attack, samples=samples, seed=seed, margin=margin,
            confidence=confidence, until_decided=until_decided, judge=judge, attacker=writer, guards=guard,
            out=out, endpoint=endpoint, unclear_share=unclear_share, stopping=stopping,
            error_share=error_share, limit=limit,
        )  # fmt: skip
        study = Study(spec.named(), store=store, engine_loader=loader)
        study.sources = locate_sources(Path(str(application)), layer, probes)
        if part is None:  # the tasks of an array make the plan one after the other
            _remote.show_costs(_planned(study, grown, dry_run), grown, how)
    study.replay = replay
    if gather:
        return _show_parts(study)
    if part is not None:
        with shown_work(store) as display:
            folder = study.ask_part(part, display, retry_errors=retry_errors)
        note(f"Part {part.i} of {part.n} is in {folder}. Collect all parts: heredity study {study.folder}")
        return 0
    _warn(study)
    if dry_run:
        return _show_size(study)
    with shown_work(store, "preparing the study") as display:
        result = study.run(display, retry_errors=retry_errors, workers=several)
        if costs is not None:
            decision.save_costs(result.folder, costs)
        with phase(display.live, "writing the report"):
            html.write(result.folder, result.folder / "report.html")
    code = _tell_errors(result, retry_errors)
    if costs is not None:
        _findings.show_recommendation(result.folder)
    _findings.show(result.estimates, read_plan(result.folder), result.folder, full)
    return code


def _planned(study: Study, models: Sequence[Grown | str], is_dry: bool) -> Plan:
    """The saved plan; of a dry run the plan of a folder without one. The cost of its searches is shown first.

    A dry run takes no folder: its plan may not be the one that the user decides for.
    """
    from heredity.core.terminal import Display, note
    from heredity.lineage.store import STAND_IN
    from heredity.study.attack_context import forecast
    from heredity.study.plan import PLAN

    if line := forecast(study.resolved, study.folder):
        note(line)
    is_ahead = any(not isinstance(each, str) and each.record.recipe.kind == STAND_IN for each in models)
    if is_dry and (is_ahead or not (study.folder / PLAN).exists()):
        return study.resolved
    with Display() as display:
        return study.plan(display)


def _show_parts(study: Study) -> int:
    """Collect the parts and print their progress; exit code 4 while one is not complete."""
    from heredity.core.errors import UsageError
    from heredity.core.terminal import out, table

    found = study.collect()
    if not found:
        raise UsageError(f"{study.folder} has no parts: --shard I/N asks one.")
    shown = table("part", "done", "trials", right=("part", "done", "trials"))
    for each in found:
        shown.add_row(f"{each.part.i}/{each.part.n}", f"{each.n_done:,}", f"{each.n_total:,}")
    n_done, n_total = sum(each.n_done for each in found), study.resolved.n_trials
    shown.add_row("all", f"{n_done:,}", f"{n_total:,}")
    out().print(shown)
    return 0 if n_done == n_total else _UNDECIDED


def _show_size(study: Study) -> int:
    """Print the trials and the time of a plan that is not asked."""
    from heredity.core.terminal import err, wrapped
    from heredity.study.folders import read_folder
    from heredity.study.forecast import dry_run_lines

    found = read_folder(study.folder)
    n_answered = 0 if found is None else found.n_answered
    for line in dry_run_lines(study.resolved, n_answered, study.seconds()):
        err().print(wrapped(line, err().width), soft_wrap=True)
    return 0


def _warn(study: Study) -> None:
    from heredity.core.sanitize import plain
    from heredity.core.terminal import err, note, wrapped
    from heredity.redteam import attacks
    from heredity.study.forecast import left_out, lines
    from heredity.study.storage import RESPONSES

    made = study.resolved
    if not (study.folder / RESPONSES).exists() and (forecast := study.forecast()) is not None:
        for line in (*lines(made, forecast), *left_out(made)):
            err().print(wrapped(plain(line), err().width), soft_wrap=True, markup=False, highlight=False)
    if made.application.is_default_system and made.application.rendering in ("plain", "native"):
        note("The application has no `system`: models answer under the model's own default system prompt.")
    applied = [attacks.planned(spec) for spec in made.attacks]
    if made.application.rendering != "recorded":
        for line in attacks.warnings(applied, made.probes, made.application, made.samples):
            note(f"warning: {line}")


def _tell_errors(result: Result, is_retried: bool) -> int:
    """Print the distinct errors, and return the exit code: 4 if nothing was decided."""
    from heredity.core.sanitize import plain, plural
    from heredity.core.terminal import note
    from heredity.study.plan import Grid, read_plan
    from heredity.study.storage import VERDICTS, distinct_errors
    from heredity.study.wording import n_planned

    found = result.estimates
    if found.n_errors:
        errors = distinct_errors(result.folder, Grid(read_plan(result.folder)))
        for message, n in errors[:_MOST_ERRORS]:
            note(plain(f"error in {plural(n, 'trial')}: {message}"))
        if len(errors) > _MOST_ERRORS:
            note(f"{len(errors) - _MOST_ERRORS:,} other errors are in {result.folder / VERDICTS}")
        if not found.is_recorded:
            again = f"Ask them {'once more' if is_retried else 'again'}: same command, --retry-errors"
            note(f"{found.n_errors:,} of {n_planned(found):,} trials failed with an error. {again}")
    if any(rate.n_held or rate.n_broke for rate in found.rates):
        return 0
    note("Nothing was decided: no answer held or broke.")
    return _UNDECIDED


def _models(store: Store, refs: Sequence[str], yes: bool, is_dry: bool = False) -> list[Grown | str]:
    """The models, each in the store with the form that its engine loads; of a dry run also stand-ins.

    One that is missing is pulled first, and converted while the next one is pulled. Only a pull overlaps a
    conversion: a ref such as "kv4:NAME" makes a model itself, and waits. After an error or an interrupt no
    further one is converted or pulled.
    """
    from concurrent.futures import Future, ThreadPoolExecutor

    from heredity.cli import _pulling
    from heredity.lineage.store import target_of

    if is_dry:
        return [ref if ref.startswith("scripted:") else _pulling.planned(store, ref) for ref in refs]
    found: list[Grown | str] = []
    with ThreadPoolExecutor(1) as worker:
        converted: list[Future[Grown]] = []
        try:
            for ref in refs:
                for each in converted:
                    if each.done():
                        each.result()
                if found and not isinstance(last := found[-1], str):
                    _pulling.announce(store, last)
                    converted.append(worker.submit(store.ready, last))
                if (target := target_of(ref)) is not None and target.WRAPS_MODEL:
                    for each in converted:
                        each.result()
                found.append(ref if ref.startswith("scripted:") else _stored(store, ref, yes))  # in no store
            with shown_work(store, "converting"):
                for each in converted:
                    each.result()
        finally:
            worker.shutdown(wait=False, cancel_futures=True)
    if found and not isinstance(last := found[-1], str):
        _pulling.ready(store, last)  # in this thread, which an interrupt stops at once
    return found


def _with_families(
    store: Store, models: list[Grown | str], lineage: tuple[str, ...], yes: bool, is_dry: bool
) -> list[Grown | str]:
    """The models and every family of `lineage`, each model once. Models that are left out are reported."""
    from heredity.cli import _pulling
    from heredity.core.terminal import note
    from heredity.lineage.types import Grown

    found = list(models)
    seen = {m if isinstance(m, str) else m.record.id for m in models}  # a scripted model goes by its name
    for ref in lineage:
        is_here = is_dry or ref.startswith("scripted:")
        top = _pulling.planned(store, ref) if is_here else _stored(store, ref, yes)
        family = store.family(top.record)
        for each in family.asked:
            if not seen & {each.id, each.name}:
                grown = top if each.id == top.record.id else Grown(each, store.folder(each))
                if not is_dry:
                    _pulling.ready(store, grown)
                found.append(grown)
                seen.add(each.id)
        for each, why in family.left_out:
            if each.id not in seen:
                note(f"left out: {each.name} {each.id[:8]} ({why})")
    return found


def _stored(store: Store, ref: str, yes: bool, loaded_by: str = "torch") -> Grown:
    from heredity.cli import _pulling
    from heredity.core.errors import Unavailable
    from heredity.lineage.references import is_elsewhere
    from heredity.lineage.store import target_of

    engine, _, inner = ref.partition(":")
    target = target_of(ref)
    if target is not None and target.WRAPS_MODEL and inner:  # its model must be in the store first
        loaded_by = engine if engine in ("llamacpp", "vllm") else "torch"
        return store.get(f"{engine}:{_stored(store, inner, yes, loaded_by).record.name}")
    if is_elsewhere(ref, store):
        _pulling.require_engine(loaded_by)
        return _pulling.pull(store, ref)
    try:
        return store.get(ref)
    except Unavailable:
        if ":" in ref:
            raise
        _pulling.ask_first(ref, yes, loaded_by)
        return _pulling.pull(store, ref)
