"""The models that a server answers for, by name, with adapters over one base that is loaded once.

Adapters may come and go while the server runs, by requests with the bodies of vLLM. `lora_path` is an adapter
of the store by its name or id, never a path; without it `lora_name` is. An adapter whose form cannot share
its base has an engine of its own (formats/adapted.py).

Promises: a name that means two models, or none, is refused with the names that there are. A model that comes
later has the guards of its application and the request log, like those of the start. A request ends with the
adapter with which it has begun. A refused adapter changes nothing. A dropped one answers what it has begun,
and is freed afterwards.
Leaves to others: which adapters fit and batching them (engines/torch/adapters.py), and HTTP (app.py).
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

from heredity import engines
from heredity.application.guarded import identified
from heredity.application.guards import GuardReaders
from heredity.application.spec import Application
from heredity.core import host
from heredity.core.errors import (
    EngineFailure,
    HeredityError,
    Unavailable,
    UnknownName,
    UsageError,
    did_you_mean,
)
from heredity.core.progress import phase
from heredity.core.records import Model, Reply, Request
from heredity.deploy.serve import ServerSettings, schema
from heredity.deploy.serve.answers import Served, ServedGuards
from heredity.deploy.serve.embeddings import EmbeddingService
from heredity.deploy.serve.request_log import RequestLog
from heredity.deploy.serve.schema import Refusal
from heredity.deploy.serve.worker import EngineWorker, Hears, Service, Ticket, shared, shows_tools
from heredity.engines import AddressedRequest, Engine
from heredity.lineage.store import refuse_silent
from heredity.lineage.types import Grown

if TYPE_CHECKING:
    from heredity.engines.torch.adapters import SharedBase
    from heredity.lineage.store import Store


class ModelRegistry:
    """The served models. `served` is replaced as a whole, so that a request sees one state of it.

    readers: the models of guards. log: gets each conversation with its answer.
    """

    def __init__(
        self, served: Sequence[Served], embedders: Sequence[EmbeddingService] = (),
        readers: GuardReaders | None = None, log: RequestLog | None = None,
    ) -> None:  # fmt: skip
        self._readers, self._log = readers, log
        self._n_found_before: Counter[str] = Counter()
        self.served, self.embedders = tuple(map(self._guarded, served)), tuple(embedders)

    def _guarded(self, one: Served) -> Served:
        return one._replace(
            guards=ServedGuards.from_application(one.application, self._readers), log=self._log
        )

    @property
    def n_found(self) -> Counter[str]:
        """The answers that guards touched since the start, by the label of the guard."""
        counts = (one.guards.n_found for one in self.served if one.guards is not None)
        return sum(counts, start=self._n_found_before.copy())

    def replace(self, old: Sequence[Served], new: Sequence[Served]) -> None:
        """Answer for other models instead of some. The old ones still end what they have begun."""
        self.served = (*(one for one in self.served if one not in old), *map(self._guarded, new))
        for one in old:
            if one.guards is not None:
                self._n_found_before += one.guards.n_found

    def name_of(self, one: Served) -> str:
        """Return the shortest name that is this model's only."""
        return next((name for name in one.names if self.having(name) == [one]), one.names[-1])

    def having(self, name: str) -> list[Served]:
        """Return the models that have a name."""
        return [one for one in self.served if name in one.names]

    def named(self, name: str) -> Served:
        """Return the one model of a name. Raises Refusal."""
        if len(matches := self.having(name)) == 1:
            return matches[0]
        if self.encoder(name) is not None:
            raise Refusal(400, "a sentence encoder answers at /v1/embeddings", "not_supported", param="model")
        names = [self.name_of(one) for one in matches or self.served]
        if matches:
            message = f"'{name[:200]}' is served more than once here. Name one: {', '.join(names)}"
            raise Refusal(404, message, "model_not_found", param="model")
        hint = did_you_mean(name[:200], names) or f" Available: {', '.join(names)}."
        raise Refusal(404, f"no model is named '{name[:200]}' here.{hint}", "model_not_found", param="model")

    def encoder(self, name: str) -> EmbeddingService | None:
        """Return the sentence encoder of a name; None if it has no such encoder."""
        return next((each for each in self.embedders if name in each.names), None)

    def embedder(self, name: str) -> EmbeddingService:
        """Return the sentence encoder of a name. Raises Refusal."""
        if (encoder := self.encoder(name)) is not None:
            return encoder
        message = f"'{self.named(name).model.name}' is not a sentence encoder, and gives no embeddings"
        raise Refusal(400, message, "not_supported", param="model")

    def about(self, one: Served, name: str = "") -> dict[str, object]:
        """Describe a served model, under the name that is this model's only or another one of it."""
        layer = one.application
        about = {
            "engine": one.service.engine.name,
            "application": None if layer is None else {"name": layer.name, "digest": layer.digest},
        }
        return described(one.model, name or self.name_of(one), **about)

    def about_all(self) -> list[dict[str, object]]:
        """Describe all models. One that was started under a short name is listed under both."""
        models = [self.about(one, name) for one in self.served for name in ("", *self._short_names(one))]
        return [*models, *(described(e.model, name) for e in self.embedders for name in ("", *e.started_as))]

    def _short_names(self, one: Served) -> list[str]:
        """The names that the operator gave to a model, each in the shortest form that means it alone."""
        forms = map(one.with_application, one.started_as)
        short_names = (next((name for name in each if self.having(name) == [one]), "") for each in forms)
        return [name for name in short_names if name]


