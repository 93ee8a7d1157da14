"""References of models in plan files: a name, a path, or an engine in front of one of them.

    "smollm2-135m-instruct"     a model of the store or of the catalogue
    "models/mine", "mine.gguf"  a path, if it has a slash or lies next to the plan
    "hf:owner/name"             a model of the hub
    "kv4:models/mine"           the model behind an engine or a setting of one
    "url:bot.toml"              the file that describes an application

Promises: nothing is loaded or pulled.
Leaves to others: finding the model (store.py).
"""

from __future__ import annotations

from pathlib import Path

from heredity.engines.remote import services
from heredity.lineage import catalog
from heredity.lineage.store import Store, target_of

HUB, URL = "hf:", "url:"
_ADAPTER = "adapter_config.json"  # its folder is adopted, never pulled: its name is that of the model


def is_elsewhere(ref: str, store: Store) -> bool:
    """Whether a reference names the hub, or a path (of a file or folder that may be missing).

    A name of the store or of the catalogue is that model, whatever lies in the working folder. "./NAME" is
    the folder.
    """
    if ref.startswith(HUB) or _is_path(ref):
        return True
    return is_there(Path(ref)) and not (catalog.find(ref) or catalog.named(store.models(), ref))


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
    target = target_of(ref)
    return (f"{engine}{colon}", model) if target is not None and target.WRAPS_MODEL else ("", ref)


def _is_path(ref: str) -> bool:
    has_slash = any(slash in ref for slash in "/\\")
    return has_slash and not ref.startswith(HUB) and target_of(ref) is None


def _is_next_to(ref: str, folder: Path) -> bool:
    if not ref or target_of(ref) is not None or ref.startswith(HUB):
        return False
    return is_there(folder / ref) and not is_there(folder / ref / _ADAPTER)
