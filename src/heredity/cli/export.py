"""`heredity export`: write a model for other software, and check the files against the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from heredity.cli import Name, PathArgument, Verb, open_store, shown_start, shown_work

if TYPE_CHECKING:
    from heredity.deploy.export import Fidelity


@click.command("export", cls=Verb, example="heredity export tickets-lora --to gguf handed-out/")
@click.argument("model", metavar="MODEL", type=Name())
@click.argument("folder", metavar="DIR", type=PathArgument())
@click.option("--to", "form", type=Name(), required=True, help="hf (safetensors), gguf, or adapter (PEFT).")
@click.option(
    "--dtype", type=Name(),
    help="float32, bfloat16 or float16; default: the model's own, float32 for a merged adapter.",
)  # fmt: skip
@click.option("--study", type=PathArgument(), metavar="DIR", help="Study whose rates the model card quotes.")
def command(model: str, folder: Path, form: str, dtype: str | None, study: Path | None) -> None:
    """Export a model for other software, and check the files.

    The folder also gets a model card and a bill of materials of the whole lineage. The files are read back
    before they are released. The export fails if a reader computes other log-probabilities, renders a
    conversation differently, or uses other begin or end tokens. An adapter goes out by itself (--to adapter),
    or merged into its base in float32. If the files have other numbers than a study asks, both answer 32
    prompts, and the card reports the difference.
    """
    from heredity.core import terminal
    from heredity.core.sanitize import plain

    store = open_store()
    grown = store.get(model)  # an unknown name is refused before torch is loaded
    with shown_start():
        from heredity.deploy import export
    with shown_work(store, "exporting"):
        done = export.export(store, grown, form, folder, study, dtype=dtype or "")
    for parity in done.parities:
        result = parity.left_out or (
            f"agrees within {parity.largest:.2g} nats over {parity.n} tokens ({parity.tolerance:g} allowed)"
        )
        terminal.note(plain(f"{parity.reader} {result}"))
    if done.fidelity is not None:
        terminal.note(plain(_distance(done.fidelity)))
    if done.form:
        terminal.note(plain(done.form))
    terminal.write(plain(str(done.folder)))


def _distance(fidelity: Fidelity) -> str:
    if fidelity.left_out:
        return f"not compared with the model as it is studied: {fidelity.left_out}"
    return (
        f"from the model as it is studied ({fidelity.engine}) the files differ by {fidelity.mean:.2g} nats a"
        f" token, {fidelity.worst:.2g} at most; {fidelity.shared:.1f} of {fidelity.length:.1f} greedy tokens"
        f" are the same (prompts: {fidelity.n_prompts})"
    )
