"""The models of the store: listed, shown, verified, renamed and removed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from heredity.cli import Name, Verb, open_store, shown_work

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from heredity.core.records import Exchange, Model, Response, Verdict
    from heredity.lineage.catalog import Entry
    from heredity.lineage.removal import Garbage
    from heredity.lineage.store import Store
    from heredity.study.result import ListedTrial, TrialFilter

_HERE = "in the store"
_OTHERS = 8 + 11 + 7 + 12 + 8  # columns of an id, a format, a size and a licence, and between them
_ANSWERS = 7 + 2


@click.command("models", cls=Verb, example="heredity models --tree")
@click.option("--tree", "as_tree", is_flag=True, help="Draw the lineage, foundations first.")
@click.option(
    "--catalog", is_flag=True, help="List the models of the catalogue; those in the store are marked."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_tree: bool, catalog: bool, as_json: bool) -> None:
    """List the models in the store, or those that can be pulled."""
    from heredity.core.terminal import note

    store = open_store()
    for _, problem in store.damaged():
        note(f"warning: {problem}")
    if catalog:
        _show_catalog(store, as_json)
    elif as_json:
        from heredity.core.terminal import write_json

        write_json(store.models())
    elif as_tree:
        from heredity.core.sanitize import plain
        from heredity.core.terminal import write
        from heredity.lineage.graph import forest

        if models := store.models():
            write(plain(forest(models), lines=True))
    else:
        _show_models(store)


def _show_models(store: Store) -> None:
    from heredity.core.sanitize import plural
    from heredity.core.terminal import cell, note, out, size, table
    from heredity.lineage.removal import tree_bytes
    from heredity.train.data.chat import ANSWERS

    models = store.models()
    if not models:
        note(f"No model in {store.root} yet. See what can be pulled: heredity models --catalog")
        return
    answers = [next((size(f.bytes) for f in model.files if f.path == ANSWERS), "") for model in models]
    more = ["answers"] if any(answers) else []
    # No column but name and licence may be narrower than its text: a size would lose its unit.
    width = out().width - _OTHERS - (_ANSWERS if more else 0)
    whole = ["name"] if max(len(model.name) for model in models) <= width else []
    grid = table(
        "name", "id", "format", "size", "licence", *more,
        right=["size", *more], whole=[*whole, "id", "format"],
    )  # fmt: skip
    for model, kept in zip(models, answers, strict=True):
        total = size(sum(file.bytes for file in model.files))
        grid.add_row(
            cell(model.name, "bold"), cell(model.id[:8]), cell(model.format), total,
            cell(model.licence), *([kept] if more else []),
        )  # fmt: skip
    out().print(grid)
    n_models = sum(file.bytes for model in models for file in model.files)
    all_bytes = tree_bytes(store.root)
    n = plural(len(models), "model")
    note(f"{n}, {size(n_models)}; {size(all_bytes)} in {store.root}. See: heredity gc")


def _show_catalog(store: Store, as_json: bool) -> None:
    import msgspec

    from heredity.core.terminal import write_json
    from heredity.engines.remote.services import known_models
    from heredity.lineage import catalog

    held = {model.name for model in store.models()}
    known = catalog.catalogue()
    if as_json:
        models: dict[str, dict[str, object]] = {}
        for name, entry in known.items():
            more = {"n_bytes": entry.n_bytes, "is_exact": entry.is_pinned, "memory": entry.memory()}
            models[name] = {**msgspec.to_builtins(entry), **more, "is_in_store": name in held}
        for name, each in known_models().items():
            models[name] = {**msgspec.to_builtins(each), "reference": each.reference}
        write_json(models)
        return
    _show_pinned({name: entry for name, entry in known.items() if entry.is_pinned}, held)
    _show_families({name: entry for name, entry in known.items() if not entry.is_pinned}, held)
    _show_services()


def _show_pinned(entries: Mapping[str, Entry], held: Collection[str]) -> None:
    """Print the models whose files the catalogue pins."""
    from heredity.core.terminal import cell, out, size, table

    grid = table("name", "size", "licence", "note", right=["size"], whole=["name"])
    for name, entry in entries.items():
        about = f"{_HERE}{'; ' * bool(entry.about)}" * (name in held) + entry.about
        grid.add_row(cell(name, "bold"), size(entry.n_bytes), cell(entry.licence), cell(about))
    out().print(grid)


def _show_families(entries: Mapping[str, Entry], held: Collection[str]) -> None:
    """Print the open families: a heading for each licence, and a line per model of 80 columns at most."""
    from itertools import groupby

    from heredity.core.terminal import cell, note, out, parameters

    line = "  {:<35}{:>7}{:>9}{:>8}  {}".format
    groups = groupby(entries.items(), lambda each: (each[1].family, each[1].licence, each[1].hub.gated))
    for (family, licence, gated), models in groups:
        out().print()
        out().print(cell(f"{family}: {licence}{', gated' if gated else ''}", "bold"))
        for name, entry in models:
            kind = "" if entry.chat else "base" if entry.modality == "text" else entry.modality
            kind = ", ".join(filter(None, (_HERE * (name in held), kind)))
            numbers = parameters(entry.parameters), _about(entry.n_bytes), _thousands(entry.context)
            out().print(cell(line(name, *numbers, kind).rstrip()), soft_wrap=True)
    if entries:
        note("The columns are parameters, approximate size of the files, and context in tokens.")
        note("Weights take 2 bytes per parameter in bfloat16, 4 in float32, 1 in int8.")


def _show_services() -> None:
    """Print the known models behind APIs: a heading for each vendor, and a line per model."""
    from itertools import groupby

    from heredity.core.terminal import cell, note, out
    from heredity.engines.remote.services import known_models

    line = "  {:<35}{:>7}{:>9}{:>8}  {}".format
    vendors = groupby(known_models().values(), lambda known: (known.vendor, known.variable, known.as_of))
    for (vendor, variable, as_of), models in vendors:
        out().print()
        dated = f", prices as of {as_of}" if as_of else ""
        out().print(cell(f"{vendor}{f': key in {variable}' if variable else ''}{dated}", "bold"))
        for known in models:
            prices = [f"${each:g}" for each in known.price[:2]] if known.price else ["", ""]
            text = line(known.name, *prices, _thousands(known.context), known.about)
            out().print(cell(text.rstrip()), soft_wrap=True)
    note("The columns are dollars per million tokens of input and of output, and context in tokens.")


def _about(n_bytes: int) -> str:
    """`~16 GB`: two digits of a size that only the hub knows exactly."""
    from heredity.core.terminal import size

    digits = len(str(n_bytes)) - 2
    amount, unit = size(round(n_bytes, -digits)).split()
    return f"~{amount.removesuffix('.0')} {unit}"


def _thousands(tokens: int) -> str:
    if tokens < 1000:
        return str(tokens)
    return f"{tokens // 1000}k" if tokens % 1000 == 0 else f"{tokens // 1024}k"


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
    "an error or skipped. With leaked, list unasked breaches.",
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
def show_command(
    what: str, index: int | None, by_option: int | None, trial: str | None, outcome: str | None,
    technique: str | None, model: tuple[str, ...], attack: str | None, differ: bool, as_json: bool,
) -> None:  # fmt: skip
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
        from heredity.cli import _findings
        from heredity.core.terminal import write_json
        from heredity.study import aggregate

        study = aggregate.read_study(folder)
        if as_json:
            write_json(study.estimates)
        else:
            _findings.show(study.estimates, study.plan, folder, is_full=True)


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


def _show_trial(folder: Path, index: int | None, trial: str | None, as_json: bool) -> None:
    from heredity.core.terminal import write_json
    from heredity.study.storage import Prefixes

    response, verdict = _find(folder, index, trial)
    prefixes = Prefixes(folder)
    if as_json:
        prompts = [prefixes.prompt(exchange) for exchange in response.exchanges]
        write_json({"response": response, "verdict": verdict, "prompts": prompts})
        return
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


def _verdict_words(verdict: Verdict | None) -> str:
    if verdict is None:
        return "not judged yet"
    from heredity.redteam.checks import did

    unasked = verdict.unprompted or ()
    line = f"{verdict.outcome or 'error'}{', leaked' if unasked else ''}, by {verdict.judge}"
    line += f"; the answer reads as {verdict.manner}" if verdict.manner else ""
    line += f"; {verdict.evidence}" if verdict.evidence else ""
    return line + "".join(f"; unasked, it {did(each.check)}: {each.evidence}" for each in unasked)


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
        write_json([_trial_as_json(each, called) for each in trials])
        return
    if trials:
        from heredity.core.terminal import cell, line_table, out

        columns: dict[str, list[str]] = {
            "index": [str(each.trial.index) for each in trials],
            "outcome": [(each.outcome or "not judged") + ", leaked" * each.is_leaked for each in trials],
            "model": [called[each.trial.model.id] for each in trials],
            "attack": [each.trial.attack for each in trials],
            "probe": [each.trial.probe.id for each in trials],
            "sample": [str(each.trial.sample) for each in trials],
        }
        # A column with one value is a line above the table.
        same = {name: values[0] for name, values in columns.items() if len(set(values)) == 1}
        above = {name: value for name, value in same.items() if name not in _ALWAYS and value != "0"}
        if above:
            out().print(cell("  ".join(f"{name} {value}" for name, value in above.items()), "dim"))
        shown = {name: values for name, values in columns.items() if name in _ALWAYS or name not in same}
        shown["answer"] = [each.text for each in trials]
        out().print(line_table(shown, out().width, ["model", "attack", "probe"], right=["index", "sample"]))
    how = f" Open one: heredity show {quote(str(folder))} {trials[0].trial.index}" if trials else ""
    note(f"{plural(len(trials), 'trial')} of {plan.n_trials:,}.{how}")


def _trial_as_json(listed_trial: ListedTrial, called: Mapping[str, str]) -> dict[str, object]:
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
        "leaked": listed_trial.is_leaked,
        "text": listed_trial.text,
    }


@click.command("verify", cls=Verb, example="heredity verify smollm2-135m-instruct")
@click.argument("models", metavar="[MODEL]...", type=Name(), nargs=-1)
def verify_command(models: tuple[str, ...]) -> None:
    """Check that a model's files are the recorded ones.

    MODEL is a name or the start of an id; without it, every model of the store is checked. Exits 2 if a
    file is missing, changed or not in the record.
    """
    from heredity.core.errors import Damaged
    from heredity.core.sanitize import plain
    from heredity.core.terminal import write

    store = open_store()
    records = [store.get(name).record for name in models] or store.models()
    unreadable = [] if models else store.damaged()
    n_damaged = len(unreadable)
    for _, problem in unreadable:
        write(plain(f"damaged record: {problem}"))
    if not records and not unreadable:
        write(plain(f"No model in {store.root} yet."))
    for record in records:
        with shown_work(store):
            problems = store.verify(record)
        n_damaged += bool(problems)
        write(plain(f"{record.name}  {record.id[:12]}  {'damaged' if problems else 'whole'}"))
        for problem in problems:
            write(plain(f"  {problem}"))
    if n_damaged:
        raise Damaged(
            f"{n_damaged} of {len(records) + len(unreadable)} models are damaged. Pull or derive them again."
        )


@click.command("rename", cls=Verb, example="heredity rename smollm2-135m-instruct-lora tickets-lora")
@click.argument("model", type=Name())
@click.argument("new", metavar="NEW-NAME", type=Name())
def rename_command(model: str, new: str) -> None:
    """Give a model another name.

    Its id and files stay the same. A study names its models by their ids, and shows the names that they had.
    """
    from heredity.core.terminal import note
    from heredity.lineage.removal import rename_model

    record = rename_model(open_store(), model, new)
    note(f"{record.id[:8]} is named {record.name}")


@click.command("rm", cls=Verb, example="heredity rm old-lora old-lora-merged")
@click.argument("models", metavar="MODEL...", type=Name(), nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Remove also what children or unfinished studies need.")
def rm_command(models: tuple[str, ...], force: bool) -> None:
    """Remove models from the store.

    A model is named by its name, its alias, or the start of its id; so is one whose record is damaged. It is
    refused while another model descends from it, or while a study below the current folder has trials left to
    ask of it. Results of finished studies stay readable.
    """
    from heredity.core.errors import Refused
    from heredity.core.terminal import note, size
    from heredity.lineage.removal import find_stored, remove_models
    from heredity.study.folders import studies_that_need

    store = open_store()
    folders = [find_stored(store, name) for name in models]
    if not force and (needed := studies_that_need(Path(), {each.id for each in folders})):
        raise Refused(
            f"The study {needed[0].folder} is {needed[0].state} and has trials left to ask. Finish it, "
            "or give --force."
        )
    gone = remove_models(store, folders, is_forced=force)
    for each in gone.models:
        note(f"removed {each.name} {each.id[:8]}")
    note(f"{size(gone.n_bytes)} freed")


_GARBAGE = {
    "download": "an interrupted download, which a pull resumes",
    "killed": "left by a process that was killed",
    "training": "checkpoints of a model that is recorded",
    "note": "about a model that is gone",
    "scores": "of a teacher that is gone",
    "index": "made by heredity view for a study that is gone",
    "answers": "answers that studies share",
}


@click.command("gc", cls=Verb, example="heredity gc --yes")
@click.option("--answers", is_flag=True, help="Also the cache of answers; a study then asks them again.")
@click.option("--yes", is_flag=True, help="Delete without asking.")
def gc_command(answers: bool, yes: bool) -> None:
    """Delete the files of the store that nothing needs.

    On a terminal heredity lists them and asks first. Elsewhere it only lists, without --yes. Models stay,
    and so do trainings that can resume: heredity rm removes models. Files that a running process holds
    are left alone.
    """
    from heredity.core.terminal import note, size
    from heredity.lineage.removal import delete_garbage, find_garbage

    store = open_store()
    garbage = find_garbage(store, with_answers=answers)
    if not garbage:
        note(f"Nothing to delete in {store.root}.")
        return
    _show_garbage(store, garbage)
    total = size(sum(each.n_bytes for each in garbage))
    is_asked = sys.stdin.isatty() and not yes
    if not yes and not is_asked:
        note(f"{total} can be freed: heredity gc --yes")
    elif yes or click.confirm(f"Delete them and free {total}?", err=True):
        note(f"{size(delete_garbage(store, garbage))} freed")


def _show_garbage(store: Store, garbages: list[Garbage]) -> None:
    from heredity.core.terminal import line_table, out, size

    columns = {
        "file": [str(each.path.relative_to(store.root)) for each in garbages],
        "size": [size(each.n_bytes) for each in garbages],
        "why": [_GARBAGE[each.kind] for each in garbages],
    }
    out().print(line_table(columns, out().width, ["file"], right=["size"], last_width=40))
