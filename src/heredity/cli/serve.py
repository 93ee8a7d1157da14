"""`heredity serve`: models behind an OpenAI-compatible API."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from heredity.cli import Name, Verb, _remote, device_option, open_store, record_options, shown_work
from heredity.deploy.serve import ServerSettings, bound, check_installed

if TYPE_CHECKING:
    from heredity.deploy.serve.request_log import RequestLog


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
    from heredity.cli import pull
    from heredity.core.terminal import note

    check_installed("The server needs")
    from heredity.deploy.serve.app import app, run
    from heredity.deploy.serve.model_registry import load_models

    settings = ServerSettings(applications=given.pop("application"), **given)
    settings.keys()  # a mistake shows before anything is loaded
    with ExitStack() as stack:
        listening = stack.enter_context(bound(settings.host, settings.port))
        store = open_store()
        with shown_work(store, "starting"):
            load, announce = _remote.loader(store, _remote.calls(key_env)), partial(pull.announce, store)
            loaded = load_models(stack, store, models, settings, load, announce, note)
        log = _opened(stack, settings)
        served = loaded.served
        api = app(served, settings, loaded.encoders, loaded.readers, loaded.adapters, log)
        listening.listen(2048)
        layers = {one.application.digest: one.application.name for one in served if one.application}
        inside = " and ".join(f"'{name}' ({digest[:8]})" for digest, name in layers.items())
        where = f" in {'the application' if len(layers) == 1 else 'each of'} {inside}" if layers else ""
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"http://{host}:{listening.getsockname()[1]}/v1"
        note(f"serving {', '.join(loaded.names)}{where} at {address}")
        run(api, listening)
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
