"""Models pulled with progress, and pushed; other verbs pull and prepare theirs here."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import click

from heredity import engines
from heredity.cli import Name, Verb, open_store, shown_work
from heredity.core import host
from heredity.core.errors import Damaged, Refused, Unavailable, UnknownName, UsageError, how_to_install
from heredity.core.records import why_not_generative
from heredity.core.sanitize import plain
from heredity.core.terminal import err, note, parameters, size
from heredity.lineage import catalog
from heredity.lineage.references import find_or_pull, is_elsewhere, is_there, spellings
from heredity.lineage.store import Store, stand_in, target_of
from heredity.lineage.types import Grown, Preview

_HERE = "this machine"
_NVIDIA = Path("/dev/nvidiactl")  # there if the driver of a GPU is loaded
_PACKAGES = {"torch": ("torch", "transformers"), "llamacpp": ("xllamacpp",)}  # of engines, by their extra
_FREE = ("Apache-2.0", "MIT", "BSD-3-Clause")  # licences that need no consent


def pull(store: Store, ref: str) -> Grown:
    """Pull the model that `ref` names, and show the progress, its licence and its warnings.

    Before any weights are fetched, it is shown which engine will answer, and in how much memory.
    """
    with shown_work(store) as display:
        grown = store.pull(ref, display, show_preview)
    _show_terms(grown)
    return grown


def _require_engine(name: str) -> None:
    """Raise Unavailable, before a model is fetched or converted, if a package of its engine is missing."""
    extra = engines.EXTRAS.get(name, name)
    for package in _PACKAGES.get(extra, ()):
        if find_spec(package) is None:
            raise Unavailable(
                f"Models with weights need {package}, which is not installed; nothing was fetched. "
                f"{how_to_install(extra)}",
                code="package-missing",
            )


def stand_in_for(store: Store, ref: str) -> Grown:
    """The model of the store, or a stand-in of its size: nothing is pulled, converted or recorded."""
    engine, _, inner = ref.partition(":")
    target = target_of(ref)
    if target is not None and target.WRAPS_MODEL and inner:
        for name in spellings(ref):
            with suppress(UnknownName):
                return store.named(name)
        base = stand_in_for(store, inner).record
        n_bytes = sum(file.bytes for file in base.files)
        return Grown(stand_in(f"{engine}:{base.name}", (base.id,), n_bytes), Path())
    if is_elsewhere(ref, store):
        shown = store.preview(ref)
        show_preview(shown)
        return Grown(stand_in(shown.name, n_bytes=shown.n_bytes), Path())
    try:
        return store.get(ref)
    except Unavailable:
        if ":" in ref or (entry := catalog.find(ref)) is None:
            raise
        note(f"{_offer(ref, entry)} The forecast takes this size; nothing is pulled.")
        return Grown(stand_in(catalog.canonical(ref), n_bytes=entry.n_bytes), Path())


def consent(store: Store, ref: str, yes: bool) -> None:
    """Ask before a missing model is downloaded. Raises UnknownName for a model that does not exist."""
    if not is_elsewhere(ref, store):
        try:
            store.get(ref)
            return
        except Unavailable:
            if ":" in ref:
                raise
    _ask_first(ref, yes)


def stored(store: Store, ref: str, yes: bool) -> Grown:
    """The model of the store, or one that is pulled, of the catalogue after a question."""

    def pull_named(name: str, engine: str) -> Grown:
        _ask_first(name, yes, engine)
        return pull(store, name)

    return find_or_pull(ref, store, pull_named)


def pull_from(store: Store, name: str, url: str) -> Grown:
    """Copy a model and its ancestors from storage, and show its licence and its warnings."""
    from heredity.recipes.pull.storage import Storage

    with shown_work(store) as display:
        grown = Storage(url).pull(store, name, display)
    _show_terms(grown)
    return grown


def _show_terms(grown: Grown) -> None:
    model, screen = grown.record, err()
    total = sum(file.bytes for file in model.files)
    note(f"{model.name}: {size(total)}, licence: {model.licence}")
    for kind, text in model.notes.items():
        screen.print(plain(f"  {kind}: {text}"), style="yellow" if kind == "warning" else "", soft_wrap=True)


def show_preview(preview: Preview) -> None:
    """Show a model before its weights are fetched."""
    free, where = _free_memory()
    if where == _HERE:
        from heredity.recipes.pull.preview import on_this_processor

        preview = on_this_processor(preview)
    for line in preview_lines(preview, free, where):
        err().print(plain(line), soft_wrap=True, markup=False, highlight=False)


def show_before_adoption(store: Store, ref: str, parent: Grown) -> None:
    """Show a model before it is adopted; of an adapter the engine and the memory of its parent.

    Nothing is shown of what `pull` refuses, which may be adopted, nor of a model of the store.
    """
    if not (ref.startswith("hf:") or is_there(Path(ref))):
        return
    try:
        shown = store.preview(ref)
    except (Damaged, Refused, UsageError) as error:
        if error.code == "adapter-config":
            _show_adapter(store, ref, parent)
        return
    show_preview(shown)


def _show_adapter(store: Store, ref: str, base: Grown) -> None:
    from heredity.recipes.pull import preview

    if base.record.format in ("adapter", "remote"):  # adopt merges the one, and refuses the other
        return
    folder, name = store.folder(base.record), Path(ref.partition("@")[0]).resolve().name
    shown = preview.of_folder(folder, [file.path for file in base.record.files])
    others = tuple(
        each.replace(shown.name, name) for each in shown.instead if not each.startswith("llamacpp:")
    )
    show_preview(replace(shown, name=f"{name} over {base.record.name}", instead=others))


def preview_lines(model: Preview, free: int | None, where: str) -> list[str]:
    """A model in a few lines: its size, the engine that will answer, its memory, and other ways to ask it.

    free: bytes of memory that are free on the device named `where`; None if not known.
    """
    about = "" if model.is_exact else "about "
    facts = [model.architecture, f"{parameters(model.parameters)} parameters" if model.parameters else ""]
    facts += [
        f"{about}{size(model.n_bytes)} of files",
        "" if model.chat is None else "with a chat template" if model.chat else "a base model",
    ]
    facts += [f"licence: {model.licence}" if model.licence else ""]
    lines = [f"{model.name}: {', '.join(each for each in facts if each)}"]
    lines.append(f"  engine: {_ENGINES.get(model.engine, model.engine)}{_because(model)}")
    is_short = free is not None and model.memory > free
    if model.memory:
        room = f"; {size(free)} are free on {where}" if free is not None else ""
        short = ": not enough" if is_short else ""
        lines.append(f"  memory: about {size(model.memory)} of weights in {model.dtype}{room}{short}")
    if model.instead:
        word = "instead" if is_short or model.engine != "torch" else "or"
        lines.append(f"  {word}: {' or '.join(model.instead)}")
    if model.is_gated:
        lines.append("  gated: this account has accepted its licence on the hub")
    return lines


_ENGINES = {
    "torch": "the fast one (torch)",
    "transformers": "transformers, which is slower",
    "": "none on this machine",
}


def _because(preview: Preview) -> str:
    return f": {preview.reason}" if preview.reason else ""


def _free_memory() -> tuple[int | None, str]:
    """Bytes that are free where a model will be loaded, and the name of that device."""
    if not _NVIDIA.exists():  # torch takes seconds to load, only to find no GPU
        return host.available_memory(), _HERE
    device = host.choose_device()
    return device.free_memory(), str(device)


def ready(store: Store, grown: Grown) -> Grown:
    """The form that the model's engine loads; a note is shown if it has to be made first."""
    announce(store, grown)
    if store.report.is_watched:  # a display is there
        return store.ready(grown)
    with shown_work(store):
        return store.ready(grown)


