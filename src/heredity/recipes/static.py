"""Distil a sentence encoder into a static embedding model.

It has one vector for each token, and no network. The encoder reads each token of its vocabulary between its
special tokens, and the states are averaged. The principal components of these vectors are kept, and each
vector is multiplied by a weight: frequent tokens count less. A vocabulary is ordered by frequency, so the
rank of a token gives its frequency by Zipf's law.

The files are those of model2vec, which loads them, and so does sentence-transformers.

Source: model2vec, Tulkens and van Dongen 2024 (github.com/MinishLab/model2vec); the weights by smooth inverse
frequency (SIF), Arora et al. 2017.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from heredity.core import host
from heredity.core.errors import Damaged, UsageError, first_line
from heredity.core.progress import Watch, phase
from heredity.core.records import Model
from heredity.formats.architectures import EMBEDDING
from heredity.formats.static_embeddings import (
    CONFIG,
    MODULES,
    TENSORS,
    TOKENIZER,
    USUAL_TOKENS,
    VECTORS,
    holds_static,
)
from heredity.formats.tokenizer_files import read_tokenizer
from heredity.lineage.types import Description, Grown
from heredity.recipes import ComputingRecipe, setting

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

    Values = npt.NDArray[np.float64]

_UNUSED = re.compile(r"\[unused\d+\]")  # places of a BERT vocabulary that no text has
_AT_ONCE = 256  # tokens in one forward pass
_LAYERS, _LIBRARY = ("StaticEmbedding", "Normalize"), "sentence_transformers.models"


@dataclass(frozen=True)
class Static(ComputingRecipe):
    """A static embedding model of one parent, a sentence encoder."""

    dims: int = setting(256, "Size of an embedding, by PCA; 0: that of the encoder, without PCA.")
    sif: float = setting(1e-4, "SIF coefficient of the weights by rank; 0: all tokens count alike.")
    name: str = field(default="", compare=False)
    watch: Watch | None = field(default=None, compare=False)

    kind = "static"
    EXAMPLE = "heredity derive static all-minilm-l6-v2"

    def __post_init__(self) -> None:
        self.refuse_non_finite()
        if self.dims < 0:
            raise UsageError(f"dims must be 0 or more, not {self.dims}.", code="bad-setting", key="dims")
        if not 0 <= self.sif < 1:
            raise UsageError(
                f"sif must be from 0 to below 1, not {self.sif:g}.", code="bad-setting", key="sif"
            )

    def check_parent(self, parent: Model) -> None:
        """Raise UsageError for a model that is not a sentence encoder."""
        if parent.modality != EMBEDDING or parent.format != "safetensors":
            raise _no_encoder(parent)

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Write the vectors, the tokenizer and the settings.

        Raises UsageError for another parent or too many `dims`, and Damaged for one that does not load.
        """
        import numpy as np

        (parent,) = parents
        record = parent.record
        self.check_parent(record)
        if holds_static(parent.folder):
            raise _no_encoder(record)
        tokenizer = _tokenizer(parent)
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        tokens = np.array(sorted(i for token, i in vocabulary.items() if not _UNUSED.fullmatch(token)))
        states = self._states(parent, tokenizer)
        if self.dims > (n_axes := min(states.shape[1], len(tokens) - 1)):
            raise UsageError(
                f"dims must be at most {n_axes} for this encoder, not {self.dims}.",
                code="bad-setting",
                key="dims",
            )
        reduced, share = principal(states[tokens], self.dims)
        vectors = np.zeros((len(states), reduced.shape[1]), np.float32)  # of an unused token 0
        vectors[tokens] = reduced * zipf_weights(len(tokens), self.sif)[:, None]
        _write(parent, out, vectors, self._config(record.name, vectors.shape[1]))
        notes = {"vocabulary": f"{len(tokens):,} tokens"}
        if self.dims:
            notes["components"] = (
                f"{self.dims} of {states.shape[1]} hold {100 * share:.1f} % of the token vectors' variance"
            )
        versions = {each: version(each) for each in ("torch", "transformers", "tokenizers", "safetensors")}
        return Description(
            self.name or f"{record.name}-static", record.family, record.licence, "safetensors", EMBEDDING,
            notes, versions,
        )  # fmt: skip

    def _states(self, parent: Grown, tokenizer: Tokenizer) -> Values:
        """The mean state of each token id between the special tokens. (token, hidden)"""
        import numpy as np
        import torch

        network = _network(parent).to(self.device.torch)
        if not (n_ids := (1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1))):
            raise Damaged(f"the tokenizer of '{parent.record.name}' has no tokens")
        read = tokenizer.encode("a")
        own = [at for at, is_special in enumerate(read.special_tokens_mask) if not is_special]
        before, after = (read.ids[: own[0]], read.ids[own[-1] + 1 :]) if own else ([], [])
        if n_ids > (n_known := network.get_input_embeddings().num_embeddings):
            raise Damaged(f"'{parent.record.name}' has {n_known:,} input embeddings for {n_ids:,} tokens.")
        layers = []
        with (
            phase(self.watch, "embedding the vocabulary", parent.record.name, n_ids, "tokens") as meter,
            torch.inference_mode(),
        ):
            for start in range(0, n_ids, _AT_ONCE):
                some = range(start, min(start + _AT_ONCE, n_ids))
                ids = torch.tensor([[*before, i, *after] for i in some])
                ids = ids.to(self.device.torch)
                hidden = network(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
                layers.append(hidden.mean(1).double().cpu().numpy())
                meter.reached(some.stop)
        states: Values = np.concatenate(layers)
        if not np.isfinite(states).all():
            raise Damaged(f"'{parent.record.name}' gives states that are not finite.")
        return states

    def _config(self, name: str, n_hidden: int) -> dict[str, object]:
        """The settings, by the names of model2vec."""
        return {
            "model_type": "model2vec",
            "architectures": ["StaticModel"],
            "tokenizer_name": name,
            "apply_pca": self.dims or None,
            "sif_coefficient": self.sif or None,
            "hidden_dim": n_hidden,
            "seq_length": 1_000_000,
            "max_length": USUAL_TOKENS,
            "normalize": True,
            "pooling": "mean",
            "embedding_dtype": "float32",
        }


# --- numbers ---


def principal(vectors: Values, n: int) -> tuple[Values, float]:
    """The first `n` principal components of vectors (token, hidden), and their share of the variance.

    The sign of a component is that of its value farthest from 0. With n = 0 the vectors stay as they are.
    """
    import numpy as np

    if not n:
        return vectors, 1.0
    centred = vectors - vectors.mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred / (len(vectors) - 1))
    components = centred @ axes[:, ::-1][:, :n]
    farthest = components[np.abs(components).argmax(axis=0), np.arange(n)]
    total = float(variances.clip(0).sum())
    share = float(variances[::-1][:n].clip(0).sum()) / total if total else 1.0
    return components * np.where(farthest < 0, -1.0, 1.0), share