def described(model: Model, name: str = "", **more: object) -> dict[str, object]:
    """Describe a model as the API lists it."""
    about = {
        "id": model.id,
        "parents": model.parents,
        "recipe": model.recipe.kind,
        "licence": model.licence,
        **more,
    }
    head = {"id": name or model.name, "object": "model", "created": 0, "owned_by": model.family}
    return {**head, "heredity": about}


B = TypeVar("B", bound=msgspec.Struct)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


class LoadBody(msgspec.Struct):
    """The body of /v1/load_lora_adapter."""

    lora_name: str
    lora_path: str | None = None
    load_inplace: bool = False


class UnloadBody(msgspec.Struct):
    """The body of /v1/unload_lora_adapter. lora_int_id: vLLM's own number, which is not used."""

    lora_name: str
    lora_int_id: int | None = None


@dataclass(frozen=True, slots=True)
class ServingRules:
    """How every model is served: in these applications, under these rules of Served."""

    layers: Sequence[Application | None] = (None,)
    may_draw: bool = False
    ignores: bool = False

    def served(self, model: Model, service: Service, started_as: tuple[str, ...] = ()) -> list[Served]:
        """Return a model in each application. Raises if its engine cannot hold an answer as one demands.

        started_as: other names that the operator gave to it.
        """
        for layer in self.layers:
            if layer is not None:
                engines.check_schema(service.engine, layer.decoding)
        one = Served(model, service, None, self.may_draw, self.ignores, started_as=started_as)
        return [one._replace(application=layer) for layer in self.layers]


class BaseService:
    """A base in memory with its adapters, and the worker that answers for all of them.

    engine: of the base. Raises Unavailable if it cannot be shared.
    """

    def __init__(self, engine: Engine, most: int) -> None:
        from heredity.engines.torch.adapters import SharedBase
        from heredity.engines.torch.engine import TorchEngine

        if not isinstance(engine, TorchEngine):
            raise Unavailable(f"{engine.name} shares no base.", code="adapter-not-shared")
        self.shared: SharedBase = SharedBase(engine)
        self.folder = engine.folder
        self.worker = EngineWorker(self.shared, most)

    @property
    def base(self) -> AdapterService:
        """The service of the base."""
        return AdapterService(self.worker, self.shared.base, 0)

    def adapter(self, folder: Path) -> AdapterService:
        """Load the adapter in `folder`. Raises Unavailable or Damaged if it does not fit."""
        shared = self.shared
        engine = shared.add(folder, shared.read(folder))
        return AdapterService(self.worker, engine, engine.number, lambda: shared.remove(engine))


def by_base(models: Iterable[Grown], may_load: bool) -> dict[Path, list[Grown]]:
    """Return the models that may share a base in memory, by the folder of the base.

    may_load: adapters may come later, so that a base by itself is among them too.
    """
    by_folder: dict[Path, list[Grown]] = {}
    for one in models:
        record = one.record
        if engines.choose(record) != "torch" or engines.is_set(record):
            continue
        if record.format == "adapter":
            by_folder.setdefault(engines.base_folder(record, one.folder), []).append(one)
        elif record.format == "safetensors":
            by_folder.setdefault(one.folder, []).append(one)
    least = 1 if may_load else 2
    return {folder: each for folder, each in by_folder.items() if len(each) >= least}


