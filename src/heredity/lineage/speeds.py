"""The time that a model will take for an answer, before it is loaded.

Promises: a time has two ends, the fastest and the slowest that is expected. It follows from the speed that
the engine measured when it first loaded the model. Without one it is a guess from the size of the weights.
Leaves to others: the questions (study/forecast.py, evals/), and the speed of services elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from heredity.lineage.types import Grown

if TYPE_CHECKING:
    from heredity.lineage.store import Store

USUAL_BYTES = 400e6  # of a model whose size is not known
_SECONDS = (0.15, 1.8)  # of one request of 128 tokens to a model of this size on two cores, at best and worst
_OF_TUNED = (
    0.5,
    4.0,
)  # of the time of full answers in the widest batch: prompts are read, batches may be narrow


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
