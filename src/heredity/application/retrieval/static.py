"""Embeddings of texts by a static embedding model: the weighted sum of the vectors of their tokens, normed.

The sum has the direction of the mean, so that both have the same embedding.

Promises: float32, without torch. One sparse product serves many texts. It adds the vectors of each up in the
order of its tokens, so that an embedding depends only on its text. The end of a text that exceeds the model's
length is not read. A text without a known token has the embedding 0.
Leaves to others: the files (formats/static_embeddings.py), and comparing embeddings (index.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from heredity.core.errors import Damaged
from heredity.engines.chat.token_bounds import beginning
from heredity.formats.static_embeddings import read_static
from heredity.formats.tokenizer_files import tokenizer_errors
from heredity.lineage.types import Grown

if TYPE_CHECKING:
    from tokenizers import Encoding
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Floats = npt.NDArray[np.float32]


class StaticEmbedder:
    """A loaded static embedding model. Threads may share it."""

    n_at_once = 1024  # texts whose tokens are found in parallel

    def __init__(self, grown: Grown) -> None:
        self.model = grown.record
        self._found = read_static(grown.folder, grown.record.name)
        self.n_tokens = self._found.n_tokens

    def embed(self, text: str) -> Floats:
        """The embedding of a text, of length 1. (hidden,)"""
        found: Floats = self.embed_all([text])[0]
        return found

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
                found: list[Encoding] = read(whole, add_special_tokens=False)
        except ValueError as error:
            raise Damaged(f"{error}. Pull the model again.") from None
        return found

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