class SharedServices(NamedTuple):
    """The bases in memory, and the services of the models that share them, by id."""

    bases: list[BaseService]
    services: dict[str, AdapterService]


def share(
    stack: ExitStack, store: Store, models: Iterable[Grown], load: Callable[[Grown], Engine], most: int,
    may_load: bool, tell: Callable[[str], None],
) -> SharedServices:  # fmt: skip
    """Load the bases that several of the models have in common, and their adapters.

    Models that are in no service have an engine of their own; `tell` names those that could have shared one.
    """
    bases: list[BaseService] = []
    services: dict[str, AdapterService] = {}
    for members in by_base(models, may_load).values():
        base = next((one for one in members if one.record.format != "adapter"), None)
        base = base or store.base(members[0])
        tell(f"loading {base.record.name} ...")
        engine = load(base)
        try:
            home = BaseService(engine, most)
        except Unavailable as error:
            engine.close()
            tell(str(error))
            continue
        stack.callback(home.worker.close)
        bases.append(home)
        for one in members:
            if one.record.format != "adapter":
                services[one.record.id] = home.base
                continue
            tell(f"loading {one.record.name} ...")
            try:
                services[one.record.id] = home.adapter(one.folder)
            except Unavailable as error:
                if error.code != "adapter-not-shared":
                    raise
                tell(f"{one.record.name} has an engine of its own. {error}")
    return SharedServices(bases, services)


@dataclass
class LoadedModels:
    """The models of a server. readers: of their guards. adapters: loads others; None if no caller may."""

    served: list[Served]
    encoders: list[EmbeddingService]
    readers: GuardReaders | None
    adapters: AdapterLoader | None

    @property
    def names(self) -> list[str]:
        """The names of the models."""
        models = (*(one.model for one in self.served), *(each.model for each in self.encoders))
        return list(dict.fromkeys(model.name for model in models))


def load_models(
    stack: ExitStack, store: Store, refs: Sequence[str], settings: ServerSettings,
    load: Callable[[Grown], Engine], announce: Callable[[Grown], None], note: Callable[[str], None],
) -> LoadedModels:  # fmt: skip
    """Load each model of a server once, and each base once. `stack` closes them.

    load: makes the engine of a model. announce: is called with each before its conversion. note: gets a line
    for each base that is loaded. Raises UsageError for an application that cannot be served.
    """
    from heredity.application.retrieval.models import open_embedder

    models = {ref: store.get(ref) for ref in refs}
    layers, readers = _applications(stack, store, settings.applications, load, announce)
    rules = ServingRules(layers, settings.free_decoding, settings.ignore_settings)
    asked = {one.record.id: one for one in models.values()}
    encoders = [one for one in asked.values() if one.record.modality == "text-embedding"]
    writers = [one for one in asked.values() if one not in encoders]
    for one in writers:
        refuse_silent(one.record)
    ready: dict[str, Grown] = {}
    for one in writers:
        announce(one)
        ready[one.record.id] = store.ready(one)
    most, may_load = settings.max_queue, settings.load_adapters
    bases, services = share(stack, store, ready.values(), load, most, may_load, note)
    loaded = LoadedModels([], [], readers, AdapterLoader(store, bases, rules) if may_load else None)
    for ident, form in ready.items():
        service: Service | None = services.get(form.record.id)
        if service is None:
            service = EngineWorker(load(form), most)
            stack.callback(service.close)
        record = asked[ident].record
        loaded.served += rules.served(record, service, _other_names(record, models))
    for one in encoders:
        with phase(store.report, "loading", one.record.name):
            embedder = open_embedder(one.record.id, store)
        encoder = EmbeddingService(embedder, most, _other_names(one.record, models))
        stack.callback(encoder.close)
        loaded.encoders.append(encoder)
    return loaded


