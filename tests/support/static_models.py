"""A tiny static embedding model in a folder, in the form that model2vec writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

WORDS = ("[UNK]", "heat", "pump", "tea", "green", "parcel", "refund", "the", "a", "of", "is", "how", "long")
PADDING = {
    "strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 3, "pad_type_id": 0,
    "pad_token": "tea",
}  # fmt: skip


def vectors(n: int = len(WORDS), n_hidden: int = 6, seed: int = 0) -> np.ndarray:
    """Random vectors, (n, n_hidden) float32."""
    return np.random.default_rng(seed).standard_normal((n, n_hidden)).astype(np.float32)


def write_static(
    out: Path,
    embeddings: np.ndarray | None = None,
    *,
    words: Sequence[str] = WORDS,
    tensors: dict[str, np.ndarray] | None = None,
    config: dict[str, Any] | None = None,
    modules: object = None,
) -> Path:
    """Write a model of words. tensors: beside `embeddings`. config: more settings. Returns the folder.

    Its tokenizer.json pads and truncates, as that of a sentence encoder does; a static model does neither.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    out.mkdir(parents=True)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    written = json.loads(tokenizer.to_str())
    written["padding"] = PADDING
    written["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    (out / "tokenizer.json").write_text(json.dumps(written))
    embeddings = vectors(len(words)) if embeddings is None else embeddings
    save_file({"embeddings": embeddings, **(tensors or {})}, out / "model.safetensors")
    settings = {"model_type": "model2vec", "architectures": ["StaticModel"], "normalize": True}
    (out / "config.json").write_text(json.dumps(settings | (config or {})))
    kinds = ("StaticEmbedding", "Normalize")
    usual = [{"idx": i, "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)]
    (out / "modules.json").write_text(json.dumps(usual if modules is None else modules))
    return out
