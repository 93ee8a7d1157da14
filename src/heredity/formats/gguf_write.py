"""Write a folder of safetensors as one GGUF, each matrix in a format of llama.cpp.

Promises: equal folders give equal bytes. A model that llama.cpp would compute differently is refused: scaled
rotary positions, an unknown architecture or tokenizer. Vectors stay in fp32, as in llama.cpp. One tensor at a
time is in memory.
Leaves to others: whether the file answers as its parent did (deploy/export, or a study).

Source: the GGUF specification; tensor names and block formats are the gguf package's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from heredity.core.errors import Damaged, Refused
from heredity.core.files import explain_full_disk
from heredity.core.progress import Watch, phase
from heredity.formats import gguf_gemma, gguf_tokenizer
from heredity.formats.gguf import GgufChatReader
from heredity.formats.safetensors_io import read_safetensors
from heredity.formats.weights import read_json

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter
    from transformers import PreTrainedConfig

# Our name -> the formats of matrices, and of embedding and head, which lose most in 4 and 5 bits.
FORMATS = {
    "q8_0": ("Q8_0", "Q8_0"), "q5_1": ("Q5_1", "Q8_0"), "q5_0": ("Q5_0", "Q8_0"), "q4_1": ("Q4_1", "Q8_0"),
    "q4_0": ("Q4_0", "Q8_0"), "bf16": ("BF16", "BF16"), "f16": ("F16", "F16"), "f32": ("F32", "F32"),
}  # fmt: skip
_ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3"
}  # fmt: skip
_ENDS = ("token_embd.weight", "output.weight")
_BLOCK = 32  # numbers per scale, in every quantized format here
_UNBLOCKED = ("F32", "F16", "BF16")

Array = NDArray[Any]


def is_written(folder: Path) -> bool:
    """Whether a GGUF of the architecture in `folder` is written here."""
    return read_json(folder / "config.json").get("model_type") in _ARCHITECTURES


def write_gguf(
    folder: Path, out: Path, form: str, name: str, read_chat: GgufChatReader, watch: Watch | None = None
) -> None:
    """Write the model in `folder` as the file `out`. Raises Refused, Damaged.

    read_chat: reads the template, and the token that ends an answer. watch: gets the count of tensors.
    """
    import gguf

    from heredity.formats.weights import read_config

    config = read_config(folder)
    architecture = _ARCHITECTURES.get(config.model_type)
    if architecture is None:
        raise Refused(
            f"A GGUF is written here of {', '.join(_ARCHITECTURES)}; this is '{config.model_type}'."
        )
    writer = gguf.GGUFWriter(out, architecture)
    number = gguf.LlamaFileType[f"MOSTLY_{FORMATS[form][0]}" if form != "f32" else "ALL_F32"]
    writer.add_type("model")
    # transformers also chooses its parser by this name.
    writer.add_name("model" if "mistral" in name.lower() else name)
    writer.add_file_type(number)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, config)
    made = list(_tensors(folder, config, architecture, form))
    for tensor_name, shape, kind, _ in made:
        n_bytes = int(np.prod(gguf.quant_shape_to_byte_shape(shape, kind)))
        writer.add_tensor_info(tensor_name, shape, np.dtype(np.float32), n_bytes, raw_dtype=kind)
    _add_vocabulary(writer, gguf_tokenizer.read_vocabulary(folder, int(config.vocab_size), read_chat))
    with explain_full_disk(out, 0):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with phase(watch, "converting", n_total=len(made), unit="tensors") as meter:
            for *_, make in made:
                writer.write_tensor_data(make())
                meter.tick()
    writer.close()


def _add_shape(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    from heredity.formats.weights import setting

    is_gemma = gguf_gemma.is_one(config)
    rope = dict(setting(config, "rope_parameters", {}))
    if is_gemma:
        rope = gguf_gemma.global_rope(config)
    if rope.get("rope_type", "default") not in (("default", "linear") if is_gemma else ("default",)):
        raise Refused(f"A GGUF with rotations scaled by '{rope['rope_type']}' is not written here.")
    has_windows = config.model_type == "mistral" and setting(config, "sliding_window", 0) > 0
    if has_windows or setting(config, "use_sliding_window", False):
        raise Refused("A GGUF with sliding windows is not written here.")
    n_heads = int(config.num_attention_heads)
    head_dim = int(setting(config, "head_dim", config.hidden_size // n_heads))
    writer.add_block_count(int(config.num_hidden_layers))
    writer.add_context_length(int(config.max_position_embeddings))
    writer.add_embedding_length(int(config.hidden_size))
    writer.add_feed_forward_length(int(config.intermediate_size))
    writer.add_head_count(n_heads)
    writer.add_head_count_kv(int(setting(config, "num_key_value_heads", n_heads)))
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(rope.get("rope_theta", setting(config, "rope_theta", 10_000.0))))
    writer.add_layer_norm_rms_eps(float(config.rms_norm_eps))
    writer.add_vocab_size(int(config.vocab_size))
    if is_gemma:
        gguf_gemma.add_shape(writer, config)


def _add_vocabulary(writer: GGUFWriter, found: gguf_tokenizer.Vocabulary) -> None:
    writer.add_tokenizer_model("llama" if found.scores else "gpt2")
    writer.add_tokenizer_pre(found.split)
    writer.add_token_list(found.tokens)
    writer.add_token_types(found.kinds)
    if found.scores:
        writer.add_token_scores(found.scores)
        writer.add_add_space_prefix(False)
    else:
        writer.add_token_merges(found.merges)
    for ident, add in (
        (found.bos, writer.add_bos_token_id),
        (found.eos, writer.add_eos_token_id),
        (found.eot, writer.add_eot_token_id),
        (found.pad, writer.add_pad_token_id),
        (found.unk if found.scores else None, writer.add_unk_token_id),
    ):
        if ident is not None:
            add(ident)
    writer.add_add_bos_token(found.adds_bos)
    if found.template:
        writer.add_chat_template(found.template)


def _tensors(
    folder: Path, config: PreTrainedConfig, architecture: str, form: str
) -> Iterator[tuple[str, list[int], GGMLQuantizationType, Callable[[], Array]]]:
    """Yield name, shape and format of every tensor, and a function that makes its data, layer by layer."""
    import gguf

    from heredity.formats.weights import setting

    where: dict[str, tuple[Path, list[int]]] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        where |= {name: (shard, each.shape) for name, each in read_safetensors(shard).items()}
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], int(config.num_hidden_layers))
    middle, ends = (getattr(gguf.GGMLQuantizationType, each) for each in FORMATS[form])
    is_tied = setting(config, "tie_word_embeddings", False)
    for name in sorted(where, key=_in_order):
        if is_tied and name == "lm_head.weight":
            continue
        if architecture == "llama" and name.endswith(".bias"):
            raise Refused("A GGUF of a Llama with biases is not written: transformers reads it without them.")
        written = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if written is None:
            raise Damaged(f"{where[name][0]}: '{name}' has no place in a GGUF of '{architecture}'.")
        shard, shape = where[name]
        kind = gguf.GGMLQuantizationType.F32 if len(shape) == 1 else ends if written in _ENDS else middle
        if shape[-1] % _BLOCK and kind.name not in _UNBLOCKED:
            kind = gguf.GGMLQuantizationType.F16  # as llama.cpp does with rows that are not whole blocks
        yield written, shape, kind, partial(_made, shard, name, config, architecture, kind)


def _made(
    shard: Path, name: str, config: PreTrainedConfig, architecture: str, kind: GGMLQuantizationType
) -> Array:
    import gguf
    from safetensors import safe_open

    with safe_open(shard, framework="pt") as file:
        array = file.get_tensor(name).float().numpy()
    array = _turned(name, array, config) if architecture == "llama" else array
    if architecture == "gemma3" and name.endswith("norm.weight"):
        array = array + 1  # llama.cpp multiplies by the stored number, transformers by 1 plus it
    blocks: Array = gguf.quants.quantize(np.ascontiguousarray(array), kind)
    return blocks


def _turned(name: str, array: Array, config: PreTrainedConfig) -> Array:
    """Permute the rows of queries and keys: llama.cpp rotates neighbours, transformers halves."""
    n_heads = int(config.num_attention_heads)
    if ".k_proj." in name:
        from heredity.formats.weights import setting

        n_heads = int(setting(config, "num_key_value_heads", n_heads))
    elif ".q_proj." not in name:
        return array
    return in_gguf_order(array, n_heads)


def in_gguf_order(rows: Array, n_heads: int) -> Array:
    """Return the rows of a Llama's queries or keys as a GGUF has them: neighbours rotate, not halves."""
    halves = rows.reshape(n_heads, 2, rows.shape[0] // n_heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _in_order(name: str) -> tuple[int, str]:
    numbers = [int(part) for part in name.split(".") if part.isdigit()]
    return (numbers[0] if numbers else -1, name)
