"""`heredity serve`: models behind an OpenAI-compatible API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heredity.cli import (
    Name,
    Verb,
    _listening,
    _remote,
    device_option,
    open_store,
    record_options,
    shown_work,
)
from heredity.deploy.serve import ServerSettings

if TYPE_CHECKING:
    import socket

    from heredity.application.guards import GuardReaders
    from heredity.application.spec import Application
    from heredity.core.records import Model
    from heredity.deploy.serve.answers import Served
    from heredity.deploy.serve.embeddings import EmbeddingService
    from heredity.deploy.serve.request_log import RequestLog
    from heredity.deploy.serve.roster import AdapterLoader, ServingRules
    from heredity.deploy.serve.worker import Service
    from heredity.engines.protocols import Engine
    from heredity.lineage.store import Store
    from heredity.lineage.types import Grown
    from heredity.redteam.judges.guard import JudgeReaders


@click.command(
    "serve", cls=Verb,
    example="heredity serve smollm2-135m-instruct --application examples/support-desk.toml",
)  # fmt: skip
@click.argument("models", metavar="MODEL...", type=Name(), nargs=-1, required=True)
@record_options(ServerSettings)
@device_option
@_remote.key_option
def command(models: tuple[str, ...], key_env: tuple[str, ...], **given: Any) -> None:
    """Serve models behind an OpenAI-compatible API.

    Any client of that API can connect. Answers equal those of a study on this machine, bit for bit. With
    --application, its prompt, passages, tools, guards and decoding settings apply to every conversation. Tool
    calls go to the client, which sends their results. Adapters of one base share it: it is in memory once.
    Ctrl-C stops the server after requests in flight.
    """
    from heredity.core.terminal import note

    _listening.check_installed("The server needs")
    from heredity.deploy.serve.roster import ServingRules

    settings = ServerSettings(applications=given.pop("application"), **given)
    settings.keys()  # a mistake shows before anything is loaded
    with ExitStack() as stack:
        listening = stack.enter_context(_listening.bound(settings.host, settings.port))
        store = open_store()
        with shown_work(store, "starting"):
            layers, readers = _layers(stack, store, settings.applications, key_env)
            rules = ServingRules(layers, settings.free_decoding, settings.ignore_settings)
            loaded = _loaded(stack, store, models, rules, settings, key_env)
        loaded.readers = readers
        _listen(loaded, listening, settings, _opened(stack, settings))
    note("closed")


def _opened(stack: ExitStack, settings: ServerSettings) -> RequestLog | None:
    """The request log. The number of lost rows is reported at the end."""
    if (path := settings.request_log) is None:
        return None
    from heredity.core.terminal import note
    from heredity.deploy.serve.request_log import RequestLog

    log = RequestLog(path, settings.request_log_size << 20)
    note(f"every conversation goes to {path}, with what callers write in it")

    def close() -> None:
        log.close()
        if log.n_lost:
            note(f"{path} lacks answers that could not be written: {log.n_lost:,}")

    stack.callback(close)
    return log


@dataclass
class _Loaded:
    """The models to serve, loaded. adapters: loads others later; None if no caller may."""

    served: list[Served] = field(default_factory=list)
    encoders: list[EmbeddingService] = field(default_factory=list)
    readers: GuardReaders | None = None
    adapters: AdapterLoader | None = None

    @property
    def names(self) -> list[str]:
        """The names of the models."""
        encoders = [each.model.name for each in self.encoders]
        return list(dict.fromkeys([*(one.model.name for one in self.served), *encoders]))


def _loaded(
    stack: ExitStack, store: Store, models: tuple[str, ...], rules: ServingRules,
    settings: ServerSettings, key_env: tuple[str, ...],
) -> _Loaded:  # fmt: skip
    """Load each model once, and each base once."""
    from heredity.application.retrieval.models import open_embedder
    from heredity.cli import _pulling
    from heredity.core.progress import phase
    from heredity.core.terminal import note
    from heredity.deploy.serve.embeddings import EmbeddingService
    from heredity.deploy.serve.roster import AdapterLoader, share
    from heredity.deploy.serve.worker import EngineWorker
    from heredity.lineage.store import refuse_silent

    refs = {ref: store.get(ref) for ref in models}
    asked, ready = {one.record.id: one for one in refs.values()}, {}
    encoders = [one for one in asked.values() if one.record.modality == "text-embedding"]
    writers = [one for one in asked.values() if one not in encoders]
    for one in writers:
        refuse_silent(one.record)
    for one in writers:
        ready[one.record.id] = one if one.record.format == "scripted" else _pulling.ready(store, one)
    load, loaded = _remote.loader(store, _remote.calls(key_env)), _Loaded()
    most, may_load = settings.max_queue, settings.load_adapters
    bases, services = share(stack, store, ready.values(), load, most, may_load, note)
    for ident, form in ready.items():
        service: Service | None = services.get(form.record.id)
        if service is None:
            service = EngineWorker(load(form), most)
            stack.callback(service.close)
        record = asked[ident].record
        loaded.served += rules.served(record, service, _other_names(record, refs))
    for one in encoders:
        with phase(store.report, "loading", one.record.name):
            embedder = open_embedder(one.record.id, store)
        encoder = EmbeddingService(embedder, most, _other_names(one.record, refs))
        stack.callback(encoder.close)
        loaded.encoders.append(encoder)
    loaded.adapters = AdapterLoader(store, bases, rules) if may_load else None
    return loaded


def _other_names(record: Model, refs: Mapping[str, Grown]) -> tuple[str, ...]:
    """The references of a model on the command line that are neither its name nor its id."""
    given = (ref for ref, one in refs.items() if one.record.id == record.id)
    return tuple(ref for ref in given if ref not in (record.name, record.id))


def _guard_models(store: Store, key_env: tuple[str, ...]) -> JudgeReaders:
    """The models of guards, each loaded on its first use and asked by all callers in one batch."""
    from heredity.cli import _pulling
    from heredity.deploy.serve.worker import shared
    from heredity.redteam.judges import Models
    from heredity.redteam.judges.guard import JudgeReaders

    def load(name: str) -> Engine:
        grown = store.get(name)
        ready = grown if grown.record.format == "scripted" else _pulling.ready(store, grown)
        return _remote.loader(store, _remote.calls(key_env))(ready)

    return JudgeReaders(Models(lambda name: store.get(name).record.id, load), shared)


def _layers(
    stack: ExitStack, store: Store, paths: Sequence[Path], key_env: tuple[str, ...]
) -> tuple[Sequence[Application | None], GuardReaders | None]:
    """Read the applications, and what reads for their guards. None is the model by itself.

    Raises UsageError.
    """
    from heredity.application.guarded import identified
    from heredity.application.spec import Application
    from heredity.core.errors import UsageError

    layers = [Application.load(path) for path in paths]
    readers: JudgeReaders | None = None
    if any(layer.has_guard_models for layer in layers):
        readers = _guard_models(store, key_env)
        stack.callback(readers.close)
        layers = [identified(layer, readers) for layer in layers]
    for path, layer in zip(paths, layers, strict=True):
        _refuse_unservable(path, layer)
    if len({layer.name for layer in layers}) < len(layers):
        raise UsageError(
            "Two applications have the same name; callers could not tell them apart.", code="name-twice"
        )
    return layers or [None], readers


def _refuse_unservable(path: Path, layer: Application) -> None:
    from heredity.core.errors import UsageError

    if layer.rendering in ("theirs", "recorded"):
        raise UsageError(f'{path}: rendering "{layer.rendering}" belongs to a target that cannot be served.')


def _listen(
    loaded: _Loaded, listening: socket.socket, settings: ServerSettings, log: RequestLog | None
) -> None:
    import signal

    from heredity.core.terminal import note
    from heredity.deploy.serve import app
    from heredity.deploy.serve.app import server

    listening.listen(2048)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"http://{host}:{listening.getsockname()[1]}/v1"
    layers = {
        one.application.digest: one.application.name for one in loaded.served if one.application is not None
    }
    inside = " and ".join(f"'{name}' ({digest[:8]})" for digest, name in layers.items())
    where = f" in {'the application' if len(layers) == 1 else 'each of'} {inside}" if layers else ""
    note(f"serving {', '.join(loaded.names)}{where} at {address}")
    api = server(
        app.app(loaded.served, settings, loaded.encoders, loaded.readers, loaded.adapters, log),
        log_level="warning", access_log=False,
        server_header=False, timeout_graceful_shutdown=60,
    )  # fmt: skip
    # uvicorn raises the signal again after the last answer; then models are closed and the exit code is 0.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        api.run(sockets=[listening])
