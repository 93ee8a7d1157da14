"""Embeddings of texts by a model of the store: a sentence encoder, or a static embedding model.

Of an encoder it is the mean or first hidden state, as its files say.

Promises: fp32, and of an encoder one text at a time, so that an embedding depends only on its text (on one
kind of machine). The end of a text that exceeds the model's length is not read.
Leaves to others: which texts, and comparing them (index.py).

Source: Sentence-BERT, Reimers and Gurevych 2019 (1908.10084).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from heredity.application.retrieval import search_store
from heredity.core import host
from heredity.core.errors import Damaged, NotComparable, Unavailable, UsageError, first_line, how_to_install
from heredity.core.readers import json_of
from heredity.engines.chat.token_bounds import beginning
from heredity.formats.choice import EMBEDDING, POOLING
from heredity.formats.static_embeddings import holds_static, read_static
from heredity.formats.tokenizer_files import load_tokenizer, tokenizer_errors
from heredity.lineage.store import Store
from heredity.lineage.types import Grown

if TYPE_CHECKING:
    from tokenizers import Encoding
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from heredity.core.records import Model

Floats = npt.NDArray[np.float32]
DEFAULT = "all-minilm-l6-v2"
_KNOWN = ("pooling_mode_mean_tokens", "pooling_mode_cls_token")


class Embedder(Protocol):
    """A loaded embedding model. The members for gradients need torch.

    n_tokens: of a text that are read. n_at_once: texts in one call of `embed_all` that are fast together.
    """

    model: Model
    n_tokens: int
    n_at_once: int

    def __hash__(self) -> int: ...

    def embed(self, text: str) -> Floats:
        """The embedding of a text, of length 1; 0 if nothing in it is known to a static model. (hidden,)"""

    def embed_all(self, texts: Sequence[str]) -> Floats:
        """The embedding of each text, as `embed` gives it. (text, hidden)"""

    def count(self, text: str) -> int:
        """The tokens of the whole text, special ones included."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""

    @property
    def token_vectors(self) -> Tensor:
        """The model's input embeddings. (vocabulary, hidden)"""

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text that `embed` reads, special ones included."""

    def embed_vectors(self, vectors: Tensor) -> Tensor:
        """Embeddings of texts of equally many tokens, given the input embeddings of these: for gradients.

        vectors: (text, token, hidden). Returns (text, hidden), each of length 1.
        """


def open_embedder(name: str, store: Store | None = None) -> Embedder:
    """The embedder of a model of the store. Raises UnknownName, Unavailable, UsageError or Damaged.

    Its files are the recorded ones.
    """
    store = store or search_store()
    ready = store.ready(find_embedder(name, store=store))
    return StaticEmbedder(ready) if holds_static(ready.folder) else SentenceEncoder(ready)


def find_embedder(name: str, wanted: str = "", store: Store | None = None) -> Grown:
    """The embedding model of this name. wanted: its id, if that is known.

    Raises UnknownName or UsageError. Raises NotComparable if the name has another id.
    """
    grown = (store or search_store()).named(name)
    model = grown.record
    if model.modality != EMBEDDING or model.format != "safetensors":
        raise UsageError(
            f"'{model.name}' is no embedding model (modality {model.modality}, "
            f"{model.format}). Take one, such as {DEFAULT}."
        )
    if wanted not in ("", model.id):
        raise NotComparable(
            f"The application was read with the embedding model {name} {wanted[:12]}, and the store has "
            f"{model.id[:12]} under this name. Restore that model, or start a new study."
        )
    return grown


@lru_cache(maxsize=2)
def opened_embedder(name: str, wanted: str) -> Embedder:
    """The embedder with the id `wanted`, loaded once per process. Raises as the functions above."""
    return open_embedder(find_embedder(name, wanted).record.id)


class SentenceEncoder:
    """A loaded sentence encoder."""

    n_at_once = 1

    def __init__(self, grown: Grown) -> None:
        self.model = grown.record
        try:
            import torch
            import transformers
        except ImportError as error:
            raise Unavailable(
                f"Embeddings need {error.name}, which is not installed. "
                f"{how_to_install('torch')}, or search by bm25."
            ) from None
        host.configure()
        host.prepare_transformers()
        here = {"trust_remote_code": False, "local_files_only": True}
        self._torch = torch
        try:
            self._is_mean = _pooling(grown.folder) == _KNOWN[0]
            self.n_tokens = _longest(grown.folder)
            self._tokenizer = load_tokenizer(grown.folder)
            self._network: PreTrainedModel = transformers.AutoModel.from_pretrained(
                grown.folder, dtype=torch.float32, use_safetensors=True, **here
            ).eval()
        except (OSError, ValueError, KeyError) as error:
            raise Damaged(
                f"{grown.folder}: not a sentence encoder: {first_line(error)}. Pull it again."
            ) from None

    @host.temporary_helpers()  # a search often runs in a thread of its own
    def embed(self, text: str) -> Floats:
        """The embedding of a text, of length 1. (hidden,)"""
        torch = self._torch
        # Of a text of megabytes the rest, which is not read, would take minutes.
        text = beginning(text, self.n_tokens, lambda part: len(self.tokens(part)))
        tokens = self._tokenizer(text, truncation=True, max_length=self.n_tokens, return_tensors="pt")
        with torch.inference_mode():
            hidden = self._network(**tokens).last_hidden_state[0]  # (token, hidden)
            pooled = hidden.mean(0) if self._is_mean else hidden[0]
            floats: Floats = torch.nn.functional.normalize(pooled, dim=0).numpy()
        return floats

    def embed_all(self, texts: Sequence[str]) -> Floats:
        """The embedding of each text, one after the other. (text, hidden)"""
        return np.stack([self.embed(text) for text in texts])

    def count(self, text: str) -> int:
        """The tokens of the whole text, special ones included."""
        return len(self._tokenizer(text, truncation=False, verbose=False)["input_ids"])

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self._tokenizer

    @property
    def token_vectors(self) -> Tensor:
        """The model's input embeddings. (vocabulary, hidden)"""
        found: Tensor = self._network.get_input_embeddings().weight
        return found

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text that `embed` reads, special ones included."""
        found: list[int] = self._tokenizer(text, truncation=True, max_length=self.n_tokens)["input_ids"]
        return found

    def embed_vectors(self, vectors: Tensor) -> Tensor:
        """Embeddings of texts of equally many tokens, given the input embeddings of these: for gradients.

        vectors: (text, token, hidden). Returns (text, hidden), each of length 1.
        """
        hidden = self._network(inputs_embeds=vectors).last_hidden_state
        pooled = hidden.mean(1) if self._is_mean else hidden[:, 0]
        return self._torch.nn.functional.normalize(pooled, dim=1)


def _pooling(folder: Path) -> str:
    """The one way of pooling that the model's files name. Raises ValueError for another one."""
    if not (folder / POOLING).is_file():
        return _KNOWN[0]
    modes = json_of(folder / POOLING)
    named = [key for key, is_on in modes.items() if key.startswith("pooling_mode_") and is_on is True]
    if len(named) != 1 or named[0] not in _KNOWN:
        raise ValueError(f"its pooling is {', '.join(named) or 'unknown'}; known: {', '.join(_KNOWN)}")
    return str(named[0])


