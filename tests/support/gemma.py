"""A tiny random Gemma 3 with a tokenizer like Gemma's: pieces, bytes, runs of line ends, no prefix space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.support.tiny_models import SMALL, WORDS

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else"
    " 'user') + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
SHAPE: dict[str, Any] = {
    **SMALL,
    "vocab_size": 640,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 7,  # the sixth attends to all
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 24,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "eos_token_id": [1, 6],
    "bos_token_id": 2,
}


def make_gemma(folder: Path, template: str | None = TEMPLATE, **settings: Any) -> Path:
    """The model, saved as safetensors with its tokenizer."""
    from transformers import AutoModelForCausalLM, Gemma3TextConfig

    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(Gemma3TextConfig(**{**SHAPE, **settings}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(
                parameter + torch.randn_like(parameter) * 0.2 if "norm" in name else parameter * 3
            )
    model.save_pretrained(folder)
    make_tokenizer(folder, template)
    return folder


def make_tokenizer(folder: Path, template: str | None) -> None:
    from tokenizers import AddedToken
    from transformers import GemmaTokenizer
    from transformers.tokenization_utils_base import generate_merges

    words = [f"▁{word}" for word in WORDS]
    chains = {word[:n] for word in words for n in range(2, len(word) + 1)} | {"▁" * 2, "▁" * 3, "▁" * 4}
    letters = sorted({letter for word in words for letter in word} | set("0123456789*_=.,'(){}:üö"))
    pieces = sorted(chains, key=lambda piece: (len(piece), piece))
    ends = ["\n", "\n\n", "\n\n\n"]
    tokens = [*_SPECIAL, *ends, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *letters]
    vocabulary = {token: ident for ident, token in enumerate(tokens)}
    order = {token: -ident for token, ident in vocabulary.items()}
    tokenizer = GemmaTokenizer(
        vocab=vocabulary,
        merges=generate_merges(vocabulary, order),
        additional_special_tokens=_SPECIAL[5:],
        add_bos_token=True,
    )
    tokenizer.add_tokens([AddedToken(end, normalized=False, special=False) for end in ends])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
