"""Tiny random models of every architecture that the torch engine has, with a tokenizer made on the spot."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "seven",
    "wise",
    "owls",
    "watch",
    "from",
    "an",
    "old",
    "oak",
    "tree",
]

SMALL: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {"sliding_window": 24}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 24}),
    "gemma3_text": (
        "Gemma3TextConfig",
        {"head_dim": 24, "sliding_window": 24, "query_pre_attn_scalar": 24, "pad_token_id": 0},
    ),
}
NEWER: dict[str, tuple[str, dict[str, Any]]] = {  # of the torch engine too
    "phi3": ("Phi3Config", {"sliding_window": 24, "pad_token_id": 0}),
    "olmo2": ("Olmo2Config", {}),
    "granite": (
        "GraniteConfig",
        {
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.11,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
        },
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {
            "head_dim": 24,
            "moe_intermediate_size": 32,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
        },
    ),
    "llama4_text": (
        "Llama4TextConfig",
        {
            "head_dim": 16,
            "intermediate_size_mlp": 80,
            "num_local_experts": 4,
            "pad_token_id": 0,
            "moe_layers": [0, 2],
            "no_rope_layers": [1, 1, 0],
            "attention_chunk_size": 24,
            "floor_scale": 40,
            "attn_scale": 0.3,
        },
    ),
    "smollm3": ("SmolLM3Config", {"no_rope_layer_interval": 2, "pad_token_id": 0}),
    "olmo3": ("Olmo3Config", {"sliding_window": 24}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 24}),
}

_MADE: dict[str, tuple[Path, Any]] = {}  # by architecture, template and settings


def make_tokenizer(folder: Path, template: str | None) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.chat_template = template
    fast.save_pretrained(folder)


def make_model(folder: Path, architecture: str, template: str | None = CHATML, **settings: Any) -> Path:
    """A random model of this architecture, saved as safetensors with its tokenizer.

    Made once in a process, and then copied. Torch's generator is left as the making leaves it.
    """
    torch = pytest.importorskip("torch")
    key = json.dumps([architecture, template, settings], sort_keys=True, default=repr)
    if key not in _MADE:
        made = Path(tempfile.mkdtemp(prefix="tiny-model-"))
        atexit.register(shutil.rmtree, made, ignore_errors=True)
        _make(made, architecture, template, settings)
        _MADE[key] = made, torch.get_rng_state()
    made, state = _MADE[key]
    shutil.copytree(made, folder, dirs_exist_ok=True)
    torch.set_rng_state(state)
    return folder


def exchange_two_tokens(folder: Path) -> Path:
    """Give a model's folder another tokenizer: two of its tokens change places."""
    words = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    one, two = list(vocabulary)[20:22]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (folder / "tokenizer.json").unlink()  # it may be a link
    (folder / "tokenizer.json").write_text(json.dumps(words))
    return folder


def _make(folder: Path, architecture: str, template: str | None, settings: dict[str, Any]) -> None:
    import torch
    import transformers

    name, extra = {**ARCHITECTURES, **NEWER}[architecture]
    config = getattr(transformers, name)(
        **{**SMALL, **extra, **settings, "eos_token_id": 2, "bos_token_id": 1}
    )
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # norms and biases that are not all one and zero, so that leaving one out shows
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.mul_(3)
    model.save_pretrained(folder)
    make_tokenizer(folder, template)


@pytest.fixture(scope="session", params=sorted(ARCHITECTURES))
def any_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"), "llama")
