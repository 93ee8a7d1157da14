"""A small sentence encoder (MiniLM, 22M parameters) from the store, one text at a time, in fp32.

Promises: nothing is downloaded; a text's vector comes from that text alone, never from its company in a
batch, since texts are run one by one (on two cores a padded batch is no faster); any text is taken, and cut.
Leaves to others: what the vectors mean (_learned_model.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from heredity.errors import Damaged, Unavailable, UnknownName

if TYPE_CHECKING:
    from torch import Tensor

BASE = "all-minilm-l6-v2"
PROMPT_TOKENS = (48, 24)  # from its beginning and from its end
FIRST, REST = 40, 136  # an answer's first tokens, and those after them up to here
_READ = 3000  # characters of each end of a text that are tokenized
_CLS, _SEP = 101, 102

Vector = NDArray[np.float64]


class Vectors(NamedTuple):
    """What was asked, how the answer begins and goes on: of length one, or zero where there is none."""

    prompt: Vector
    first: Vector
    rest: Vector


class Encoder:
    """The encoder and its tokenizer, from a folder. Raises Unavailable without torch, or Damaged."""

    def __init__(self, folder: Path) -> None:
        try:
            import torch
            from safetensors.torch import load_file
            from tokenizers import Tokenizer
        except ImportError as error:
            raise Unavailable(
                f"The judge 'learned' needs torch, and {error.name} is not installed. "
                "Install it: pip install 'heredity[torch]', or take the judge 'rules'."
            ) from None
        self.torch = torch
        try:
            self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self.weights: dict[str, Tensor] = {
                name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()
            }
        except Exception as error:  # the tokenizer's errors have no narrower type
            raise Damaged(f"{folder}: not the encoder '{BASE}': {error}. Pull it again.") from None
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self._vector = lru_cache(maxsize=1024)(self._run)  # many trials share a prompt

    def vectors(self, prompt: str, text: str) -> Vectors:
        """The three vectors of a prompt and its answer."""
        asked, said = self._ids(prompt), self._ids(text)
        n_first, n_last = PROMPT_TOKENS
        if len(asked) > n_first + n_last:
            asked = asked[:n_first] + asked[-n_last:]
        parts = (asked, said[:FIRST], said[FIRST:REST])
        return Vectors(*(self._vector(tuple(ids)) for ids in parts))

    def _ids(self, text: str) -> list[int]:
        text = text if len(text) <= 2 * _READ else f"{text[:_READ]} {text[-_READ:]}"
        clean = text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate is no text
        ids: list[int] = self.tokenizer.encode(clean, add_special_tokens=False).ids
        return ids

    def _run(self, ids: Iterable[int]) -> Vector:
        row = self.torch.tensor([[_CLS, *ids, _SEP]])
        if row.shape[1] == 2:
            return np.zeros(self.config["hidden_size"])
        n_threads = self.torch.get_num_threads()
        self.torch.set_num_threads(1)  # a short text gains little by two; a busy machine loses much
        try:
            with self.torch.inference_mode():
                hidden = self._embed(row)
                for layer in range(self.config["num_hidden_layers"]):
                    hidden = self._layer(layer, hidden)
                mean = hidden[0].mean(0).numpy().astype(float)
        finally:
            self.torch.set_num_threads(n_threads)
        return np.asarray(mean / np.linalg.norm(mean))

    def _embed(self, ids: Tensor) -> Tensor:
        w = self.weights
        position = w["embeddings.position_embeddings.weight"][: ids.shape[1]]
        kind = w["embeddings.token_type_embeddings.weight"][0]
        return self._norm(
            "embeddings.LayerNorm", w["embeddings.word_embeddings.weight"][ids] + position + kind
        )

    def _layer(self, n: int, hidden: Tensor) -> Tensor:
        at, heads = f"encoder.layer.{n}", self.config["num_attention_heads"]
        batch, length, width = hidden.shape
        query, key, value = (
            self._linear(f"{at}.attention.self.{which}", hidden)
            .view(batch, length, heads, width // heads)
            .transpose(1, 2)
            for which in ("query", "key", "value")
        )
        weights = (query @ key.transpose(-1, -2) / math.sqrt(width // heads)).softmax(-1)
        mixed = (weights @ value).transpose(1, 2).reshape(batch, length, width)
        attended = self._linear(f"{at}.attention.output.dense", mixed)
        hidden = self._norm(f"{at}.attention.output.LayerNorm", hidden + attended)
        inner = self.torch.nn.functional.gelu(self._linear(f"{at}.intermediate.dense", hidden))
        return self._norm(f"{at}.output.LayerNorm", hidden + self._linear(f"{at}.output.dense", inner))

    def _linear(self, place: str, x: Tensor) -> Tensor:
        w = self.weights
        return self.torch.nn.functional.linear(x, w[f"{place}.weight"], w[f"{place}.bias"])

    def _norm(self, place: str, x: Tensor) -> Tensor:
        w, epsilon = self.weights, self.config["layer_norm_eps"]
        return self.torch.nn.functional.layer_norm(
            x, x.shape[-1:], w[f"{place}.weight"], w[f"{place}.bias"], epsilon
        )


def base_folder() -> Path:
    """The folder of the encoder in the store. Raises Unavailable with the command that pulls it."""
    from heredity.lineage import Store

    try:
        return Store().get(BASE).folder
    except (Unavailable, UnknownName):
        raise Unavailable(
            f"The judge 'learned' needs the model '{BASE}', which is not in the store."
            f" Pull it: heredity pull {BASE}",
            code="model-not-pulled",
        ) from None
