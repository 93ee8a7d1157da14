"""`heredity show`: a model's record, a study's findings, its trials, or one of its conversations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from heredity.cli import Name, Verb, open_store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from heredity.core.records import Exchange, Model, Response, Verdict
    from heredity.study.result import ListedTrial, TrialFilter

_LONGEST = 400  # characters of an answer that a line may need
_ALWAYS = ("index", "outcome", "probe")  # columns of every list


@click.command("show", cls=Verb, example="heredity show runs/support-desk --outcome broke --differ")
@click.argument("what", metavar="MODEL|DIR", type=Name())
@click.argument("index", metavar="[INDEX]", type=click.IntRange(0), required=False)
@click.option("--index", "by_option", type=click.IntRange(0), hidden=True)
@click.option("--trial", type=Name(), metavar="ID", help="Id of the trial, or the start of it.")
@click.option(
    "--outcome", type=Name(), metavar="OUTCOME",
    help="List trials that held or broke, twins that were answered or refused, or trials that are unclear, "
    "an error or skipped.",
)  # fmt: skip
@click.option("--technique", type=Name(), help="List trials of this technique.")
@click.option(
    "--model", type=Name(), multiple=True, metavar="REF", help="List trials of a model; repeatable."
)
@click.option("--attack", type=Name(), metavar="NAME", help="List trials under this attack.")
@click.option(
    "--differ", is_flag=True,
    help="List trials on which models differ: one held and another broke. With --model twice, those two.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    what: str,
    index: int | None,
    by_option: int | None,
    trial: str | None,
    outcome: str | None,
    technique: str | None,
    model: tuple[str, ...],
    attack: str | None,
    differ: bool,
    as_json: bool,
) -> None:
    """Show a model, a study, or its trials and conversations.

    A study's folder shows its findings. With a filter it lists the trials that match, one a line, each with
    its index. Filters are --outcome, --technique, --model, --attack and --differ. With INDEX or --trial it
    shows one whole conversation, with control characters made visible.
    """
    from heredity.core.errors import UsageError

    folder, filters = Path(what), (outcome, technique, model or None, attack, differ or None)
    is_filtered = any(each is not None for each in filters)
    index = by_option if index is None else index
    is_one = index is not None or trial is not None
    if not (folder / "plan.json").exists():
        if is_one or is_filtered:
            raise UsageError(f"{what} is not a study: it has no plan.json.")
        _show_model(what, as_json)
    elif is_one and is_filtered:
        raise click.UsageError("An index or --trial names one trial: give no filter beside it.")
    elif is_filtered:
        from heredity.study.result import TrialFilter

        _show_trials(folder, TrialFilter(outcome, technique, model, attack, differ), as_json)
    elif is_one:
        _show_trial(folder, index, trial, as_json)
    else:
        _show_study(folder, as_json)


def _show_model(name: str, as_json: bool) -> None:
    from heredity.core.sanitize import plain
    from heredity.core.terminal import size, write, write_json

    store = open_store()
    model = store.get(name).record
    if as_json:
        write_json(model)
        return
    facts = _facts(model) | {"folder": str(store.folder(model))}
    for key, value in facts.items():
        write(plain(f"{key:9} {value}"))
    for file in model.files:
        write(plain(f"file      {file.path}  {size(file.bytes)}  sha256 {file.sha256}"))
    write("")
    write(plain(store.draw(model), lines=True))


def _facts(model: Model) -> dict[str, str]:
    from heredity.lineage import catalog
    from heredity.recipes import to_current

    named = to_current(model.recipe.kind, model.recipe.settings)
    settings = ", ".join(f"{k} = {v}" for k, v in named.items())
    facts = {"name": model.name, "id": model.id, "family": model.family, "modality": model.modality}
    facts |= {"licence": model.licence, "format": model.format}
    facts |= {"recipe": f"{model.recipe.kind} ({settings})" if settings else model.recipe.kind}
    facts |= {"made": f"{model.made.at} in {model.made.seconds:.0f} s"} if model.made.at else {}
    return facts | dict(model.notes) | dict(catalog.facts(model))


def _show_study(folder: Path, as_json: bool) -> None:
    from heredity.cli import _findings
    from heredity.core.terminal import write_json
    from heredity.study import aggregate

    study = aggregate.read_study(folder)
    if as_json:
        write_json(study.estimates)
    else:
        _findings.show(study.estimates, study.plan, folder, is_full=True)


def _show_trial(folder: Path, index: int | None, trial: str | None, as_json: bool) -> None:
    from heredity.core.terminal import write_json
    from heredity.study.storage import Prefixes

    response, verdict = _find(folder, index, trial)
    prefixes = Prefixes(folder)
    if as_json:
        prompts = [prefixes.prompt(exchange) for exchange in response.exchanges]
        write_json({"response": response, "verdict": verdict, "prompts": prompts})
        return
    _write_head(folder, response, verdict)
    before = ""
    for exchange in response.exchanges:
        prompt = prefixes.prompt(exchange)
        # A later prompt repeats the conversation so far, which was shown already.
        _write_exchange(exchange, prompt.removeprefix(before))
        before = prompt + exchange.text


def _find(folder: Path, index: int | None, trial: str | None) -> tuple[Response, Verdict | None]:
    from heredity.core.errors import UsageError
    from heredity.study import storage
    from heredity.study.plan import Grid, read_plan

    def is_wanted(row: Response | Verdict) -> bool:
        return row.index == index if trial is None else row.trial.startswith(trial)

    grid = Grid(read_plan(folder))
    response = next((row for row in storage.open_responses(folder) if is_wanted(row)), None)
    if response is None:
        wanted = f"index {index}" if trial is None else f"id {trial}"
        raise UsageError(f"{folder} has no response with {wanted}. Its plan has {len(grid)} indices, from 0.")
    verdicts = storage.open_verdicts(folder)
    return response, next((row for row in verdicts if row.index == response.index), None)


def _write_head(folder: Path, response: Response, verdict: Verdict | None) -> None:
    from heredity.core.sanitize import plain
    from heredity.core.terminal import write
    from heredity.study import plan
    from heredity.study.wording import severity_words

    planned = plan.read_plan(folder)
    names = {model.id: model.name for model in planned.models}
    severity = plan.Grid(planned).trial(response.index).probe.severity
    facts = {
        "trial": f"{response.trial}, index {response.index}",
        "model": names.get(response.model, response.model),
        "probe": f"{response.probe}, under {response.attack}, sample {response.sample}",
        "engine": response.engine,
        "verdict": _verdict_words(verdict),
    }
    if severity:
        facts["severity"] = f"{severity_words(severity)}, of a breach of this probe"
    if response.error is not None:
        facts["error"] = response.error
    for key, value in facts.items():
        write(plain(f"{key:9} {value}"))


def _verdict_words(verdict: Verdict | None) -> str:
    if verdict is None:
        return "not judged yet"
    line = f"{verdict.outcome or 'error'}, by {verdict.judge}"
    line += f"; the answer reads as {verdict.manner}" if verdict.manner else ""
    return line + (f"; {verdict.evidence}" if verdict.evidence else "")


def _write_exchange(exchange: Exchange, prompt: str) -> None:
    from heredity.core.sanitize import plain, plural
    from heredity.core.terminal import out, write

    screen = out()
    screen.rule("prompt", characters="-", align="left", style="dim")
    write(plain(prompt, lines=True))
    screen.rule(
        f"answer ({plural(exchange.n_tokens, 'token')}, stop: {exchange.stop})",
        characters="-",
        align="left",
        style="dim",
    )
    write(plain(exchange.text, lines=True))
    for call in exchange.tool_calls:
        write(plain(f"=> calls {call.name} {call.arguments}"))


def _show_trials(folder: Path, wanted: TrialFilter, as_json: bool) -> None:
    """Print the trials of a study that match, one a line, with the index that opens each."""
    from shlex import quote

    from heredity.core.sanitize import plural
    from heredity.core.terminal import note, write_json
    from heredity.study.plan import read_plan
    from heredity.study.result import list_trials
    from heredity.study.wording import names

    trials, plan = list_trials(folder, wanted, None if as_json else _LONGEST), read_plan(folder)
    called = names(plan.models)
    if as_json:
        write_json([_as_json(each, called) for each in trials])
        return
    if trials:
        _show_lines(trials, called)
    how = f" Open one: heredity show {quote(str(folder))} {trials[0].trial.index}" if trials else ""
    note(f"{plural(len(trials), 'trial')} of {plan.n_trials:,}.{how}")


def _as_json(listed_trial: ListedTrial, called: Mapping[str, str]) -> dict[str, object]:
    trial = listed_trial.trial
    return {
        "index": trial.index,
        "trial": trial.id,
        "model": called[trial.model.id],
        "technique": trial.probe.technique,
        "attack": trial.attack,
        "probe": trial.probe.id,
        "kind": trial.probe.kind,
        "sample": trial.sample,
        "outcome": listed_trial.outcome,
        "text": listed_trial.text,
    }


def _show_lines(listed_trials: Sequence[ListedTrial], called: Mapping[str, str]) -> None:
    """Print a table. A column with one value is a line above it."""
    from heredity.core.terminal import cell, line_table, out

    columns: dict[str, list[str]] = {
        "index": [str(each.trial.index) for each in listed_trials],
        "outcome": [each.outcome or "not judged" for each in listed_trials],
        "model": [called[each.trial.model.id] for each in listed_trials],
        "attack": [each.trial.attack for each in listed_trials],
        "probe": [each.trial.probe.id for each in listed_trials],
        "sample": [str(each.trial.sample) for each in listed_trials],
    }
    same = {name: values[0] for name, values in columns.items() if len(set(values)) == 1}
    above = {name: value for name, value in same.items() if name not in _ALWAYS and value != "0"}
    if above:
        out().print(cell("  ".join(f"{name} {value}" for name, value in above.items()), "dim"))
    shown = {name: values for name, values in columns.items() if name in _ALWAYS or name not in same}
    shown["answer"] = [each.text for each in listed_trials]
    out().print(line_table(shown, out().width, ["model", "attack", "probe"], right=["index", "sample"]))