def _longest(folder: Path) -> int:
    """The tokens that the model reads: of its sentence_bert_config.json, or of its positions."""
    own = folder / "sentence_bert_config.json"
    if own.is_file():
        return int(json_of(own)["max_seq_length"])
    return int(json_of(folder / "config.json")["max_position_embeddings"])


class StaticEmbedder:
    """A loaded static embedding model: the weighted sum of the vectors of a text's tokens, normed.

    The sum has the direction of the mean, so that both have the same embedding. One sparse product serves
    many texts. It adds the vectors of each up in the order of its tokens, so that an embedding depends only
    on its text. It needs no torch. Threads may share it.
    """

    n_at_once = 1024  # texts whose tokens are found in parallel

    def __init__(self, grown: Grown) -> None:
        self.model = grown.record
        self._found = read_static(grown.folder, grown.record.name)
        self.n_tokens = self._found.n_tokens

    def embed(self, text: str) -> Floats:
        """The embedding of a text, of length 1. (hidden,)"""
        floats: Floats = self.embed_all([text])[0]
        return floats

    def embed_all(self, texts: Sequence[str]) -> Floats:
        """The embedding of each text. (text, hidden)"""
        found = self._found
        ids, starts = self._ids(texts)
        counts = csr_array(
            (found.weights[ids], found.rows[ids], starts), shape=(len(texts), len(found.vectors))
        )
        sums: Floats = counts @ found.vectors
        lengths = np.sqrt(np.square(sums, dtype=np.float64).sum(axis=1, keepdims=True))
        return (sums / np.where(lengths > 0, lengths, 1)).astype(np.float32)

    def count(self, text: str) -> int:
        """The tokens of the whole text."""
        return len(self._encoded([text])[0])

    def _ids(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of all texts in a row, and where each text begins: (token,) and (text + 1,)."""
        read = [beginning(text, self.n_tokens, self.count) for text in texts]
        many = [each.ids[: self.n_tokens] for each in self._encoded(read)]
        ids = np.fromiter(chain.from_iterable(many), np.int64)
        is_known = ids != self._found.unknown
        owners = np.repeat(np.arange(len(many)), [len(each) for each in many])[is_known]
        starts = np.zeros(len(many) + 1, np.int64)
        starts[1:] = np.bincount(owners, minlength=len(many)).cumsum()
        return ids[is_known], starts

    def _encoded(self, texts: Sequence[str]) -> list[Encoding]:
        whole = [text.encode("utf-8", "replace").decode() for text in texts]  # without lone surrogates
        read = self._found.tokenizer.encode_batch_fast
        try:
            with tokenizer_errors(f"The tokenizer of '{self.model.name}' does not read a text"):
                encodings: list[Encoding] = read(whole, add_special_tokens=False)
        except ValueError as error:
            raise Damaged(f"{error}. Pull the model again.") from None
        return encodings

    # --- gradients, for the words of a planted document ---

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, for transformers."""
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast(tokenizer_object=self._found.tokenizer)

    @property
    def token_vectors(self) -> Tensor:
        """The vector of each token, its weight in it. (vocabulary, hidden)"""
        import torch

        found = self._found
        return torch.from_numpy(found.vectors[found.rows] * found.weights[:, None])

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text that `embed` reads."""
        found: list[int] = self._ids([text])[0].tolist()
        return found

    def embed_vectors(self, vectors: Tensor) -> Tensor:
        """Embeddings of texts of equally many tokens, given the vectors of these: for gradients.

        vectors: (text, token, hidden). Returns (text, hidden), each of length 1.
        """
        from torch.nn.functional import normalize

        return normalize(vectors.sum(1), dim=1)
