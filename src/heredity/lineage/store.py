"""Grow models and keep their descent: the only door through which a model comes into being.

Promises: a model exists whole and recorded, or not at all. Its id is a digest over recipe, parents and
files, the same on every machine. A half, empty or linked file is never recorded, and a recorded path never
leads outside its folder. A crash leaves only a temporary folder, which a later run clears.
Leaves to others: how a child is made (recipes/), what the files hold (recipes/pull) and how a
model answers (engines/).
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET

from heredity import engines
from heredity.core import __version__, host, registry
from heredity.core.cache import ResponseCache
from heredity.core.errors import (
    Busy,
    Damaged,
    HeredityError,
    NotComparable,
    Refused,
    Unavailable,
    UnknownName,
    UsageError,
    how_to_install,
)
from heredity.core.files import (
    Lock,
    default_root,
    hash_file,
    read_file,
    stamp_file,
    sync_folder,
    write_atomic,
)
from heredity.core.host import Device
from heredity.core.progress import Reporter, Watch, about, phase
from heredity.core.records import (
    SCHEMA,
    FileHash,
    Made,
    Model,
    RecipeRecord,
    Record,
    digest,
    encode,
    is_digest,
    why_not_generative,
)
from heredity.engines import Engine, EngineModule, capabilities
from heredity.engines.remote import services
from heredity.formats.architectures import form_of
from heredity.lineage import catalog, graph
from heredity.lineage.catalog import how
from heredity.lineage.types import (
    AdapterMerger,
    Announce,
    Computing,
    Dequantizer,
    Description,
    FunctionTarget,
    Grown,
    NamedRecipe,
    Preview,
    Pull,
    Puller,
    Recipe,
    Resuming,
    Target,
    Taught,
)

_MAX_REFERENCE = 4096  # characters, the most that a path may have
_MAX_NESTED = 8  # engines in front of a model
_SAME_FILES = ("bfloat16", "float32", "kv4", "kv8", "llamacpp", "transformers", "vllm")
# By the prefix of models that need no download: its file in recipes/targets.
TARGETS = dict.fromkeys(_SAME_FILES, "arithmetic") | {each: each for each in ("call", "remote", "url")}
# What a model is for that generates no text, by modality.
_USES = {
    "text-ranking": " A reranker orders passages: heredity index INDEX --ask TEXT --rerank {name}.",
    "text-embedding": " A sentence encoder makes vectors of texts: heredity index FOLDER --embed {name}.",
}


def load_engine(
    grown: Grown,
    store: Store | Callable[[], Store],
    needs_text: bool = True,
    is_batched: bool = True,
    device: Device | None = None,
) -> Engine:
    """The engine of a model (engines.choose); the caller closes it.

    store: where the model's form is looked up and made; a function is called only if it is needed.
    needs_text: False for an engine that only scores texts.
    is_batched: False for requests that come one at a time. The engine then measures no batch widths; it uses
        those that an earlier run has kept.
    device: where it computes; None: the store's.
    Raises Unavailable if that engine, or what it is made of, is not on this machine.
    """
    if grown.record.format == "scripted":
        return engine_loader(grown.record, needs_text)(grown.record, grown.folder)
    store = store() if callable(store) else store
    watch = None if grown.record.format == "remote" else store.report
    with phase(watch, "loading the libraries"):  # torch
        engine_loader(grown.record, needs_text)  # before a conversion, which would be in vain
    ready = store.ready(grown)
    tuning = store.root / "tuning" / ready.record.id
    where = store.device(device) if engines.computes_here(ready.record) else device
    given = ready.record, ready.folder, tuning if is_batched or tuning.exists() else None, where
    with phase(watch, "loading", ready.record.name):
        try:
            engine = engine_loader(ready.record, needs_text, watch=watch)(*given)
        except Unavailable as error:
            if error.code != engines.NOT_READ or engines.is_set(ready.record):
                raise
            engine = engine_loader(ready.record, needs_text, engines.GENERAL, watch)(*given)
    record_at_answer(engine, ready, store)
    return engine


def record_at_answer(engine: Engine, grown: Grown, store: Store) -> None:
    """Let a model elsewhere, or a function, be recorded in the store when it first answers."""
    if (first := capabilities(engine).provenance.first_answer) is not None:
        first.listener = lambda: store.keep(grown)


def refuse_silent(model: Model) -> None:
    """Raise Unavailable, with what it is for, if a model cannot generate text in any engine."""
    if why := why_not_generative(model):
        use = _USES.get(model.modality, "").format(name=model.name)
        raise Unavailable(f"'{model.name}' cannot answer: {why}.{use}")


def engine_loader(
    model: Model, needs_text: bool = True, name: str = "", watch: Watch | None = None
) -> Callable[..., Engine]:
    """The `load` function of a model's engine (engines.EngineModule).

    needs_text: refuse a model that cannot generate text.
    name: another engine than the model's own.
    watch: gets the phases of an engine that reports them.
    Raises Unavailable if the engine is not installed, or the model is refused.
    """
    if needs_text:
        refuse_silent(model)
    name = name or engines.choose(model)
    host.configure()  # the module of the engine may load torch
    try:
        load = registry.load_as(EngineModule, "engines", name).load
        if name in engines.PHASED:
            return partial(load, watch=about(watch, model.name))  # type: ignore[call-arg]
        return load
    except UnknownName as error:
        raise Unavailable(f"'{model.name}' cannot answer here: {error}") from error
    except ImportError as error:
        raise Unavailable(
            f"The engine '{name}', which '{model.name}' needs, is not installed ({error}). "
            f"{how_to_install(engines.EXTRAS.get(name, name))}",
            code="package-missing",
        ) from error


RUN = "run.json"  # in the folder of a long recipe's checkpoints, while it is made


class RunInProgress(Record, frozen=True):
    """A long recipe in progress: what it makes, of which parents, and when it was begun or resumed."""

    name: str  # as its user wants it called; "" for a name by default
    recipe: RecipeRecord
    parents: tuple[str, ...]
    at: str
    schema: int = 1


def record_of(
    recipe: Recipe,
    parents: Sequence[Grown],
    files: tuple[FileHash, ...],
    description: Description,
    made: Made,
) -> Model:
    """The record of a child as its recipe describes it."""
    how = RecipeRecord(recipe.kind, recipe.settings())
    ids = tuple(parent.record.id for parent in parents)
    return Model(
        id=identity(how, ids, files),
        name=description.name,
        family=description.family,
        modality=description.modality,
        licence=description.licence,
        format=description.format,
        parents=ids,
        recipe=how,
        files=files,
        made=made,
        notes=dict(description.notes),
        descent=description.descent,
    )


STAND_IN = "stand-in"  # the recipe of a model that is planned with before it is here


def stand_in(name: str, parents: tuple[str, ...] = (), n_bytes: int = 0) -> Model:
    """The record of a model that is not made or pulled yet, for a plan and its forecast."""
    files = (FileHash("weights", n_bytes, ""),) if n_bytes else ()
    made, recipe = Made("", "", 0.0, {}), RecipeRecord(STAND_IN, {})
    return Model(
        digest([STAND_IN, name]), name, name, "text", "", "safetensors", parents, recipe, files, made
    )


def write_record(record: Model, home: Path) -> None:
    """Write model.json into the folder of a model; a folder with it is complete."""
    write_atomic(home / "model.json", msgspec.json.format(encode(record), indent=2) + b"\n")


def write_run(folder: Path, recipe: Recipe, parents: Sequence[Grown]) -> None:
    """Write run.json into the folder of a long recipe, so that others see what is made there."""
    how = RecipeRecord(recipe.kind, recipe.settings())
    ids = tuple(parent.record.id for parent in parents)
    run = RunInProgress(recipe.name if isinstance(recipe, NamedRecipe) else "", how, ids, now())
    write_atomic(folder / RUN, encode(run) + b"\n")


def wanted_key(recipe: Recipe, parents: Sequence[Grown]) -> str:
    """The key of the child that a recipe would make of these parents."""
    return key_of(RecipeRecord(recipe.kind, recipe.settings()), [parent.record.id for parent in parents])


def key_of(recipe: RecipeRecord, parents: Sequence[str]) -> str:
    """The digest of a recipe and its parents."""
    return digest([recipe, list(parents)])


def now() -> str:
    """The time, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def is_service(recipe: Recipe) -> bool:
    """Whether a recipe only names a model elsewhere, or a function: it may never answer."""
    return recipe.settings().get("engine") in ("call", "remote", "url")


