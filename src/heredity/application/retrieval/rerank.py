"""Order the passages of a search by a cross-encoder of the store, which reads question and passage together.

Promises: fp32, one pair at a time, so that a score depends only on its pair (on one kind of machine). Scores
are rounded to four decimals, and equal ones are ordered by the chunk's id. The end of a pair that exceeds the
model's length is not read. No code of a model's own is run, and only safetensors are opened.
Leaves to others: the candidates (index.py).

Source: passage re-ranking with BERT, Nogueira and Cho 2019 (1901.04085).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from heredity.application.retrieval import search_store
from heredity.application.retrieval.chunks import Match
from heredity.core import host
from heredity.core.errors import Damaged, NotComparable, Unavailable, UsageError, first_line, how_to_install
from heredity.core.readers import json_of
from heredity.engines.chat.token_bounds import beginning
from heredity.formats.choice import CROSS_ENCODERS, RANKING, modality_of
from heredity.formats.tokenizer_files import load_tokenizer
from heredity.lineage.store import Store
from heredity.lineage.types import Grown

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
            self._n_tokens = _longest(config, self._tokenizer.model_max_length)
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


def _longest(config: Mapping[str, object], own: int) -> int:
    """The tokens of a pair that the model reads: of its positions, or fewer by its tokenizer."""
    positions, padding = config["max_position_embeddings"], config.get("pad_token_id")
    assert isinstance(positions, int)  # _check
    first = (padding if isinstance(padding, int) else 1) + 1 if config["model_type"] in _OFFSET else 0
    if (longest := min(positions - first, own)) < _LEAST_TOKENS:
        raise ValueError(f"it reads {longest} tokens")
    return longest
