"""A static embedding model: one vector for each token, and no network. The files are those of model2vec.

tokenizer.json has the tokens, config.json the settings, and model.safetensors these tensors and no others:

embeddings  (row, hidden) float16, float32, float64 or int8
mapping     (token,) int32 or int64, optional: the row of each token. Without it a token's id is its row.
weights     (token,) float16, float32 or float64, optional: the factor of each token

Promises: torch is not loaded, and numpy only to read a folder. A folder is Damaged if a file is missing, or a
tensor is of another shape. So it is if a token has no row, if a value is not finite, or if modules.json
names another layer. The size of the files bounds the memory.

model2vec does not read a folder here: it takes most of these faults in silence.

Source: model2vec, Tulkens and van Dongen 2024 (github.com/MinishLab/model2vec).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from heredity.core.errors import BadInput, Damaged, HeredityError, Unavailable, first_line, how_to_install
from heredity.core.readers import json_of
from heredity.formats.architectures import STATIC
from heredity.formats.safetensors_io import SafeTensor, read_safetensors
from heredity.formats.tokenizer_files import read_tokenizer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from tokenizers import Tokenizer

    Floats = npt.NDArray[np.float32]
    Ints = npt.NDArray[np.int64]

CONFIG, MODULES, TENSORS, TOKENIZER = "config.json", "modules.json", "model.safetensors", "tokenizer.json"
VECTORS, ROWS, WEIGHTS = "embeddings", "mapping", "weights"
_TENSORS = {VECTORS, ROWS, WEIGHTS}
USUAL_TOKENS = 512  # of a text that are read, if config.json names no max_length
_ALL_TOKENS = 1 << 31  # if max_length is null
_MAX_HIDDEN = 1 << 16
_LARGEST = 1e12  # of a value: vectors times weights can then be added up in float32
_FLOAT, _INT = ("F16", "F32", "F64"), ("I32", "I64")
_COMPUTED = ("StaticEmbedding", "Normalize")  # layers of modules.json


@dataclass(frozen=True, slots=True)
class StaticEmbeddings:
    """The content of a folder.

    vectors: (row, hidden). rows: the row of each token id, (token,). weights: its factor, (token,).
    unknown: the token for what the tokenizer does not know, which is not read; -1 without one.
    n_tokens: of a text that are read.
    """

    tokenizer: Tokenizer
    vectors: Floats
    rows: Ints
    weights: Floats
    unknown: int
    n_tokens: int


def holds_static(folder: Path) -> bool:
    """Whether a folder is of this form: its config.json names it, or its tensors are these and no others."""
    try:
        config = json_of(folder / CONFIG)
        if isinstance(config, dict) and (config.get("model_type") == STATIC or _is_named(config)):
            return True
        return VECTORS in (names := read_safetensors(folder / TENSORS).keys()) and names <= _TENSORS
    except (BadInput, Damaged, OSError):
        return False


def _is_named(config: Mapping[str, object]) -> bool:
    named = config.get("architectures")
    return isinstance(named, list) and "StaticModel" in named


def read_static(folder: Path, name: str) -> StaticEmbeddings:
    """Read and check the folder of a static embedding model.

    name: the model's, for errors. Raises Damaged, and Unavailable without the package tokenizers.
    """
    try:
        if not holds_static(folder):
            raise ValueError(f"neither {CONFIG} nor the tensors are of this form")
        n_tokens = _longest(folder)
        _refuse_other_layers(folder)
        tokenizer, unknown = _tokenizer(folder / TOKENIZER)
        n_ids = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if n_ids < 1:
            raise ValueError(f"{TOKENIZER} has no tokens")
        vectors, rows, weights = _arrays(folder / TENSORS, n_ids)
        return StaticEmbeddings(tokenizer, vectors, rows, weights, unknown, n_tokens)
    except (MemoryError, Unavailable):  # they say nothing about the files
        raise
    except (HeredityError, OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(
            f"'{name}' is not a static embedding model that reads: {first_line(error).rstrip('.')}."
            " Get it again."
        ) from None


def _longest(folder: Path) -> int:
    """The tokens of a text that are read."""
    config = json_of(folder / CONFIG)
    longest = config.get("max_length", USUAL_TOKENS) if isinstance(config, dict) else USUAL_TOKENS
    if longest is None:
        return _ALL_TOKENS
    if not isinstance(longest, int) or isinstance(longest, bool) or longest < 1:
        raise ValueError(f"max_length in {CONFIG} is {str(longest)[:40]!r}, and must be a number from 1 on")
    return longest


def _refuse_other_layers(folder: Path) -> None:
    """Raise ValueError if modules.json names a layer that would change the embedding."""
    path = folder / MODULES
    if not path.is_file():
        return
    modules = json_of(path)
    if not isinstance(modules, list) or not all(isinstance(each, dict) for each in modules):
        raise ValueError(f"{MODULES} is not a list of layers")
    kinds = [str(each.get("type", "")).rpartition(".")[2] for each in modules]
    if other := next((kind for kind in kinds if kind not in _COMPUTED), None):
        raise ValueError(f"{MODULES} names the layer {other[:60]!r}; computed are {' and '.join(_COMPUTED)}")


def _tokenizer(path: Path) -> tuple[Tokenizer, int]:
    """The tokenizer without padding, truncation and special tokens, and the id of its unknown token or -1."""
    try:
        tokenizer = read_tokenizer(path)
    except ImportError:
        raise Unavailable(f"Static embeddings need tokenizers. {how_to_install('retrieval')}") from None
    model = json.loads(path.read_text("utf-8"))["model"]
    unknown = model.get("unk_id")  # of Unigram; the others name the token
    if unknown is None and isinstance(named := model.get("unk_token"), str):
        unknown = tokenizer.token_to_id(named)
    return tokenizer, unknown if isinstance(unknown, int) else -1


def _arrays(path: Path, n_ids: int) -> tuple[Floats, Ints, Floats]:
    """Vectors, rows and weights, which fit each other and `n_ids` tokens."""
    import numpy as np
    from safetensors import safe_open

    header = read_safetensors(path)
    n_rows, n_hidden = _shape(header, VECTORS, 2, (*_FLOAT, "I8"))
    if not (n_rows and 0 < n_hidden <= _MAX_HIDDEN):
        raise ValueError(f"{VECTORS} has the shape [{n_rows:,}, {n_hidden:,}]")
    named = {ROWS: _INT, WEIGHTS: _FLOAT}
    lengths = {each: _shape(header, each, 1, types)[0] for each, types in named.items() if each in header}
    if ROWS not in header:
        lengths[VECTORS] = n_rows
    for each, length in lengths.items():
        if length < n_ids:
            raise ValueError(f"{each} has {length:,} rows for {n_ids:,} tokens")
    with safe_open(path, "numpy") as file:
        vectors = _finite(VECTORS, file.get_tensor(VECTORS))
        rows = file.get_tensor(ROWS).astype(np.int64) if ROWS in header else np.arange(n_ids)
        weights = _finite(WEIGHTS, file.get_tensor(WEIGHTS)) if WEIGHTS in header else np.ones(n_ids)
    if rows.min() < 0 or rows.max() >= len(vectors):
        raise ValueError(f"{ROWS} has a row outside of the {len(vectors):,} of {VECTORS}")
    return vectors, rows, weights.astype(np.float32)


def _shape(header: Mapping[str, SafeTensor], name: str, n_axes: int, types: Collection[str]) -> list[int]:
    if name not in header:
        raise ValueError(f"{TENSORS} has no tensor '{name}'")
    shape = header[name]
    if shape.dtype not in types or len(shape.shape) != n_axes:
        raise ValueError(
            f"{name} is {shape.dtype} with {len(shape.shape)} axes, not {', '.join(types)} with {n_axes}"
        )
    return shape.shape


def _finite(name: str, values: npt.NDArray[np.generic]) -> Floats:
    """The values in float32. Raises ValueError if one is NaN, infinite or too large to be added up."""
    import numpy as np

    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32)
    if not (np.abs(numbers) <= _LARGEST).all():
        raise ValueError(f"{name} has a value that is not finite, or beyond {_LARGEST:g}")
    return numbers