_REDIRECTION = "adapter_config.json"


def refuse_redirection(model: Model, folder: Path) -> None:
    """Raise Refused where whole weights come with an adapter's config.

    transformers would load the base that the config names, any folder or repository, in place of the files
    that are recorded.
    """
    if model.format == "adapter":
        return
    if any(PurePosixPath(file.path).name == _REDIRECTION for file in model.files):
        raise Refused(
            f"'{model.name}' holds an {_REDIRECTION}, which names other weights than its own. "
            f"Delete {folder.parent}, take that file out of the source, and pull it again.",
            code="adapter-config",
        )


def refuse_strays(path: Path, model: Model) -> None:
    """Nothing outside a model's own folder is read or hashed in its name."""
    advice = f"Delete {path.parent} and pull or grow it again."
    for file in model.files:
        inner = PurePosixPath(file.path)
        if inner.is_absolute() or ".." in inner.parts or set(file.path) & set("\\:\0") or not inner.parts:
            raise Refused(f"{path}: the path {file.path[:120]!r} leads outside the model's folder. {advice}")
    if model.id != path.parent.name:
        raise Damaged(f"{path}: it is recorded under another id ({model.id[:32]!r}). {advice}")


def walk(folder: Path) -> list[str]:
    """Every file under `folder`, as sorted POSIX paths relative to it."""
    return sorted(
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or p.is_file()
    )


