"""Tiny random models of architectures that the torch engine lacks; transformers loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.tiny_models import CHATML, SMALL, make_tokenizer

_GPT2 = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512}
_ROUTED = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}
# By name: transformers' class of configuration, and its settings.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("BloomConfig", {"hidden_size": 64, "n_layer": 3, "n_head": 4}),
    "cohere": ("CohereConfig", {}),
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            **_ROUTED, "n_routed_experts": 8, "n_group": 2, "topk_group": 1, "n_shared_experts": 1,
            "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16, "v_head_dim": 16, "first_k_dense_replace": 1,
        },
    ),
    "falcon": ("FalconConfig", {"new_decoder_architecture": False, "multi_query": True}),
    "gemma2": ("Gemma2Config", {"head_dim": 16, "sliding_window": 24, "query_pre_attn_scalar": 16}),
    "glm4": ("Glm4Config", {"head_dim": 16}),
    "gpt2": ("GPT2Config", _GPT2),
    "gpt_neox": ("GPTNeoXConfig", {}),
    "gpt_oss": (
        "GptOssConfig",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 24},
    ),
    "granite": ("GraniteConfig", {"attention_multiplier": 0.25, "residual_multiplier": 0.5}),
    "jamba": (
        "JambaConfig",
        {
            "num_experts": 2, "attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_period": 2,
            "mamba_d_state": 8, "mamba_dt_rank": 8, "use_mamba_kernels": False, "num_experts_per_tok": 1,
        },
    ),
    "llama4_text": (
        "Llama4TextConfig",
        {
            "num_local_experts": 2, "head_dim": 16, "intermediate_size_mlp": 96,
            "attention_chunk_size": 64, "num_hidden_layers": 4,
        },
    ),
    "mamba": ("MambaConfig", {"state_size": 8, "conv_kernel": 4, "time_step_rank": 8}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmo2": ("Olmo2Config", {}),
    "opt": ("OPTConfig", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "phi": ("PhiConfig", {}),
    "phi3": ("Phi3Config", {}),
    "qwen3_moe": ("Qwen3MoeConfig", {**_ROUTED, "num_experts": 4, "head_dim": 16}),
    "recurrent_gemma": ("RecurrentGemmaConfig", {"lru_width": 64, "attention_window_size": 64}),
    "stablelm": ("StableLmConfig", {}),
    "starcoder2": ("Starcoder2Config", {"sliding_window": 24}),
}  # fmt: skip
# Their attention, positions and caches are those of others of these.
VARIANTS = frozenset({
    "cohere", "falcon", "glm4", "gpt_neox", "granite", "llama4_text", "olmo2", "phi", "qwen3_moe", "stablelm",
})  # fmt: skip


def make(folder: Path, name: str, template: str | None = CHATML, **settings: Any) -> Path:
    """A random model of this architecture, saved as safetensors with its tokenizer."""
    import torch
    import transformers

    kind, extra = ARCHITECTURES[name]
    chosen = {**SMALL, **extra, **settings, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**chosen))
    with torch.no_grad():  # otherwise most of them repeat one token
        for key, parameter in model.named_parameters():
            if "norm" in key or parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.mul_(3)
    model.save_pretrained(folder)
    make_tokenizer(folder, template)
    return folder