def zipf_weights(n: int, sif: float) -> Values:
    """The weight of each of `n` tokens by rank: sif / (sif + p), where p is 1 / (rank + 1), normed. (n,)

    With sif = 0 all are 1.
    """
    import numpy as np

    inverse = 1 / np.arange(2, n + 2)
    return sif / (sif + inverse / inverse.sum()) if sif else np.ones(n)


# --- the encoder ---


def _no_encoder(parent: Model) -> UsageError:
    return UsageError(
        f"'{parent.name}' is no sentence encoder (modality {parent.modality}, {parent.format}), of which"
        " static embeddings are made. Take one, such as all-minilm-l6-v2."
    )


def _tokenizer(parent: Grown) -> Tokenizer:
    try:
        return read_tokenizer(parent.folder / TOKENIZER)
    except ValueError as error:
        raise _unread(parent, error) from None


def _network(parent: Grown) -> PreTrainedModel:
    import torch
    from transformers import AutoModel

    host.configure()
    host.prepare_transformers()
    try:
        pre_trained_model: PreTrainedModel = AutoModel.from_pretrained(
            parent.folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False,
            local_files_only=True,
        ).eval()  # fmt: skip
    except (OSError, ValueError, KeyError) as error:
        raise _unread(parent, error) from None
    return pre_trained_model


def _unread(parent: Grown, error: Exception) -> Damaged:
    return Damaged(
        f"'{parent.record.name}' does not load as a sentence encoder: {first_line(error)}. Pull it again."
    )


# --- files ---


def _write(parent: Grown, out: Path, vectors: npt.NDArray[np.float32], config: dict[str, object]) -> None:
    from safetensors.numpy import save_file

    save_file({VECTORS: vectors}, out / TENSORS)
    tokenizer = json.loads((parent.folder / TOKENIZER).read_text("utf-8"))
    tokenizer |= {"padding": None, "truncation": None, "post_processor": None}
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{layer}" if i else ".", "type": f"{_LIBRARY}.{layer}"}
        for i, layer in enumerate(_LAYERS)
    ]
    written = {TOKENIZER: tokenizer, CONFIG: config, MODULES: modules}
    for name, value in written.items():
        (out / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


DERIVES = Static
