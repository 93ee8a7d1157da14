"""`heredity show`: a model's record, a study's findings, or one conversation of a study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from heredity.cli import Name, Verb, open_store

if TYPE_CHECKING:
    from heredity.core.records import Exchange, Model, Response, Verdict


@click.command("show", cls=Verb, example="heredity show runs/support-desk --index 17")
@click.argument("what", metavar="MODEL|DIR", type=Name())
@click.option("--index", type=click.IntRange(0), metavar="N", help="Index of the trial in the study's plan.")
@click.option("--trial", type=Name(), metavar="ID", help="Id of the trial, or the start of it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(what: str, index: int | None, trial: str | None, as_json: bool) -> None:
    """Show a model, or one conversation of a study.

    A study's folder shows its findings. With --index or --trial it shows one whole conversation, with control
    characters made visible. The report gives the index of each conversation.
    """
    folder = Path(what)
    if (folder / "plan.json").exists():
        if index is None and trial is None:
            _show_study(folder, as_json)
        else:
            _show_trial(folder, index, trial, as_json)
        return
    if index is not None or trial is not None:
        from heredity.core.errors import UsageError

        raise UsageError(f"{what} is not a study: it has no plan.json.")
    _show_model(what, as_json)


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
    from heredity.lineage import descent
    from heredity.recipes import to_current

    named = to_current(model.recipe.kind, model.recipe.settings)
    settings = ", ".join(f"{k} = {v}" for k, v in named.items())
    facts = {"name": model.name, "id": model.id, "family": model.family, "modality": model.modality}
    facts |= {"licence": model.licence, "format": model.format}
    facts |= {"recipe": f"{model.recipe.kind} ({settings})" if settings else model.recipe.kind}
    facts |= {"made": f"{model.made.at} in {model.made.seconds:.0f} s"} if model.made.at else {}
    return facts | dict(model.notes) | dict(descent.facts(model))


def _show_study(folder: Path, as_json: bool) -> None:
    from heredity.cli import _findings
    from heredity.core.terminal import write_json
    from heredity.study import aggregate

    estimates = aggregate.read_study(folder).estimates
    if as_json:
        write_json(estimates)
    else:
        page = folder / "report.html"
        _findings.show(estimates, page if page.exists() else None)


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
    response = next((row for row in storage.open_responses(folder, grid) if is_wanted(row)), None)
    if response is None:
        wanted = f"index {index}" if trial is None else f"id {trial}"
        raise UsageError(
            f"{folder} has no response with {wanted} yet. Its plan has {len(grid)} trials, from index 0.",
            code="response-missing",
        )
    verdicts = storage.open_verdicts(folder, grid)
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
    from heredity.core.sanitize import plain
    from heredity.core.terminal import out, write

    screen = out()
    screen.rule("prompt", characters="-", align="left", style="dim")
    write(plain(prompt, lines=True))
    screen.rule(
        f"answer ({exchange.n_tokens} tokens, stop: {exchange.stop})",
        characters="-",
        align="left",
        style="dim",
    )
    write(plain(exchange.text, lines=True))
    for call in exchange.tool_calls:
        write(plain(f"=> calls {call.name} {call.arguments}"))
