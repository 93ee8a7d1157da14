"""`heredity serve`: models behind an OpenAI-compatible API."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from heredity.cli import (
    Name,
    PathArgument,
    Verb,
    _listening,
    _remote,
    device_option,
    open_store,
    shown_work,
)
from heredity.cli._listening import LOOPBACK

if TYPE_CHECKING:
    import socket

    from heredity.application.guards import GuardReaders
    from heredity.application.spec import Application
    from heredity.core.records import Model
    from heredity.deploy.serve.adapters import AdapterLoader, ServingRules
    from heredity.deploy.serve.answers import Served
    from heredity.deploy.serve.app import ServerSettings
    from heredity.deploy.serve.embeddings import EmbeddingService
    from heredity.deploy.serve.request_log import RequestLog
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
@click.option(
    "--application",
    "applications",
    type=PathArgument(),
    metavar="FILE",
    multiple=True,
    help="Application for every conversation; several serve each model in each, as APPLICATION@MODEL.",
)
@click.option(
    "--free-decoding", is_flag=True, help="Let callers override the application's decoding settings."
)
@click.option(
    "--ignore-settings",
    is_flag=True,
    help="Ignore sampling settings that are held or not supported, instead of refusing them.",
)
@_listening.address_options(8000)
@click.option(
    "--api-key-env", "key_names", type=Name(), multiple=True, metavar="NAME",
    help="Environment variable with a key; callers must send one of the keys.",
)  # fmt: skip
@click.option(
    "--max-queue", "waiting", type=click.IntRange(1), default=256,
    show_default=True, metavar="N",
    help="Maximum queued requests per model; beyond it the server answers 429.",
)  # fmt: skip
@click.option(
    "--requests-per-minute", "per_minute", type=click.IntRange(1), metavar="N",
    help="Requests per minute for each key, or each address without keys.  [default: no limit]",
)  # fmt: skip
@click.option(
    "--max-body", type=click.IntRange(1, 1024), default=4, show_default=True, metavar="MIB",
    help="Largest body of a request, in MiB.",
)  # fmt: skip
@click.option(
    "--cors", "origins", type=Name(), multiple=True, metavar="ORIGIN",
    help="Let the scripts of this web page ask, e.g. https://app.example.com.",
)  # fmt: skip
@click.option(
    "--load-adapters",
    is_flag=True,
    help="Let callers load, replace and unload adapters of the store while the server runs.",
)
@click.option("--metrics", is_flag=True, help="Serve counts for Prometheus at /metrics.")
@click.option("--access-log", is_flag=True, help="Print a line of JSON per request, without its contents.")
@click.option(
    "--request-log", type=PathArgument(), metavar="FILE",
    help="Write each conversation and its answer to FILE. It holds what callers write.",
)  # fmt: skip
@click.option(
    "--request-log-size", type=click.IntRange(1), default=64, show_default=True, metavar="MIB",
    help="Size at which FILE becomes FILE.1, in place of an older one.",
)  # fmt: skip
@device_option
@_remote.key_option
def command(
    models: tuple[str, ...], applications: tuple[Path, ...], free_decoding: bool, ignore_settings: bool,
    host: str, port: int, key_names: tuple[str, ...], waiting: int, per_minute: int | None, max_body: int,
    origins: tuple[str, ...], load_adapters: bool, metrics: bool, access_log: bool,
    request_log: Path | None, request_log_size: int, key_env: tuple[str, ...],
) -> None:  # fmt: skip
    """Serve models behind an OpenAI-compatible API.

    Any client of that API can connect. Answers equal those of a study on this machine, bit for bit. With
    --application, its prompt, passages, tools, guards and decoding settings apply to every conversation. Tool
    calls go to the client, which sends their results. Adapters of one base share it: it is in memory once.
    Ctrl-C stops the server after requests in flight.
    """
    from heredity.core.errors import UsageError
    from heredity.core.terminal import note

    _listening.check_installed("The server needs")
    from heredity.deploy.serve.adapters import ServingRules
    from heredity.deploy.serve.app import ServerSettings

    settings = ServerSettings(
        keys=_keys(key_names), is_local=host in LOOPBACK, largest=max_body << 20, per_minute=per_minute or 0,
        origins=tuple(map(_origin, origins)), has_metrics=metrics, log=click.echo if access_log else None,
    )  # fmt: skip
    if not settings.is_local and not settings.keys:
        raise UsageError(
            f"At {host} any machine could connect. Require a key from callers: --api-key-env NAME."
        )
    with ExitStack() as stack:
        listening = stack.enter_context(_listening.bound(host, port))  # first: to load takes longer
        store = open_store()
        with shown_work(store, "starting"):
            layers, readers = _layers(stack, store, applications, key_env)
            rules = ServingRules(layers, free_decoding, ignore_settings)
            found = _loaded(stack, store, models, rules, waiting, key_env, load_adapters)
        found.readers = readers
        if request_log is not None:
            settings = replace(settings, request_log=_opened(stack, request_log, request_log_size))
        _listen(found, listening, host, settings)
    note("closed")


def _opened(stack: ExitStack, path: Path, size: int) -> RequestLog:
    """The request log. The number of lost rows is reported at the end."""
    from heredity.core.terminal import note
    from heredity.deploy.serve.request_log import RequestLog

    log = RequestLog(path, size << 20)
    note(f"every conversation goes to {path}, with what callers write in it")

    def close() -> None:
        log.close()
        if log.n_lost:
            note(f"{path} lacks answers that could not be written: {log.n_lost:,}")

    stack.callback(close)
    return log


def _keys(names: Sequence[str]) -> tuple[str, ...]:
    """Read the keys that callers may send. Raises UsageError."""
    from heredity.core.errors import UsageError

    keys = tuple(os.environ.get(name, "") for name in names)
    for name, key in zip(names, keys, strict=True):
        if not (key.isascii() and key.isprintable() and key == key.strip() and key):
            raise UsageError(f"The environment variable {name} holds no key of printable ASCII.")
    return keys


def _origin(origin: str) -> str:
    """Check an origin of web pages. Raises UsageError."""
    from heredity.core.errors import UsageError

    if not re.fullmatch(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?", origin):
        raise UsageError(f"--cors takes one origin, such as https://app.example.com, and not '{origin}'.")
    return origin.lower()


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
    stack: ExitStack, store: Store, models: tuple[str, ...], rules: ServingRules, most: int,
    key_env: tuple[str, ...], may_load: bool,
) -> _Loaded:  # fmt: skip
    """Load each model once, and each base once. may_load: whether callers may load adapters."""
    from heredity.application.retrieval.models import open_embedder
    from heredity.cli import _pulling
    from heredity.core.progress import phase
    from heredity.core.terminal import note
    from heredity.deploy.serve.adapters import AdapterLoader, share
    from heredity.deploy.serve.embeddings import EmbeddingService
    from heredity.deploy.serve.worker import EngineWorker
    from heredity.lineage.store import refuse_silent

    refs = {ref: store.get(ref) for ref in models}
    asked = {one.record.id: one for one in refs.values()}
    encoders = [one for one in asked.values() if one.record.modality == "text-embedding"]
    writers = [one for one in asked.values() if one not in encoders]
    ready = {}
    for one in writers:
        refuse_silent(one.record)
    for one in writers:
        ready[one.record.id] = one if one.record.format == "scripted" else _pulling.ready(store, one)
    load, found = _remote.loader(store, _remote.calls(key_env)), _Loaded()
    bases, services = share(stack, store, ready.values(), load, most, may_load, note)
    for ident, form in ready.items():
        service: Service | None = services.get(form.record.id)
        if service is None:
            service = EngineWorker(load(form), most)
            stack.callback(service.close)
        record = asked[ident].record
        found.served += rules.served(record, service, _other_names(record, refs))
    for one in encoders:
        with phase(store.report, "loading", one.record.name):
            embedder = open_embedder(one.record.id, store)
        encoder = EmbeddingService(embedder, most, _other_names(one.record, refs))
        stack.callback(encoder.close)
        found.encoders.append(encoder)
    found.adapters = AdapterLoader(store, bases, rules) if may_load else None
    return found


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


def _listen(found: _Loaded, listening: socket.socket, host: str, settings: ServerSettings) -> None:
    import signal

    from heredity.core.terminal import note
    from heredity.deploy.serve import app
    from heredity.deploy.serve.app import server

    listening.listen(2048)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}/v1"
    layers = {
        one.application.digest: one.application.name for one in found.served if one.application is not None
    }
    inside = " and ".join(f"'{name}' ({digest[:8]})" for digest, name in layers.items())
    where = f" in {'the application' if len(layers) == 1 else 'each of'} {inside}" if layers else ""
    note(f"serving {', '.join(found.names)}{where} at {address}")
    api = server(
        app.app(found.served, settings, found.encoders, found.readers, found.adapters),
        log_level="warning", access_log=False,
        server_header=False, timeout_graceful_shutdown=60,
    )  # fmt: skip
    # uvicorn raises the signal again after the last answer; then models are closed and the exit code is 0.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        api.run(sockets=[listening])