def hash_files(out: Path, kind: str, has_weights: bool, watch: Watch | None = None) -> tuple[FileHash, ...]:
    """Hash and sync what a recipe wrote. Raises Refused for a link, and Damaged if the child is not whole,
    or has files although it is remote."""
    paths = walk(out)
    for path in paths:
        if (out / path).is_symlink():
            raise Refused(f"The recipe '{kind}' made a symbolic link ({path}); a model holds its own files.")
        if path.endswith((".part", ".tmp", ".incomplete")):
            raise Damaged(f"The recipe '{kind}' left an unfinished file ({path}); nothing was recorded.")
        if not (out / path).stat().st_size:
            raise Damaged(f"The recipe '{kind}' wrote an empty file ({path}); nothing was recorded.")
    if not has_weights and paths:
        raise Damaged(f"The recipe '{kind}' wrote {paths[0]} for a remote model; nothing was recorded.")
    if has_weights and not any(path.endswith((".safetensors", ".gguf")) for path in paths):
        raise Damaged(f"The recipe '{kind}' wrote no weights; nothing was recorded.")
    with phase(watch, "hashing files", n_total=len(paths)) as meter:
        return tuple(meter.each(paths, lambda path: _hash_and_sync(out, path)))


def _hash_and_sync(out: Path, path: str) -> FileHash:
    handle = os.open(out / path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    return FileHash(path, (out / path).stat().st_size, hash_file(out / path))


def check_file(folder: Path, file: FileHash) -> str | None:
    """The problem of a recorded file; None if it is whole."""
    path = folder / file.path
    if not path.is_file():
        return f"{path}: missing"
    if (size := path.stat().st_size) != file.bytes:
        return f"{path}: {size:,} bytes, {file.bytes:,} were recorded"
    return None if hash_file(path) == file.sha256 else f"{path}: its SHA-256 is not the recorded one"


def file_problems(folder: Path, model: Model, watch: Watch | None = None) -> list[str]:
    """Hash every file; one line for each that is missing, changed or not recorded.

    watch: gets the phase "checking files", unless the model has none, as one behind an API.
    """
    with phase(watch if model.files else None, "checking files", model.name, len(model.files)) as meter:
        checked = meter.each(model.files, lambda file: check_file(folder, file))
        problems = [problem for problem in checked if problem]
    known = {file.path for file in model.files}
    problems += [f"{folder / path}: not in the record" for path in walk(folder) if path not in known]
    if identity(model.recipe, model.parents, model.files) != model.id:
        problems.append(f"{folder.parent / 'model.json'}: the record does not give its own id")
    return problems


def require_intact(
    folder: Path, model: Model, note: Path, hashed: bytes | None = None, watch: Watch | None = None
) -> None:
    """Raise Damaged or Refused if the files are not the recorded ones.

    note: a file that keeps the stamps of verified files, so that they are not hashed every time.
    hashed: the stamps of the files when they were hashed for the record.
    """
    refuse_redirection(model, folder)
    stamp = stamp_files(folder)
    is_same = identity(model.recipe, model.parents, model.files) == model.id
    if is_same and note.is_file() and note.read_bytes() == stamp:
        return
    if not (is_same and stamp == hashed) and (damage := file_problems(folder, model, watch)):
        raise Damaged(
            f"'{model.name}' does not answer: {damage[0]}. Its bytes are not the ones of its id; delete"
            f" {folder.parent} and pull or grow it again."
        )
    with suppress(OSError, HeredityError):  # a store that cannot be written to is hashed every time
        write_atomic(note, stamp)


def stamp_files(folder: Path) -> bytes:
    """The stamps of all files of a folder; they outlive a move of the folder on its disk."""
    return encode({path: stamp_file(folder / path) for path in walk(folder)})


def sizes_fit(folder: Path, model: Model) -> bool:
    """Whether every recorded file is there in its size; nothing is hashed."""
    return all((p := folder / f.path).is_file() and p.stat().st_size == f.bytes for f in model.files)


def identity(recipe: RecipeRecord, parents: Sequence[str], files: Sequence[FileHash]) -> str:
    """A model's id: a digest over its recipe, its parents' ids and its files."""
    return digest([recipe, tuple(parents), tuple(files)])


def read_record(path: Path) -> Model:
    """A model.json. Raises NotComparable for another schema, Damaged or Refused for anything that is not a
    record."""
    data = read_file(path)
    with suppress(ValueError, TypeError, AttributeError):
        if (schema := json.loads(data).get("schema", SCHEMA)) != SCHEMA:
            raise NotComparable(
                f"{path}: written under schema {schema}, this heredity reads schema {SCHEMA}.",
                code="schema-mismatch",
            )
    try:
        model = msgspec.json.decode(data, type=Model)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Damaged(
            f"{path}: not a model's record ({error}). Delete {path.parent} and pull or grow it again."
        ) from error
    refuse_strays(path, model)
    return with_form(model, path.parent / "files")


def with_form(model: Model, folder: Path) -> Model:
    """The record with the architecture and the quantization of its safetensors, unless it has them."""
    if model.format != "safetensors" or model.architecture is not UNSET:
        return model
    form = form_of(folder)
    return msgspec.structs.replace(
        model, architecture=form.architecture or UNSET, quantization=form.quantization or UNSET
    )


@contextmanager
def workshop(tmp: Path) -> Iterator[Path]:
    """A temporary folder that this process holds; folders of dead processes are cleared on the way."""
    bench = tmp / uuid.uuid4().hex
    with Lock(tmp, wait_seconds=60):  # so that no one clears a folder between its making and its locking
        clear_dead(tmp)
        held = Lock(bench).__enter__()
    try:
        yield bench
    finally:
        held.__exit__(None, None, None)
        shutil.rmtree(bench, ignore_errors=True)


def clear_dead(tmp: Path) -> None:
    """Delete the folders of dead processes. The caller holds the lock of `tmp`."""
    for folder in tmp.iterdir():
        if not folder.is_dir():
            continue
        with suppress(Busy), Lock(folder):  # busy: someone is at work there
            shutil.rmtree(folder, ignore_errors=True)


def versions(used: Mapping[str, str]) -> dict[str, str]:
    """The versions that made a model: heredity, Python, the system, and the recipe's packages."""
    return {"heredity": __version__, "python": platform.python_version(), **used, "system": sys.platform}


def refuse_other_than_recipe(recipe: object) -> None:
    """Raise UsageError for a value that is not a recipe."""
    if isinstance(recipe, type) or not isinstance(recipe, Recipe):
        raise UsageError(
            f"{str(recipe)[:80]!r} is not a recipe. Give a value such as h.Lora(data=...) or, by its kind, "
            'h.recipe("lora", data=...).'
        )


class Store:
    """A folder of models, downloads and answers.

    root     None: HEREDITY_STORE, or ~/.cache/heredity.
    mirrors  A file of other sources for the catalogue's models, such as examples/mirrors.toml. None:
             HEREDITY_MIRRORS, or no mirrors, so that `pull` goes to the model hub only.
    device   Where models of this store answer and learn: "cpu", "cuda", "cuda:1", "mps". None: the fastest
             that torch finds (host.choose_device); of several GPUs each loaded model takes the next.
    """

    def __init__(
        self,
        root: Path | str | None = None,
        mirrors: Path | str | None = None,
        device: Device | str | None = None,
    ) -> None:
        host.configure()
        self.wanted_device = host.read_device(device) if isinstance(device, str) else device
        self._turns = itertools.count()
        self.root = Path(root) if root is not None else default_root()
        self.downloads = self.root / "downloads"
        named = mirrors or os.environ.get("HEREDITY_MIRRORS")
        self.mirrors = Path(named).expanduser() if named else None
        self.report = Reporter()  # of the phases of its work, and of engines that are loaded from it
        self._hashed: dict[str, bytes] = {}  # by id: the stamps of files that were hashed for a record

    def models(self) -> list[Model]:
        """Every model of the store whose record can be read, by name and then id; the others: `damaged`."""
        return sorted(self._scan()[0], key=lambda model: (model.name, model.id))

    def damaged(self) -> list[tuple[Path, str]]:
        """Every model.json that cannot be read, with why and what to do; [] in a whole store."""
        return [(path, str(error)) for path, error in self._scan()[1]]

    def get(self, name: str | Callable[..., Any]) -> Grown:
        """A model by its name, by the start of its id, by its catalogue alias, or as "scripted:NAME".

        The name of a known model behind an API ("gpt-5") stands for its reference "remote:...".

        A target that needs no download ("llamacpp:NAME", "kv4:NAME", ...; recipes/targets) is recorded unless
        it is already. A model elsewhere ("remote:...", "url:...") and a function ("call:...", or a value) may
        never answer. They are recorded when they first do, or by `pull`.

        Raises UnknownName with the nearest name, Unavailable if it is in the catalogue
        but not pulled. A record that cannot be read raises its own error.
        """
        if callable(name):
            name = registry.load_as(FunctionTarget, "recipes.targets", "call").keep(name)
        refuse_malformed(name)
        if name.startswith("scripted:"):
            return rule_model(name)
        if (target := target_of(name)) is not None:
            recipe, parents = target.resolve(self, name)
            known = self.made_by(recipe, parents)
            return known or (
                self._grow(recipe, (), is_recorded=False)
                if is_service(recipe)
                else self.grow(recipe, parents)
            )
        models = self.models()
        matches = models_named(models, name)
        if not matches and (ref := services.reference(name)) is not None:
            return self.get(ref)
        matches = matches or [model for model in models if len(name) >= 4 and model.id.startswith(name)]
        if not matches:
            raise self._unreadable(name) or self._unknown(name, [model.name for model in models])
        return self._only_one(matches, name)

    def by_id(self, ident: str, kind: str = "model") -> Grown:
        """The model with exactly this id. For ids that a file holds: nothing else is looked up.

        Raises UnknownName if the store has no such model, or the error of a record that cannot be read.
        """
        path = self.root / "models" / ident / "model.json"
        if not is_digest(ident) or not path.is_file():
            raise UnknownName(kind, ident[:80], (), "heredity models")
        record = read_record(path)
        return Grown(record, self.folder(record))

    def named(self, name: str) -> Grown:
        """The one model with exactly this name, catalogue alias or id. For names that a file holds.

        Unlike `get`, it resolves no target ("call:...", "url:...", "remote:...") and no start of an id. A
        file can therefore neither import code nor choose a server. Raises UnknownName, and UsageError if
        several models have the name.
        """
        if is_digest(name):
            return self.by_id(name)
        models = self.models()
        if not (matches := models_named(models, name)):
            raise UnknownName("model", name, [model.name for model in models], "heredity models")
        return self._only_one(matches, name)

    def folder(self, model: Model) -> Path:
        """The folder that holds the model's files."""
        return self.root / "models" / model.id / "files"

    def device(self, wanted: Device | None = None) -> Device:
        """The device for the next model: `wanted`, the store's own, or the GPUs in turn.

        Raises Unavailable if this machine does not have it.
        """
        return host.choose_device(wanted or self.wanted_device, next(self._turns))

    def cache(self) -> ResponseCache:
        """The answers that the studies of this store share."""
        return ResponseCache(self.root / "cache.sqlite")

    def grow(
        self,
        recipe: Recipe,
        parents: Grown | Sequence[Grown] = (),
        device: Device | str | None = None,
    ) -> Grown:
        """Make a child from its parents, hash its files and record it; an existing id is returned as it is.

        `parents` may be one model. The recipe runs each time, on the parents in the form that they are
        stored in. See `grow_once`, which avoids both. device: the one that computes; None: the store's. The
        record keeps it, and the id does not depend on it. Raises UsageError if `recipe` is not a recipe, and
        Damaged if a parent's files are not the recorded ones or the result is empty.
        """
        refuse_other_than_recipe(recipe)
        if isinstance(device, str):
            device = host.read_device(device)
        parents = self._with_teachers(recipe, [parents] if isinstance(parents, Grown) else parents)
        for parent in parents:
            if problems := self.verify(parent.record):
                raise Damaged(f"Nothing is grown from a damaged model '{parent.record.name}': {problems[0]}")
        if isinstance(recipe, Resuming):
            with Lock(folder := self.training(recipe, parents)):
                write_run(folder, recipe, parents)
                grown = self._grow(recipe.at(folder), parents, device)
            shutil.rmtree(folder, ignore_errors=True)
            return grown
        return self._grow(recipe, parents, device)

    def training(self, recipe: Recipe, parents: Sequence[Grown] = ()) -> Path:
        """The folder in which a long recipe keeps its checkpoints, for processes that help it."""
        return self.root / "training" / wanted_key(recipe, parents)

    def keep(self, grown: Grown) -> Grown:
        """Record a model elsewhere, unless it is recorded already."""
        if (self.root / "models" / grown.record.id / "model.json").exists():
            return grown
        with workshop(self.root / "tmp") as bench:
            (out := bench / "child" / "files").mkdir(parents=True)
            write_record(grown.record, out.parent)
            return self.receive(grown.record, out.parent)

    def _grow(
        self,
        recipe: Recipe,
        parents: Sequence[Grown],
        device: Device | None = None,
        is_recorded: bool = True,
    ) -> Grown:
        started, made_on = time.monotonic(), None
        if isinstance(recipe, Computing):
            made_on = self.device(device)
            recipe = recipe.on(made_on)
        with workshop(self.root / "tmp") as bench:
            (out := bench / "child" / "files").mkdir(parents=True)
            with host.explain_out_of_memory(
                f"'{recipe.kind}'", "Close other programs, or take a smaller model."
            ):
                description = recipe.apply(parents, out)
            stamp = stamp_files(out)
            files = hash_files(out, recipe.kind, description.format != "remote", self.report)
            made = Made(
                now(),
                platform.node(),
                round(time.monotonic() - started, 3),
                versions(description.versions),
                UNSET if made_on is None else made_on.title,
            )
            record = with_form(record_of(recipe, parents, files, description, made), out)
            refuse_strays(self.root / "models" / record.id / "model.json", record)
            if not is_recorded:
                return Grown(record, self.folder(record))
            write_record(record, out.parent)
            self._hashed[record.id] = stamp
            return self.receive(record, out.parent)

    def pull(self, ref: str, progress: Watch | None = None, announce: Announce | None = None) -> Grown:
        """Get a foundation model: a catalogue name, "hf:ORG/REPO[@revision]", a .gguf file, or a folder.

        Files that exist already are not downloaded again. `announce` is called before any weights are
        fetched. Sources, hashes and errors: see recipes/pull/recipe.py.
        """
        if (recipe := self._puller(ref, progress)) is None:
            model = self.get(ref)
            return self.keep(model) if model.record.format == "remote" else model
        known = self.made_by(recipe, []) if recipe.pins else None
        if known and {file.path: file.sha256 for file in known.record.files} == recipe.pins:
            return known
        if announce is not None:
            announce(recipe.preview())
        return self.grow(recipe)

    def preview(self, ref: str) -> Preview:
        """The model that `pull` would fetch: its engine, memory and terms, without a byte of its weights.

        Raises what `pull` raises before the weights, and UsageError for a target that needs no pull.
        """
        if (recipe := self._puller(ref)) is None:
            raise UsageError(f"'{ref}' needs no pull: name it wherever a model goes.")
        return recipe.preview()

    def _puller(self, ref: str, progress: Watch | None = None) -> Pull | None:
        """The recipe that fetches `ref`; None for a target, of which there is nothing to fetch."""
        refuse_malformed(ref)
        if ref.partition(":")[0] in TARGETS or services.reference(ref) is not None:
            return None
        puller = registry.load_as(Puller, "recipes", "pull")
        return puller.resolve(ref, self.downloads, progress, self.mirrors)

    def grow_once(
        self, recipe: Recipe, parents: Sequence[Grown], device: Device | str | None = None
    ) -> Grown:
        """Make a child of the whole weights (`whole`) of its parents with `grow`, unless the store has it.

        Raises Unavailable if a parent does not generate text, and UsageError if the recipe is not for it.
        """
        refuse_other_than_recipe(recipe)
        graph.refuse_childless(recipe, [parent.record for parent in parents])
        whole = self._with_teachers(recipe, [self.whole(parent) for parent in parents])
        return self.made_by(recipe, whole) or self.grow(recipe, whole, device)

    def ready(self, model: Grown | Model) -> Grown:
        """The form that its engine loads: of a GGUF or packed weights the dequantized child, made once.

        Otherwise itself. Its files are the recorded ones: hashed once, again if touched. Raises Damaged.
        """
        grown = Grown(model, self.folder(model)) if isinstance(model, Model) else model
        self._trust(grown.record)
        if grown.record.format == "adapter":
            self._trust(self.base(grown).record)
        return self._dequantized(grown) if engines.is_converted(grown.record) else grown

    def whole(self, model: Grown) -> Grown:
        """The form that can be learned from and changed: whole safetensors.

        Of a GGUF or int8 the dequantized child, of an adapter the merged one, each made once and recorded;
        else the model itself. Raises Unavailable if its weights are not on this machine.
        """
        ready = self.ready(model)
        if ready.record.format == "int8":
            return self._dequantized(ready)
        if ready.record.format == "adapter" and ready.record.recipe.kind == "engine":
            return self.whole(self.by_id(ready.record.parents[0]))  # the adapter itself
        if ready.record.format == "adapter":
            merger = registry.load_as(AdapterMerger, "recipes", "merge_adapter")
            return self._once(merger.MergeAdapter, [ready, self.base(ready)])
        if how := ready.record.quantization:
            message = f"Nothing is grown from '{model.record.name}': its format '{how}' is not dequantized."
            raise Unavailable(message, code="architecture-unsupported")
        if ready.record.format != "safetensors":
            raise Unavailable(f"The weights of '{model.record.name}' are not here; nothing is grown from it.")
        return ready

    def base(self, adapter: Grown) -> Grown:
        """The model that an adapter applies to. Raises UnknownName if it is not in this store."""
        if (base := engines.base_of(adapter.record)) is None:
            raise Damaged(f"'{adapter.record.name}' is an adapter, and its record names no base.")
        return self.by_id(base)

    def _dequantized(self, parent: Grown) -> Grown:
        return self._once(registry.load_as(Dequantizer, "recipes", "dequantize").Dequantize, [parent])

    def _once(self, make: Callable[..., Recipe], parents: Sequence[Grown]) -> Grown:
        recipe = make(watch=self.report)
        child = self.made_by(recipe, parents) or self.grow(recipe, parents)
        self._trust(child.record)
        return child

    def verify(self, model: Model) -> list[str]:
        """Hash every file again; one line for each that is missing, changed or not recorded."""
        folder = self.folder(model)
        return [] if model.format == "scripted" else file_problems(folder, model, self.report)

    def ancestors(self, model: Model) -> list[Model]:
        """Parents, their parents and so on, each once, nearest first. A missing one is an UnknownName."""
        by_id = {m.id: m for m in self.models()}
        ancestors = graph.ancestors(model, by_id)
        missing = [ident for one in (model, *ancestors) for ident in one.parents if ident not in by_id]
        if missing:
            raise self._unreadable(missing[0]) or UnknownName("model", missing[0], by_id, "heredity models")
        return ancestors

    def descendants(self, model: Model) -> list[Model]:
        """Children, their children and so on, each once, nearest first."""
        return graph.descendants(model, self.models())

    def family(self, model: Model) -> graph.Family:
        """The model and its descendants that can answer, each once in whatever forms it is stored."""
        return graph.family(model, self.models(), self._why_silent)

    def draw(self, model: Model) -> str:
        """The model's descent as a tree, the model itself on top."""
        return graph.draw(model, {m.id: m for m in self.models()})

    # --- inside ---

    def _with_teachers(self, recipe: Recipe, parents: Sequence[Grown]) -> list[Grown]:
        """The parents, and behind them the models that wrote the answers, unless they are among them."""
        there = {parent.record.id for parent in parents}
        more = [each for each in (recipe.teachers if isinstance(recipe, Taught) else ()) if each not in there]
        return [*parents, *(self.by_id(each, "teacher of these answers") for each in more)]

    def _only_one(self, models: Sequence[Model], name: str) -> Grown:
        if len(models) > 1:
            ids = ", ".join(f"{model.id[:12]} ({how(model)})" for model in models)
            message = f"{len(models)} models answer to '{name}': {ids}. Name one by the start of its id."
            raise UsageError(message)
        return Grown(models[0], self.folder(models[0]))

    def _scan(self) -> tuple[list[Model], list[tuple[Path, HeredityError]]]:
        good, bad = [], []
        for path in sorted((self.root / "models").glob("*/model.json")):
            try:
                good.append(read_record(path))
            except HeredityError as error:
                bad.append((path, error))
        return good, bad

    def _why_silent(self, model: Model) -> str:
        if why := why_not_generative(model):
            return why
        try:
            engine_loader(model)
            if model.format == "adapter":
                self.base(Grown(model, self.folder(model)))
        except HeredityError as error:
            return str(error)
        return ""

    def _unreadable(self, name: str) -> HeredityError | None:
        """The error of the record with this name or start of an id, if it cannot be read."""
        names = [f'"name": "{each}"' for each in (name, catalog.canonical(name))]
        for path, error in self._scan()[1]:
            text = path.read_text("utf-8", "replace")
            is_named = any(each in text for each in names)
            if is_named or (len(name) >= 4 and path.parent.name.startswith(name)):
                return error
        return None

    def _trust(self, model: Model) -> None:
        """Raise Damaged if the files of a model that is about to answer are not the recorded ones."""
        if model.format != "scripted":
            note = self.root / "verified" / f"{model.id}.json"
            require_intact(self.folder(model), model, note, self._hashed.get(model.id), self.report)

    def _unknown(self, name: str, stored: list[str]) -> Exception:
        if catalog.find(name) is not None:
            return Unavailable(
                f"Model '{name}' is not in this store yet. Get it: heredity pull {name}",
                code="model-not-pulled",
            )
        known = [*stored, *catalog.names(), *services.known_models()]
        return UnknownName("model", name, known, "heredity models")

    def made_by(self, recipe: Recipe, parents: Sequence[Grown]) -> Grown | None:
        """The newest whole model that this recipe made from these parents."""
        want = wanted_key(recipe, self._with_teachers(recipe, parents))
        for model in sorted(self.models(), key=lambda model: model.made.at, reverse=True):
            if key_of(model.recipe, model.parents) == want and sizes_fit(self.folder(model), model):
                return Grown(model, self.folder(model))
        return None

    def receive(self, record: Model, child: Path) -> Grown:
        home = self.root / "models" / record.id
        home.parent.mkdir(parents=True, exist_ok=True)
        with Lock(self.root / "tmp", wait_seconds=60):
            if (home / "model.json").exists():
                with suppress(Damaged):
                    known = read_record(home / "model.json")
                    if not self.verify(known):
                        return Grown(known, self.folder(known))
            if home.exists():  # damaged, and its whole replacement is at hand
                shutil.rmtree(home)
            os.replace(child, home)  # noqa: PTH105
        sync_folder(home.parent)
        return Grown(record, self.folder(record))


def grow(
    recipe: Recipe,
    parents: Grown | Sequence[Grown] = (),
    store: Store | None = None,
    device: Device | str | None = None,
) -> Grown:
    """Make a child in `store` (None: its parents' store, or the default one). See Store.grow."""
    parents = [parents] if isinstance(parents, Grown) else parents
    return (store or _store_of(parents)).grow(recipe, parents, device)


_SEARCHED = ContextVar["Store | None"]("searched", default=None)


@contextmanager
def searching_in(store: Store | None) -> Iterator[None]:
    """Search with the models of this store; None changes nothing. A thread has a context of its own."""
    before = _SEARCHED.set(store or _SEARCHED.get())
    try:
        yield
    finally:
        _SEARCHED.reset(before)


def search_store() -> Store:
    """The store of the search that runs now."""
    return _SEARCHED.get() or Store()


def _store_of(parents: Sequence[Grown]) -> Store:
    homes = {parent.folder.parents[2] for parent in parents if parent.folder.parts[-3:-2] == ("models",)}
    if len(homes) > 1:
        places = ", ".join(sorted(map(str, homes)))
        raise UsageError(f"The parents lie in {len(homes)} stores ({places}); pull them into one.")
    return Store(homes.pop()) if homes else Store()


def refuse_malformed(ref: str) -> None:
    """Raise UsageError for text that cannot be a reference of a model, before anything looks it up."""
    why = ""
    if not ref.strip():
        why = "a reference of a model is empty"
    elif len(ref) > _MAX_REFERENCE:
        why = f"a reference of {len(ref):,} characters is too long"
    elif "\0" in ref or any("\ud800" <= each <= "\udfff" for each in ref):
        why = "a reference holds bytes that are not text"
    else:
        heads = ref.split(":", _MAX_NESTED)[:-1]
        if len(heads) == _MAX_NESTED and set(heads) <= TARGETS.keys():
            why = f"'{ref[:40]}...' names an engine in front of an engine, again and again"
    if why:
        raise UsageError(
            f"{why}. Write a name (heredity models --catalog), hf:ORG/REPO, a path, or ENGINE:NAME."
        )


def models_named(models: Sequence[Model], name: str) -> list[Model]:
    """The models with this name, or else those with the catalogue's name that it is short for."""
    matches = [model for model in models if model.name == name]
    return matches or [model for model in models if model.name == catalog.canonical(name)]


def target_of(ref: str) -> Target | None:
    """The target that a reference "PREFIX:..." names; None for the name of a model."""
    prefix = ref.partition(":")[0]
    if prefix == ref or prefix not in TARGETS:
        return None
    return registry.load_as(Target, "recipes.targets", TARGETS[prefix])


def rule_model(name: str) -> Grown:
    """A scripted model. Raises UnknownName with the nearest rule."""
    from heredity.engines.scripted import parse_rule

    parse_rule(name)
    return scripted(name)


def scripted(ref: str) -> Grown:
    """A record for a rule-driven model "scripted:NAME", which has no files and lives in no store."""
    recipe = RecipeRecord("scripted", {"name": ref.removeprefix("scripted:")})
    made = Made("", "", 0.0, {})
    record = Model(
        identity(recipe, (), ()), ref, "scripted", "text", "none", "scripted", (), recipe, (), made
    )
    return Grown(record, Path())


# --- speeds -----------------------------------------------------------------------------------------
# The time that a model will take for an answer, before it is loaded: the fastest and the slowest that is
# expected. It follows from the speed that the engine measured when it first loaded the model. Without one it
# is a guess from the size of the weights.

USUAL_BYTES = 400e6  # of a model whose size is not known
_SECONDS = (0.15, 1.8)  # of one request of 128 tokens to a model of this size on two cores, at best and worst
_OF_TUNED = (0.5, 4.0)  # of the time of answers in the widest batch: prompts are read, batches may be narrow


class ModelSpeed(NamedTuple):
    """The bytes of a model, and its tokens per second in its widest batch; 0.0 if that was not measured."""

    n_bytes: int = 0
    tokens_per_second: float = 0.0


def speed_seconds(max_tokens: int, speed: ModelSpeed | None) -> tuple[float, float]:
    """The seconds of one request at best and at worst, by the measured speed or else by the size."""
    if speed is not None and speed.tokens_per_second > 0:
        whole = max_tokens / speed.tokens_per_second
        return _OF_TUNED[0] * whole, _OF_TUNED[1] * whole
    return request_seconds(max_tokens, USUAL_BYTES if speed is None else speed.n_bytes)


def request_seconds(max_tokens: int, n_bytes: float = USUAL_BYTES) -> tuple[float, float]:
    """A guess of the seconds of one request to a model of `n_bytes` on two cores, at best and at worst."""
    size = max(0.25, n_bytes / USUAL_BYTES) * max_tokens / 128
    return _SECONDS[0] * size, _SECONDS[1] * size


class _Tuned(msgspec.Struct):
    """The speed of a model in a tuning file of the torch engine."""

    tokens_per_second: dict[str, float]


def tuned_speed(path: Path) -> float:
    """Tokens per second in the widest batch that was measured for a model; 0.0 if none was."""
    try:
        tuned = msgspec.json.decode(path.read_bytes(), type=_Tuned)
    except (OSError, msgspec.DecodeError):
        return 0.0
    return max(tuned.tokens_per_second.values(), default=0.0)


def speeds_of(models: Iterable[Grown], store: Store) -> dict[str, ModelSpeed]:
    """The sizes and speeds of models by id. A GGUF may have been asked in its dequantized form.

    A model that was never asked is as fast as its parent.
    """
    loaded = {each.parents[0]: each.id for each in store.models() if each.recipe.kind == "dequantize"}
    by_model = dict[str, ModelSpeed]()
    for each in (grown.record for grown in models):
        ids = (each.id, *each.parents[:1])
        forms = (form for id_ in ids for form in (id_, loaded.get(id_, id_)))
        speeds = (tuned_speed(store.root / "tuning" / form) for form in forms)
        by_model[each.id] = ModelSpeed(
            sum(file.bytes for file in each.files), next(filter(None, speeds), 0.0)
        )
    return by_model
