"""`heredity judges`: list, calibrate and train judges."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from heredity.cli import Lister, Name, PathArgument, Verb, shown_start

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from heredity.core.progress import Watch
    from heredity.core.records import Estimate
    from heredity.redteam.judges import JudgeQuality
    from heredity.redteam.judges.calibration.quality import LabelMeasurement

_EXAMPLE = (
    "heredity judges calibrate rules --task refusal --labels answers.jsonl "
    "--columns prompt=question,response=answer,label=verdict --positive refused"
)
_TRAIN = "heredity judges train --data bench/learned.toml --root labels --out trained"


@click.group("judges", cls=Lister, example="heredity judges list --json")
@click.pass_context
def command(ctx: click.Context) -> None:
    """List the judges and their accuracy; calibrate or train one."""
    if ctx.invoked_subcommand is None:
        _list(as_json=False)


@command.command("list", cls=Verb, example="heredity judges list --json")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List the judges with their accuracy on human labels."""
    _list(as_json)


@command.command("calibrate", cls=Verb, example=_EXAMPLE)
@click.argument("judge", type=Name())
@click.option(
    "--labels", required=True, type=PathArgument(), metavar="FILE",
    help="Labelled answers: CSV or JSON lines.",
)  # fmt: skip
@click.option(
    "--columns", type=Name(), required=True, metavar="response=R,label=L[,prompt=P][,family=F]",
    help="Columns of the file. With family, each of its values is also measured separately.",
)  # fmt: skip
@click.option(
    "--positive", type=Name(), required=True, metavar="V[,V]", help="Labels that mean refused or harmful."
)
@click.option(
    "--task", required=True, type=click.Choice(["refusal", "harm"]), help="Task that the labels are for."
)
@click.option(
    "--fit", is_flag=True, help="Fit a rubric's threshold on the even rows and measure it on the odd rows."
)
@click.option("--deduplicate", "once", is_flag=True, help="Count repeated answers once.")
@click.option(
    "--save/--no-save", "keep", default=True, show_default=True,
    help="Save the result in the store. It then replaces the shipped calibration of this judge.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def calibrate(
    judge: str, labels: Path, columns: str, positive: str, task: str, fit: bool, once: bool, keep: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Measure a judge on answers that people labelled.

    JUDGE is rules, learned, rubric:MODEL[:yesno|:head], guard:NAME[:MODEL] or panel:A+B. With --fit, the
    judge's name in the result contains the fitted threshold. Use that name with `heredity study --judge`.
    """
    from typing import cast

    from heredity.cli import open_store
    from heredity.core.progress import phase
    from heredity.core.sanitize import plain, plural
    from heredity.core.terminal import Display, note, write_json

    with shown_start():
        from heredity.redteam import judges
        from heredity.redteam.judges.calibration import quality as kept
        from heredity.redteam.judges.calibration.quality import measure
    from heredity.redteam.judges.protocols import ClosableJudge

    of, names = cast(judges.Task, task), tuple(value.strip() for value in positive.split(","))
    pairs = _pairs(columns)
    with Display() as display, ExitStack() as stack:
        with phase(display.live, "loading"):
            loaded = judges.load(judge, judges.stored_models(display))
        if isinstance(loaded, ClosableJudge):
            stack.callback(loaded.close)
        watch = _every(5, display.live)
        with phase(display.live, "judging"):
            calibrations = measure(loaded, [labels], pairs, names, of, fit=fit, watch=watch, once=once)
    judged_by = judges.identity(calibrations.judge)
    if (
        calibrations.is_too_good
    ):  # its errors are smaller here than on new answers, so it would correct too little
        keep = False
    if not (calibrations.counts.sens_n and calibrations.counts.spec_n):
        note("Labels of one kind only: nothing is saved. Add labels of both kinds.")
        keep = False
    if keep:
        try:
            kept.save_calibration(open_store().root, calibrations, judged_by, of, names, pairs)
        except OSError as error:  # the measurement is still worth printing
            keep = False
            note(f"The result could not be saved: {error.filename}: {error.strerror}")
    rows = [
        kept.as_quality(calibrations.judge.name, of, c) for c in (calibrations.counts, *calibrations.families)
    ]
    if calibrations.n_learned_from:
        note(
            f"'{calibrations.judge.name}' was trained on {calibrations.n_learned_from} of these answers: "
            "the figures are optimistic"
            + (
                ", and not saved. Measure it on others."
                if calibrations.is_too_good
                else ". Measure it on others."
            )
        )
    if as_json:
        write_json(_summary(rows, calibrations, judged_by))
        return
    _show(rows)
    if calibrations.n_repeated:
        note(
            f"Repeats of another answer, word for word: {calibrations.n_repeated:,}"
            + ("; they count once." if once else ". Without --deduplicate, intervals are too narrow.")
        )
    if calibrations.n_disputed:
        note(
            f"With both labels: {plural(calibrations.n_disputed, 'answer')}"
            + (", left out." if once else ".")
        )
    if calibrations.n_unlabelled:
        note(f"Without a label, left out: {plural(calibrations.n_unlabelled, 'row')}.")
    if len(calibrations.negatives) > 1:
        counted = ", ".join(f"'{label}' ({n})" for label, n in calibrations.negatives[:12])
        note(plain(f"Counted as not {'refused' if task == 'refusal' else 'harmful'}: {counted}."))
    if calibrations.n_unclear:
        note(f"Unclear to the judge, left out: {plural(calibrations.n_unclear, 'answer')}.")
    if keep:
        note(f"Saved: it corrects the rates of studies that '{calibrations.judge.name}' judges.")


def _every(seconds: float, live: Watch | None) -> Callable[[int, int], None]:
    """A callback that reports progress: to `live`, or on stderr at most once per `seconds`."""
    import time

    from heredity.core.progress import PREPARE, Meter
    from heredity.core.terminal import note

    last = time.monotonic()
    meters: dict[int, Meter] = {}  # by total: a threshold is fitted on other rows

    def report(n_done: int, n_all: int) -> None:
        nonlocal last
        if live is not None:
            meters.setdefault(n_all, Meter(live, PREPARE, n_all, "judging", "rows")).reached(n_done)
        elif time.monotonic() - last >= seconds:
            last = time.monotonic()
            note(f"judged {n_done} of {n_all} answers")

    return report


def _summary(
    rows: Sequence[JudgeQuality], label_measurement: LabelMeasurement, judged_by: str
) -> dict[str, object]:
    """The result as one flat object: each share with value, low, high and n."""
    pooled = rows[0]
    start = f"{pooled.labels}: "
    return {
        "judge": pooled.judge,
        "judged_by": judged_by,
        "task": pooled.task,
        "labels": pooled.labels,
        "n": pooled.accuracy.n,
        "n_unclear": label_measurement.n_unclear,
        "n_learned_from": label_measurement.n_learned_from,
        "n_repeated": label_measurement.n_repeated,
        "n_unlabelled": label_measurement.n_unlabelled,
        "n_disputed": label_measurement.n_disputed,
        "negatives": dict(label_measurement.negatives),
        **_shares(pooled),
        "families": {
            each.labels.removeprefix(start): {"n": row.accuracy.n, **_shares(row)}
            for each, row in zip(label_measurement.families, rows[1:], strict=True)
        },
    }


def _shares(row: JudgeQuality) -> dict[str, object]:
    return {"sensitivity": row.sensitivity, "specificity": row.specificity, "accuracy": row.accuracy}


@command.command("train", cls=Verb, example=_TRAIN)
@click.option(
    "--data", required=True, type=PathArgument(), metavar="FILE.toml", help="File that names the labels."
)
@click.option(
    "--root", "roots", multiple=True, type=PathArgument(), metavar="DIR",
    help="Folder with the files that it names; repeatable.  [default: its own folder]",
)  # fmt: skip
@click.option("--out", required=True, type=PathArgument(), metavar="DIR", help="Folder for the weights.")
@click.option(
    "--head", type=Name(), metavar="MODEL",
    help="Train the head of rubric:MODEL:head on this model's hidden states, instead of the judge `learned`.",
)  # fmt: skip
@click.option("--max-rows", "rows", type=click.IntRange(20), help="With --head: maximum rows per set (500).")
@click.option("--json", "as_json", is_flag=True, help="Print the card as JSON.")
def train(
    data: Path, roots: tuple[Path, ...], out: Path, head: str | None, rows: int | None, as_json: bool
) -> None:
    """Train the judge `learned`, or a head for `rubric`.

    Measures it on held-out labels. Writes the weights as safetensors and their card as JSON. `learned` takes
    some minutes on two cores. A head takes as long as the model needs to read a few thousand answers, and
    resumes if stopped.
    """
    from heredity.core.errors import UsageError
    from heredity.core.progress import phase
    from heredity.core.terminal import Display, note, write_json
    from heredity.core.terminal import out as console

    with shown_start():
        from heredity.lab.judges import head as head_train
        from heredity.lab.judges import learned as learned_card
        from heredity.redteam import judges

    if rows is not None and head is None:
        raise UsageError("--max-rows needs --head: `learned` is trained on all rows.")
    roots = roots or (data.parent,)
    with Display() as display, phase(display.live, "preparing the training"):
        if head is None:
            name, card = "learned", learned_card.train_learned(data, roots, out, note, display.live)
        else:
            models = judges.stored_models(display)
            n_rows = rows or head_train.ROWS
            card = head_train.train_head(data, roots, out, head, models, note, n_rows, display.live)
            name = "head"
    if as_json:
        write_json(card)
        return
    console().print(f"{out / name}.safetensors: {card['weights']['bytes']:,} bytes; {card['split']}")
    _show(judges.quality_of_card(out / f"{name}.json"))


def _pairs(text: str) -> dict[str, str]:
    from heredity.core.errors import UsageError

    parts = (part.partition("=") for part in text.split(","))
    pairs = {key.strip(): value.strip() for key, _, value in parts}
    known = {"prompt", "response", "label", "family"}
    if not {"response", "label"} <= set(pairs) <= known or not all(pairs.values()):
        raise UsageError(
            "--columns must name response and label, and may name prompt and family: "
            f"prompt=P,response=R,label=L,family=F; not '{text}'."
        )
    return pairs


def _list(as_json: bool) -> None:
    from heredity.core import registry
    from heredity.core.terminal import out, wrapped, write_json

    with shown_start():
        from heredity.redteam import judges

        measured = (*judges.quality(), *judges.check_quality())
        purposes, guards = registry.purposes("redteam.judges"), _guards()
        by_kind = [(name, [row for row in measured if _kind_of(row.judge) == name]) for name in purposes]
        accuracy = {name: _accuracy(rows) for name, rows in by_kind}
    if as_json:
        write_json({"judges": purposes, "guards": guards, "quality": measured})
        return
    screen = out()
    for name, purpose in purposes.items():
        screen.print(wrapped(f"{name}: {purpose}", screen.width), soft_wrap=True)
        for line in accuracy[name]:
            screen.print(wrapped(f"  {line}", screen.width), style="dim", soft_wrap=True)
    screen.print()
    screen.print(wrapped(f"guard:NAME takes {', '.join(guards)}.", screen.width), soft_wrap=True)
    screen.print("Accuracy by set of labels, with n: heredity judges show NAME", style="dim")


def _kind_of(judge: str) -> str:
    """The plug-in of a judge: `guard` of `guard:qwen3guard`."""
    return judge.partition(":")[0]


def _accuracy(rows: Sequence[JudgeQuality]) -> list[str]:
    """A line for each task: the sensitivity and specificity that correct rates, with n."""
    from heredity.redteam.judges.calibration import quality

    pooled = []
    for judge, task in dict.fromkeys((row.judge, row.task) for row in rows):
        calibration = None if task == "breach" else quality.calibration(task, judge)
        own = [row for row in rows if (row.judge, row.task) == (judge, task)]
        pooled.append(own[-1] if calibration is None else quality.as_quality(judge, task, calibration))
    return [
        f"{row.task}: sensitivity {_share(row.sensitivity)}, specificity {_share(row.specificity)}"
        for row in pooled
    ]


def _share(estimate: Estimate) -> str:
    from heredity.core.terminal import percent

    return f"{percent(estimate)} n {estimate.n}"


@command.command("show", cls=Verb, example="heredity judges show rules")
@click.argument("judge", metavar="NAME", type=Name())
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(judge: str, as_json: bool) -> None:
    """Show a judge, and its accuracy on each set of labels. NAME may be guard:NAME, too."""
    from heredity.core import registry
    from heredity.core.errors import UnknownName
    from heredity.core.terminal import out, wrapped, write_json

    with shown_start():
        from heredity.redteam import judges

        kind, _, name = judge.partition(":")
        purposes, guards = registry.purposes("redteam.judges"), _guards()
    if kind not in purposes:
        raise UnknownName("judge", kind, purposes, "heredity judges")
    if kind == "guard" and name and name not in guards:
        raise UnknownName("guard", name, guards, ", ".join(guards))
    rows = [row for row in (*judges.quality(), *judges.check_quality()) if _kind_of(row.judge) == kind]
    rows = [row for row in rows if row.judge.startswith(judge)] if name in guards else rows
    shown = {each: guards[each] for each in guards if kind == "guard" and name in ("", each)}
    if as_json:
        write_json({"judge": kind, "about": purposes[kind], "guards": shown, "quality": rows})
        return
    screen = out()
    screen.print(wrapped(f"{kind}: {purposes[kind]}", screen.width), style="bold", soft_wrap=True)
    for each, guard in shown.items():
        screen.print(f"\n{each}: {guard['model']}, licence {guard['licence']}", soft_wrap=True)
        screen.print(wrapped(f"  A yes means: {guard['question']}", screen.width), soft_wrap=True)
    if rows:
        screen.print()
    _show(rows)


def _guards() -> dict[str, dict[str, str]]:
    """By name: the model and licence of each guard, and what a yes of it means."""
    from heredity.core import registry
    from heredity.redteam.guards import GuardForm

    guards = {}
    for name in registry.names("redteam.guards"):
        guard = registry.load_as(GuardForm, "redteam.guards", name)
        guards[name] = {"model": guard.hub, "licence": guard.licence, "question": guard.question}
    return guards


def _show(measured: Sequence[JudgeQuality]) -> None:
    from heredity.core.terminal import cell, out, percent, table

    shares = ("sensitivity", "specificity", "accuracy")
    by_task: dict[tuple[str, str], list[JudgeQuality]] = {}
    for row in measured:
        by_task.setdefault((row.judge, row.task), []).append(row)
    for i, ((judge, task), rows) in enumerate(by_task.items()):
        grid = table("labels", "sensitivity", "n", "specificity", "n", "accuracy", whole=shares)
        for row in rows:
            grid.add_row(
                cell(row.labels),
                percent(row.sensitivity), f"{row.sensitivity.n}",
                percent(row.specificity), f"{row.specificity.n}", percent(row.accuracy),
            )  # fmt: skip
        if i:
            out().print()
        out().print(cell(f"{judge}: {task}", "bold"), grid, sep="\n")