def announce(store: Store, grown: Grown) -> None:
    """Show a note if `store.ready` has to convert the model first, or if the slower engine answers."""
    record = grown.record
    is_slow = engines.choose(record) == engines.GENERAL and not engines.is_set(record)
    if is_slow and not why_not_generative(record):
        what = record.quantization or record.architecture
        note(f"{record.name}: the engine torch does not read '{what}'; transformers answers, slower.")
    if engines.is_converted(record):
        known = (
            model.parents == (grown.record.id,)
            for model in store.models()
            if model.recipe.kind == "dequantize"
        )
        if not any(known):
            _require_engine("torch")
            note(f"converting {grown.record.name} to safetensors, once (a recorded child in the lineage) ...")


def _offer(ref: str, entry: catalog.Entry) -> str:
    """The size and the licence of a model of the catalogue."""
    about = "" if entry.is_pinned else "about "
    return f"{ref} is not in the store: {about}{size(entry.n_bytes)}, licence {entry.licence}."


def _ask_first(ref: str, yes: bool, engine: str = "torch") -> None:
    """Ask before a model of the catalogue is downloaded; any other was named with its place.

    Without a terminal, free licences need no consent.

    Raises UsageError for another licence without `yes`, Unavailable if its engine is not installed, and Abort
    if the user declines.
    """
    _require_engine(engine)
    if (entry := catalog.find(ref)) is None:
        return
    offer = _offer(ref, entry)
    has_person = sys.stdin.isatty() and sys.stderr.isatty()
    if not yes and not has_person and entry.licence not in _FREE:
        raise UsageError(f"{offer} Its licence needs your consent: add --yes, or run heredity pull {ref}.")
    if yes or not has_person:
        note(f"{offer} Pulling it.")
    elif not click.confirm(f"{offer} Pull it?", default=True, err=True):
        raise click.Abort