def _applications(
    stack: ExitStack, store: Store, paths: Sequence[Path], load: Callable[[Grown], Engine],
    announce: Callable[[Grown], None],
) -> tuple[Sequence[Application | None], GuardReaders | None]:  # fmt: skip
    """The applications, and what reads for their guards. None is the model by itself. Raises UsageError."""

    def load_guard(name: str) -> Engine:
        announce(model := store.get(name))
        return load(model)

    layers, readers = [Application.load(path) for path in paths], None
    if any(layer.has_guard_models for layer in layers):
        from heredity.redteam.judges import Models
        from heredity.redteam.judges.guard import JudgeReaders

        readers = JudgeReaders(Models(lambda name: store.get(name).record.id, load_guard), shared)
        stack.callback(readers.close)
        layers = [identified(layer, readers) for layer in layers]
    for path, layer in zip(paths, layers, strict=True):
        if layer.rendering in ("theirs", "recorded"):
            raise UsageError(
                f'{path}: rendering "{layer.rendering}" belongs to a target that cannot be served.'
            )
    if len({layer.name for layer in layers}) < len(layers):
        raise UsageError(
            "Two applications have the same name; callers could not tell them apart.", code="name-twice"
        )
    return layers or [None], readers


def _other_names(record: Model, models: Mapping[str, Grown]) -> tuple[str, ...]:
    """The references of a model that are neither its name nor its id."""
    given = (ref for ref, one in models.items() if one.record.id == record.id)
    return tuple(ref for ref in given if ref not in (record.name, record.id))


@dataclass
class AdapterLoader:
    """Loads and unloads adapters while the server runs, one at a time.

    registry: of the server, which sets it.
    """

    store: Store
    bases: Sequence[BaseService]
    rules: ServingRules
    registry: ModelRegistry = field(default_factory=lambda: ModelRegistry(()))
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def load(self, raw: bytes) -> str:
        """Serve an adapter of the store. Raises a HeredityError, which `refusal` turns into a response."""
        body = _read(raw, LoadBody)
        name = body.lora_name
        if not _NAME.fullmatch(name):
            raise UsageError(f"'{name[:80]}' is no name of a model", code="bad-setting", key="lora_name")
        async with self._turn:
            old = self._of_name(name)
            self._refuse_taken(name, old, body.load_inplace)
            new = await asyncio.to_thread(self._load, name, body.lora_path or name)
            self._replace(old, new)
        return f"Success: LoRA adapter '{name}' added successfully."

    async def unload(self, raw: bytes) -> str:
        """Serve an adapter no longer. Raises as `load` does."""
        name = _read(raw, UnloadBody).lora_name
        async with self._turn:
            if not (old := self._of_name(name)):
                raise _unknown(f"no adapter is named '{name[:200]}' here", "lora_name")
            if not all(map(_is_adapter, old)):
                message = f"'{name[:200]}' is no adapter over a shared base, and stays as long as the server"
                raise UsageError(message, key="lora_name")
            self._replace(old, [])
        return f"Success: LoRA adapter '{name}' removed successfully."

    def _replace(self, old: Sequence[Served], new: Sequence[Served]) -> None:
        """Serve other models instead. The old ones end what they have begun."""
        self.registry.replace(old, new)
        for service in {id(one.service): one.service for one in old}.values():
            service.close()

    def _of_name(self, name: str) -> list[Served]:
        return [one for one in self.registry.served if one.model.name == name]

    def _refuse_taken(self, name: str, old: Sequence[Served], is_swap: bool) -> None:
        is_model = any(one not in old for one in self.registry.having(name)) or not all(map(_is_adapter, old))
        if is_model or self.registry.encoder(name) is not None:
            message = f"'{name}' is a model here that is no adapter over a shared base"
        elif old and not is_swap:
            message = f"an adapter '{name}' is served already; load_inplace replaces it"
        else:
            return
        raise UsageError(message, code="name-twice", key="lora_name")

    @host.temporary_helpers()
    def _load(self, name: str, ref: str) -> list[Served]:
        """Load an adapter, in a thread."""
        if not _NAME.fullmatch(ref):
            message = "lora_path takes the name or id of an adapter in the store of the server, never a path"
            raise UsageError(message, key="lora_path")
        try:
            grown = self.store.named(ref)
        except UnknownName:  # whose words name other models of the store
            raise _unknown(f"the store has no adapter '{ref}'", "lora_path") from None
        grown = self.store.ready(grown)
        record = grown.record
        if record.format != "adapter":
            raise UsageError(f"'{record.name}' is no adapter", key="lora_path")
        folder = engines.base_folder(record, grown.folder)
        home = next((each for each in self.bases if each.folder == folder), None)
        if home is None:
            message = f"the base of '{record.name}' is not served here, or shares no memory"
            raise UsageError(message, key="lora_path")
        service = home.adapter(grown.folder)
        try:
            return self.rules.served(msgspec.structs.replace(record, name=name), service)
        except BaseException:
            service.close()
            raise


