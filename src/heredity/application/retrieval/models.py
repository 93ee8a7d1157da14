"""The models of a search: one that embeds texts, and a cross-encoder that orders the passages again.

An embedding is by a sentence encoder, its mean or first hidden state as its files say, or by a static model.

Promises: on one kind of machine a result depends only on its text: in fp32, with one text or pair at a time
in torch. Scores are rounded to four decimals, and equal ones are ordered by the chunk's id. The end of a text
that exceeds the model's length is not read. No code of a model is run, and only safetensors are opened.
Leaves to others: which texts, and comparing them (index.py).

Sources: Sentence-BERT, Reimers and Gurevych 2019 (1908.10084); passage re-ranking with BERT, Nogueira and Cho
2019 (1901.04085).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from heredity.application.retrieval.documents import Match
from heredity.core import host
from heredity.core.errors import Damaged, NotComparable, Unavailable, UsageError, first_line, how_to_install
from heredity.core.readers import json_of
from heredity.formats.architectures import CROSS_ENCODERS, EMBEDDING, POOLING, RANKING, modality_of
from heredity.formats.static_embeddings import holds_static, read_static
from heredity.formats.tokenizer_files import beginning, load_tokenizer, tokenizer_errors
from heredity.lineage.store import Store, search_store
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
        self._torch = torch
        try:
            self._is_mean = _pooling(grown.folder) == _KNOWN[0]
            self.n_tokens = _longest(grown.folder)
            self._tokenizer = load_tokenizer(grown.folder)
            self._network: PreTrainedModel = transformers.AutoModel.from_pretrained(
                grown.folder, dtype=torch.float32, use_safetensors=True, **_HERE
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
        weights: Tensor = self._network.get_input_embeddings().weight
        return weights

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text that `embed` reads, special ones included."""
        ids: list[int] = self._tokenizer(text, truncation=True, max_length=self.n_tokens)["input_ids"]
        return ids

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
        self._static = read_static(grown.folder, grown.record.name)
        self.n_tokens = self._static.n_tokens

    def embed(self, text: str) -> Floats:
        """The embedding of a text, of length 1. (hidden,)"""
        floats: Floats = self.embed_all([text])[0]
        return floats

    def embed_all(self, texts: Sequence[str]) -> Floats:
        """The embedding of each text. (text, hidden)"""
        model = self._static
        ids, starts = self._ids(texts)
        counts = csr_array(
            (model.weights[ids], model.rows[ids], starts), shape=(len(texts), len(model.vectors))
        )
        sums: Floats = counts @ model.vectors
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
        is_known = ids != self._static.unknown
        owners = np.repeat(np.arange(len(many)), [len(each) for each in many])[is_known]
        starts = np.zeros(len(many) + 1, np.int64)
        starts[1:] = np.bincount(owners, minlength=len(many)).cumsum()
        return ids[is_known], starts

    def _encoded(self, texts: Sequence[str]) -> list[Encoding]:
        whole = [text.encode("utf-8", "replace").decode() for text in texts]  # without lone surrogates
        read = self._static.tokenizer.encode_batch_fast
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

        return PreTrainedTokenizerFast(tokenizer_object=self._static.tokenizer)

    @property
    def token_vectors(self) -> Tensor:
        """The vector of each token, its weight in it. (vocabulary, hidden)"""
        import torch

        model = self._static
        return torch.from_numpy(model.vectors[model.rows] * model.weights[:, None])

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text that `embed` reads."""
        ids: list[int] = self._ids([text])[0].tolist()
        return ids

    def embed_vectors(self, vectors: Tensor) -> Tensor:
        """Embeddings of texts of equally many tokens, given the vectors of these: for gradients.

        vectors: (text, token, hidden). Returns (text, hidden), each of length 1.
        """
        from torch.nn.functional import normalize

        return normalize(vectors.sum(1), dim=1)


_HERE = {"trust_remote_code": False, "local_files_only": True}
_DECIMALS = 4  # a BLAS product may round the same pair differently at another place in memory
_KEPT = 16_384  # scores of the pairs that were read last: each model of a study asks the same questions
_OFFSET = ("roberta", "xlm-roberta")  # their positions begin after the padding's
_MAX_POSITIONS, _LEAST_TOKENS = 1 << 20, 8


class Reranking(NamedTuple):
    """A reranker, and how many passages of a search it reads."""

    reranker: Reranker
    candidates: int


def find_reranker(name: str, wanted: str = "", store: Store | None = None) -> Grown:
    """The cross-encoder of this name; its files are the recorded ones.

    wanted: its id, if that is known. Raises UnknownName, UsageError or Damaged. Raises NotComparable if the
    name has another id.
    """
    store = store or search_store()
    grown = store.named(name)
    model = grown.record
    if model.modality != RANKING or model.format != "safetensors":
        raise UsageError(
            f"'{model.name}' is no reranker (modality {model.modality}, {model.format}). "
            f"Take a cross-encoder with one label, of: {', '.join(CROSS_ENCODERS)}.",
            key="retrieval.rerank",
        )
    if wanted not in ("", model.id):
        raise NotComparable(
            f"The application was read with the reranker {name} {wanted[:12]}, and the store has "
            f"{model.id[:12]} under this name. Restore that model, or start a new study."
        )
    return store.ready(grown)


@lru_cache(maxsize=2)
def opened_reranker(name: str, wanted: str) -> Reranker:
    """The reranker with the id `wanted`, loaded once per process.

    Raises as find_reranker does, Unavailable without torch, and Damaged.
    """
    return Reranker(find_reranker(name, wanted))


class Reranker:
    """A loaded cross-encoder. Threads may share it."""

    def __init__(self, grown: Grown) -> None:
        self.model = grown.record
        try:
            import torch
            import transformers  # noqa: F401 (load_tokenizer needs it)
        except ImportError as error:
            raise Unavailable(
                f"A reranker needs {error.name}, which is not installed. "
                f"{how_to_install('torch')}, or leave out `rerank`."
            ) from None
        host.configure()
        host.prepare_transformers()
        self._torch, self._lock = torch, Lock()
        self.score = lru_cache(_KEPT)(self._score)
        try:
            config = json_of(grown.folder / "config.json")
            _check(config, grown.folder)
            self._tokenizer: PreTrainedTokenizerBase = load_tokenizer(grown.folder)
            own = self._tokenizer.model_max_length
            positions, padding = config["max_position_embeddings"], config.get("pad_token_id")
            assert isinstance(positions, int)  # _check
            first = (padding if isinstance(padding, int) else 1) + 1 if config["model_type"] in _OFFSET else 0
            if (longest := min(positions - first, own)) < _LEAST_TOKENS:
                raise ValueError(f"it reads {longest} tokens")
            self._n_tokens = longest
            self._network = _network(grown.folder)
        except MemoryError:  # it says nothing about the files
            raise
        except Exception as error:  # a configuration is a program's input: anything can be wrong with it
            raise Damaged(
                f"'{self.model.name}' is not a cross-encoder that reads: {first_line(error)}. Pull it again."
            ) from None

    def ordered(self, query: str, matches: Sequence[Match]) -> list[Match]:
        """The passages by their scores, best first. Raises Damaged if a score is not finite."""
        scored = [
            Match(chunk, round(self.score(query, chunk.searched), _DECIMALS) + 0.0) for chunk, _ in matches
        ]
        return sorted(scored, key=lambda each: (-each.score, each.chunk.id))

    def _score(self, query: str, text: str) -> float:
        """The logit of a pair: higher is more relevant."""
        # Without lone surrogates. A batch of one: of a pair with an empty text a tokenizer makes one text.
        pair = [[each.encode("utf-8", "replace").decode()] for each in (query, text)]
        try:
            with self._lock:  # setting its truncation is no thread's own
                pair = [[beginning(each, self._n_tokens, self._count)] for (each,) in pair]
                tokens = self._tokenizer(
                    *pair, truncation="longest_first", max_length=self._n_tokens, return_tensors="pt"
                )
            with self._torch.inference_mode():
                score = float(self._network(**tokens).logits[0, 0])
        except (IndexError, RuntimeError, ValueError) as error:
            raise self._damaged(first_line(error)) from None
        if not math.isfinite(score):
            raise self._damaged(f"its score is {score}")
        return score

    def _count(self, text: str) -> int:
        return len(self._tokenizer(text, truncation=True, max_length=self._n_tokens)["input_ids"])

    def _damaged(self, why: str) -> Damaged:
        return Damaged(f"The reranker '{self.model.name}' cannot score a passage: {why}.")


def _check(config: Mapping[str, object], folder: Path) -> None:
    """Raise ValueError unless a config is that of a cross-encoder, and no larger than its weights."""
    from safetensors import safe_open

    if modality_of(config) != RANKING:
        raise ValueError("its config.json has no head of one label")
    n_tensors = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "numpy") as weights:
            n_tensors += len(weights.keys())
    limits = {"num_hidden_layers": n_tensors, "max_position_embeddings": _MAX_POSITIONS}
    for key, most in limits.items():
        if not isinstance(value := config.get(key), int) or not 0 < value <= most:
            raise ValueError(f"its {key} is {value!r}, and must be from 1 to {most:,}")


def _network(folder: Path) -> PreTrainedModel:
    """The weights in fp32. Raises ValueError if one is missing."""
    import torch
    from transformers import AutoModelForSequenceClassification

    network, loaded = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **_HERE
    )
    if missing := sorted(loaded["missing_keys"]):  # transformers draws them at random
        raise ValueError(f"it has no weights {', '.join(missing[:3])}")
    pre_trained_model: PreTrainedModel = network.eval()
    return pre_trained_model
