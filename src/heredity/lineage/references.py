"""References of models in plan files: a name, a path, or an engine in front of one of them.

    "smollm2-135m-instruct"     a model of the store or of the catalogue
    "models/mine", "mine.gguf"  a path, if it has a slash or lies next to the plan
    "hf:owner/name"             a model of the hub
    "kv4:models/mine"           the model behind an engine or a setting of one
    "url:bot.toml"              the file that describes an application

Promises: nothing is loaded, and only what the caller gives pulls a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from heredity.core.errors import Unavailable
from heredity.engines.remote import services
from heredity.lineage import catalog
from heredity.lineage.store import Store, models_named, target_of
from heredity.lineage.types import Grown

HUB, URL = "hf:", "url:"
_ADAPTER = "adapter_config.json"  # its folder is adopted, never pulled: its name is that of the model


def is_elsewhere(ref: str, store: Store) -> bool:
    """Whether a reference names the hub, or a path (of a file or folder that may be missing).

    A name of the store or of the catalogue is that model, whatever lies in the working folder. "./NAME" is
    the folder.
    """
    if ref.startswith(HUB) or _is_path(ref):
        return True
    return is_there(Path(ref)) and not (catalog.find(ref) or models_named(store.models(), ref))


def find_or_pull(ref: str, store: Store, pull: Callable[[str, str], Grown], engine: str = "torch") -> Grown:
    """The model of a reference. `pull` gets one that the store lacks, by its name and that of its engine.

    For "kv4:NAME", the model NAME is pulled first if the store lacks it. Raises UnknownName.
    """
    kind, _, inner = ref.partition(":")
    if _makes_model(ref) and inner:
        engine = kind if kind in ("llamacpp", "vllm") else "torch"
        return store.get(f"{kind}:{find_or_pull(inner, store, pull, engine).record.name}")
    if not is_elsewhere(ref, store):
        try:
            return store.get(ref)
        except Unavailable:
            if ":" in ref:
                raise
    return pull(ref, engine)


def ready_models(
    refs: Sequence[str], store: Store, find: Callable[[str], Grown],
    announce: Callable[[Grown], None] = lambda _: None,
    shown: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> list[Grown]:  # fmt: skip
    """The models of these references, each in the store with the form that its engine loads.

    find: gets a model, which it may pull. announce: is called with each before its conversion. shown: is
    entered while conversions are all that is left.

    A model is converted while the next one is pulled. "kv4:NAME" makes a model itself, so it waits.
    After an error or an interrupt no further one is converted or pulled.
    """
    models: list[Grown] = []
    with ThreadPoolExecutor(1) as worker:
        converted: list[Future[Grown]] = []
        try:
            for ref in refs:
                for each in filter(Future.done, converted):
                    each.result()
                if models:
                    announce(models[-1])
                    converted.append(worker.submit(store.ready, models[-1]))
                for each in converted if _makes_model(ref) else ():
                    each.result()
                models.append(find(ref))
            for model in models[-1:]:  # in this thread, which an interrupt stops at once
                announce(model)
                with shown():
                    for each in converted:
                        each.result()
                    store.ready(model)
        finally:
            worker.shutdown(wait=False, cancel_futures=True)
    return models


def _makes_model(ref: str) -> bool:
    """Whether a reference names an engine or a setting in front of a model."""
    return (target := target_of(ref)) is not None and target.WRAPS_MODEL


def is_there(path: Path) -> bool:
    """Whether a path exists; False for text that cannot be a path."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def spellings(ref: str) -> tuple[str, ...]:
    """The names under which a model may be recorded that a user calls `ref`, `ref` itself first.

    The others are the catalogue's name of a short one ("smollm2", "kv4:smollm2"), and the reference of a
    model behind an API ("gpt-5").
    """
    engine, model = _split(ref)
    service = services.reference(ref)
    return tuple(dict.fromkeys((ref, f"{engine}{catalog.canonical(model)}", *([service] if service else []))))


def placed(ref: str, folder: Path) -> str:
    """The reference in a plan file of `folder`, with a relative path taken from there."""
    engine, model = _split(ref)
    is_path = engine == URL or _is_path(model) or _is_next_to(model, folder)
    if not is_path:
        return ref
    path = str(folder / model)
    return f"{engine}{path if _is_path(path) else f'./{path}'}"  # without a slash it would be a name


def without_folder(ref: str) -> str:
    """The reference with only the last name of its path. It is the same wherever the files lie."""
    engine, model = _split(ref)
    return f"{engine}{Path(model).name}" if _is_path(model) else ref


def _split(ref: str) -> tuple[str, str]:
    """The engine or "url:", or "", and the model or the path behind it."""
    engine, colon, model = ref.partition(":")
    if f"{engine}{colon}" == URL and "://" not in model:
        return URL, model
    return (f"{engine}{colon}", model) if _makes_model(ref) else ("", ref)


def _is_path(ref: str) -> bool:
    has_slash = any(slash in ref for slash in "/\\")
    return has_slash and not ref.startswith(HUB) and target_of(ref) is None


def _is_next_to(ref: str, folder: Path) -> bool:
    if not ref or target_of(ref) is not None or ref.startswith(HUB):
        return False
    return is_there(folder / ref) and not is_there(folder / ref / _ADAPTER)
