"""Tiny random cross-encoders: a folder as transformers writes it, and a recipe of one for a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from heredity.lineage.types import Description, Grown

WORDS = (
    "heat", "pump", "tea", "green", "parcel", "refund", "the", "a", "of", "is", "how", "long", "hum", "night",
)  # fmt: skip
ARCHITECTURES = ("bert", "roberta", "xlm-roberta", "electra", "modernbert")
POSITIONS = 64


def write_cross_encoder(folder: Path, architecture: str = "bert", seed: int = 0, n_labels: int = 1) -> None:
    """Write a random encoder with a head of `n_labels` labels, and its tokenizer."""
    import torch
    import transformers

    torch.manual_seed(seed)
    shape = {
        "vocab_size": len(WORDS) + 5, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": POSITIONS, "num_labels": n_labels,
        "pad_token_id": 1, "initializer_range": 0.5,
    }  # fmt: skip
    if architecture == "electra":
        shape["embedding_size"] = 16
    if architecture == "modernbert":
        shape |= {"cls_token_id": 0, "sep_token_id": 2, "bos_token_id": 0, "eos_token_id": 2}
    config = transformers.AutoConfig.for_model(architecture, **shape)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    _write_tokenizer(folder, architecture)


def _write_tokenizer(folder: Path, architecture: str) -> None:
    """Words, with the special tokens between a pair that the architecture has; "roberta" knows no kinds."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
    vocabulary = {word: at for at, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    between = "[SEP] [SEP]" if "roberta" in architecture else "[SEP]"
    kind = 0 if "roberta" in architecture or architecture == "modernbert" else 1
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", f"[CLS] $A {between} $B:{kind} [SEP]:{kind}", [("[CLS]", 0), ("[SEP]", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="[CLS]", pad_token="[PAD]", sep_token="[SEP]",
        unk_token="[UNK]", mask_token="[MASK]",
        model_input_names=["input_ids", *(["token_type_ids"] if kind else []), "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip


@dataclass(frozen=True)
class TinyReranker:
    """A recipe for a random cross-encoder."""

    seed: int = 0
    architecture: str = "bert"
    name: str = "tiny-reranker"
    kind = "tiny"

    def settings(self) -> dict[str, object]:
        return {"seed": self.seed, "architecture": self.architecture}

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        write_cross_encoder(out, self.architecture, self.seed)
        return Description(self.name, self.architecture, "apache-2.0", "safetensors", modality="text-ranking")