def refusal(error: HeredityError) -> Refusal:
    """Return the response to a body that changed nothing."""
    status, code = (404, "model_not_found") if error.code == UnknownName.code else (400, "invalid_request")
    words = re.sub(r"(?:/[^\s/:]+)+/([^\s/:]+)", r"\1", str(error))  # without the folders of this machine
    key = error.key if isinstance(error, UsageError) else "lora_path"
    return Refusal(status, words, code, error.code, key)


def _unknown(message: str, key: str) -> UsageError:
    return UsageError(message, code="unknown-name", key=key)


def _is_adapter(one: Served) -> bool:
    return isinstance(one.service, AdapterService) and one.service.number > 0


def _read(raw: bytes, kind: type[B]) -> B:
    """Return a body. Raises UsageError."""
    read = schema.select_fields(schema.json_object(raw), kind.__struct_fields__, ignores=False)
    return schema.convert(read.fields, kind)


T = TypeVar("T")


class AdapterService:
    """One of the models of a worker.

    engine: its own view of the shared engine. number: of its adapter there; 0: the base. free: frees the
    adapter in the worker's thread, once it was dropped and nothing of it is in flight.
    """

    def __init__(
        self, worker: EngineWorker, engine: Engine, number: int, free: Callable[[], None] | None = None
    ) -> None:
        self._worker, self.engine, self.number, self._free = worker, engine, number, free
        self.n_open = self.n_prompt_tokens = self.n_tokens = 0
        self._n_held, self._is_dropped, self._lock = 0, False, threading.Lock()

    @property
    def most(self) -> int:
        """The most requests that may be open, for all models of the worker."""
        return self._worker.most

    @property
    def failure(self) -> HeredityError | None:
        """The last failure of the worker, until an answer succeeds."""
        return self._worker.failure

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the model's chat template shows tools."""
        return shows_tools(self.engine)

    def ask(self, request: Request, hears: Hears | None = None) -> Ticket:
        """Queue a request. Raises Busy if too many are open, EngineFailure if the worker is closed."""
        addressed = AddressedRequest(**msgspec.structs.asdict(request) | {"adapter": self.number})
        self._count(1)
        try:
            return self._worker.ask(addressed, hears, self._settled)
        except BaseException:
            self._count(-1)
            raise

    def compute(self, function: Callable[[Engine], T]) -> Future[T]:
        """Queue a function of this model's engine, which runs between two steps.

        Raises as `ask` does.
        """
        self._count(1)
        try:
            result = self._worker.compute(lambda _: function(self.engine))
        except BaseException:
            self._count(-1)
            raise
        result.add_done_callback(lambda _: self._count(-1))
        return result

    def hold(self) -> None:
        """Keep the adapter until `release`. Raises EngineFailure once it was dropped and nothing keeps it."""
        with self._lock:
            if self._is_last:
                raise EngineFailure("this adapter was unloaded")
            self._n_held += 1

    def release(self) -> None:
        """End a `hold`."""
        with self._lock:
            self._n_held -= 1
            is_last = self._is_last
        if is_last:
            self._let_go()

    def close(self) -> None:
        """Drop the adapter: what has begun is answered, and then it is freed."""
        with self._lock:
            is_last = not self._is_dropped and not self._n_held and not self.n_open
            self._is_dropped = True
        if is_last:
            self._let_go()

    @property
    def _is_last(self) -> bool:
        return self._is_dropped and not self._n_held and not self.n_open

    def _count(self, n: int) -> None:
        with self._lock:
            self.n_open += n
            is_last = n < 0 and self._is_last
        if is_last:
            self._let_go()

    def _settled(self, outcome: Reply | HeredityError) -> None:
        if isinstance(outcome, Reply):
            with self._lock:
                self.n_prompt_tokens += outcome.n_prompt_tokens
                self.n_tokens += outcome.n_answer_tokens
        self._count(-1)

    def _let_go(self) -> None:
        if (free := self._free) is not None:
            self._free = None
            self._worker.post(lambda _: free())
