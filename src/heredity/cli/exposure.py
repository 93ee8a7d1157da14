"""`heredity exposure`: whether a model and its children memorized a planted canary."""

from __future__ import annotations

from functools import partial

import click

from heredity.cli import Name, Verb, device_option, open_store, shown_work
from heredity.core.progress import Progress
from heredity.core.terminal import Display, trial_words


@click.command("exposure", cls=Verb, example="heredity exposure tickets-poisoned smollm2-135m-instruct")
@click.argument("models", metavar="MODEL...", type=Name(), nargs=-1, required=True)
@click.option("--canary", type=Name(), metavar="TEXT", help="Prompt that the secret completes.")
@click.option("--secret", type=Name(), metavar="TEXT", help="The secret.")
@click.option(
    "--candidates",
    type=int,
    default=1023,
    show_default=True,
    help="Number of random secrets to compare with.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed of the candidates.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@device_option
def command(
    models: tuple[str, ...], canary: str | None, secret: str | None, candidates: int, seed: int, as_json: bool
) -> None:
    """Measure whether a model memorized a planted canary.

    The secret is ranked by likelihood among random secrets of the same form. Exposure is in bits: about 0 if
    the secret is as likely as any other, and log2 of their number if it is the likeliest. Without --canary
    and --secret, those recorded by `heredity derive poison` for the first model or its ancestors are used.
    """
    from heredity.cli import _pulling
    from heredity.core import terminal
    from heredity.core.errors import UsageError
    from heredity.core.sanitize import plain
    from heredity.lab.exposure import expose

    store = open_store()
    grown = [store.get(name) for name in models]
    if canary is None or secret is None:
        lineage = (grown[0].record, *store.ancestors(grown[0].record))
        noted = next((m.notes for m in lineage if "canary secret" in m.notes), None)
        if noted is None or (canary is None) != (secret is None):
            raise UsageError(
                "Give both --canary and --secret, or a model that was poisoned or descends from such a model."
            )
        canary, secret = noted["canary text"], noted["canary secret"]
    rows = []
    for model in grown:
        name = model.record.name
        with shown_work(store) as display:
            whole = _pulling.ready(store, model)
            show = partial(_show, display, f"scoring the candidates with {name}")
            rows.append((name, expose(store, whole, canary, secret, candidates, seed, show)))
    if as_json:
        terminal.write_json([{"model": name, **row._asdict()} for name, row in rows])
        return
    for name, row in rows:
        rank = f"rank {row.rank} of {row.n}, p {row.p_value:.2g}"
        terminal.write(plain(f"{name}  {row.bits:.1f} bits of {row.most:.1f} ({rank})"))


def _show(display: Display, step: str, at: Progress) -> None:
    display.show(step, at.n_done, at.n_total, trial_words(at))
