"""A GGUF that does not say where it came from, written with the gguf package alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_unknown(base: Path, out: Path) -> Path:
    """Write a Qwen 3 in Q4_0 without a name or a `base_model`, as a converter does that has no card.

    base: a folder of tests.support.tiny_models. No row of a Qwen 3 is permuted.
    """
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((base / "config.json").read_text("utf-8"))
    writer = gguf.GGUFWriter(out, "qwen3")
    for add, value in (
        (writer.add_block_count, config["num_hidden_layers"]),
        (writer.add_context_length, config["max_position_embeddings"]),
        (writer.add_embedding_length, config["hidden_size"]),
        (writer.add_feed_forward_length, config["intermediate_size"]),
        (writer.add_head_count, config["num_attention_heads"]),
        (writer.add_head_count_kv, config["num_key_value_heads"]),
        (writer.add_key_length, config["head_dim"]),
        (writer.add_value_length, config["head_dim"]),
        (writer.add_rope_dimension_count, config["head_dim"]),
        (writer.add_rope_freq_base, float(config["rope_parameters"]["rope_theta"])),
        (writer.add_layer_norm_rms_eps, config["rms_norm_eps"]),
        (writer.add_vocab_size, config["vocab_size"]),
        (writer.add_file_type, int(gguf.LlamaFileType.MOSTLY_Q4_0)),
    ):
        add(value)
    _add_vocabulary(writer, base, config["vocab_size"])
    places = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config["num_hidden_layers"])
    for name, values in load_file(base / "model.safetensors").items():
        kind = gguf.GGMLQuantizationType.F32 if values.ndim == 1 else gguf.GGMLQuantizationType.Q4_0
        place = places.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(place, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _add_vocabulary(writer: Any, base: Path, n_rows: int) -> None:
    tokenizer = json.loads((base / "tokenizer.json").read_text("utf-8"))
    ids = dict(tokenizer["model"]["vocab"])
    special = {each["content"]: each["id"] for each in tokenizer["added_tokens"]}
    tokens = {number: text for text, number in (ids | special).items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([tokens.get(i, f"[PAD{i}]") for i in range(n_rows)])
    writer.add_token_types([3 if i in special.values() else 1 if i in tokens else 5 for i in range(n_rows)])
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in merges])
    writer.add_eos_token_id(special["<|im_end|>"])
    writer.add_add_bos_token(False)
    writer.add_chat_template((base / "chat_template.jinja").read_text("utf-8"))