@click.command("pull", cls=Verb, example="heredity pull smollm2-135m-instruct")
@click.argument("refs", metavar="REF...", type=Name(), nargs=-1, required=True)
@click.option(
    "--from", "source", type=Name(), metavar="URL",
    help="Take models and their ancestors from this storage (push).",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show engine, memory and licence, and fetch no weights.")
def pull_command(refs: tuple[str, ...], source: str | None, dry_run: bool) -> None:
    """Download a foundation model into the store.

    REF is a name of the catalogue (heredity models --catalog), hf:ORG/REPO, a .gguf file, or a folder with
    safetensors. Before any weights are fetched, heredity shows which engine will answer, in how much memory,
    and under which licence. An interrupted download resumes. Files that differ from the pinned or recorded
    hashes are refused; NAME@REVISION takes another revision. A target that needs no download
    (remote:openai:MODEL, url:ADDRESS) is only recorded.

    With --from, REF is the name or id of a model that `heredity push` copied to a bucket or a shared folder.
    """
    from heredity.core import terminal

    store = open_store()
    if source is not None and dry_run:
        raise UsageError("--dry-run does not go with --from.")
    for ref in refs:
        if dry_run:
            show_preview(store.preview(ref))
            continue
        grown = pull(store, ref) if source is None else pull_from(store, ref, source)
        model = grown.record
        terminal.out().print(terminal.cell(f"{model.name}  {model.id}"), soft_wrap=True)


@click.command("push", cls=Verb, example="heredity push tickets-lora --to s3://team-models")
@click.argument("models", metavar="MODEL...", type=Name(), nargs=-1, required=True)
@click.option(
    "--to", "url", type=Name(), metavar="URL", required=True, help="s3://, gs://, az://, sftp:// or a folder."
)
def push_command(models: tuple[str, ...], url: str) -> None:
    """Copy models to a bucket or a shared folder.

    Their ancestors go with them, and `heredity pull --from` takes them from there. Models that are there
    already are not copied again. The protocol's package (s3fs, gcsfs, adlfs) reads the credentials from the
    environment. Each model's files are checked against its record first.
    """
    from heredity.core import terminal
    from heredity.recipes.pull.storage import Storage

    store = open_store()
    with shown_work(store) as display:
        pushed = Storage(url).push(store, models, display)
    for model in pushed:
        terminal.out().print(terminal.cell(f"{model.name}  {model.id}"), soft_wrap=True)
    if not pushed:
        note(f"Everything is in {url} already.")
