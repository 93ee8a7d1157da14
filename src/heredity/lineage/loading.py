"""Load the engine of a recorded model: the right one, on its device, from the form that it reads.

Promises: an engine gets verified files only. A model elsewhere, or a function, is recorded when it first
answers.
Leaves to others: which engine answers (engines/), and making the form that it reads (store.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from heredity import engines
from heredity.core import host, registry
from heredity.core.errors import Unavailable, UnknownName, how_to_install
from heredity.core.host import Device
from heredity.core.progress import Watch, about, phase
from heredity.core.records import Model, why_not_generative
from heredity.engines.protocols import Engine, EngineModule, PhasedModule, ServiceEngine
from heredity.lineage.types import Grown

if TYPE_CHECKING:
    from heredity.lineage.store import Store

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
            if error.code not in engines.NOT_READ or engines.is_set(ready.record):
                raise
            engine = engine_loader(ready.record, needs_text, engines.GENERAL, watch)(*given)
    record_at_answer(engine, ready, store)
    return engine


def record_at_answer(engine: Engine, grown: Grown, store: Store) -> None:
    """Let a model elsewhere, or a function, be recorded in the store when it first answers."""
    if isinstance(engine, ServiceEngine):

        def record() -> None:
            store.keep(grown)

        engine.answered = record


def refuse_silent(model: Model) -> None:
    """Raise Unavailable, with what it is for, if a model cannot generate text in any engine."""
    if why := why_not_generative(model):
        use = _USES.get(model.modality, "").format(name=model.name)
        raise Unavailable(f"'{model.name}' cannot answer: {why}.{use}", code="writes-no-text")


def engine_loader(
    model: Model, needs_text: bool = True, name: str = "", watch: Watch | None = None
) -> Callable[..., Engine]:
    """The `load` function of a model's engine (engines/protocols.EngineModule).

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
        module = registry.load_as(EngineModule, "engines", name)
        if isinstance(module, PhasedModule):
            return partial(module.load, watch=about(watch, model.name))
        return module.load
    except UnknownName as error:
        raise Unavailable(f"'{model.name}' cannot answer here: {error}", code="engine-missing") from error
    except ImportError as error:
        raise Unavailable(
            f"The engine '{name}', which '{model.name}' needs, is not installed ({error}). "
            f"{how_to_install(engines.EXTRAS.get(name, name))}",
            code="package-missing",
        ) from error
