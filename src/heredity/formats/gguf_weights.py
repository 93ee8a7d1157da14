"""The tensors of a GGUF: written from a folder of safetensors, and read faster by gguf and transformers.

Promises: equal folders give equal bytes. A model that llama.cpp would compute differently is refused: scaled
rotary positions, an unknown architecture or tokenizer. Vectors stay in fp32, as in llama.cpp. One tensor at a
time is in memory. The faster parts read the same values, to the bit.
Leaves to others: whether the file answers as its parent did (deploy/export, or a study); checking a file
before it is read (gguf.py).

Source: the GGUF specification; tensor names and block formats are the gguf package's own.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from heredity.core.errors import Damaged, Refused
from heredity.core.files import explain_full_disk
from heredity.core.host import n_cores
from heredity.core.progress import Watch, phase
from heredity.formats.gguf import GgufChatReader, GgufValue
from heredity.formats.safetensors_io import read_safetensors
from heredity.formats.weights import read_json, setting

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter
    from transformers import PreTrainedConfig

# --- reading: faster parts of gguf and transformers --------------------------------------------------------

_GROUP = 1 << 17  # weights computed at once: their intermediate values stay in the processor's cache
_Parts = tuple[int, list[object], list[int], list[object]]  # bytes read, parts, places of the values, types


class _Reader(Protocol):
    """The parts of a gguf.GGUFReader that are used here."""

    data: NDArray[np.uint8]
    gguf_scalar_to_np: Mapping[object, type[np.generic]]


@contextmanager
def quick_gguf() -> Iterator[None]:
    """Read each GGUF once, and its blocks on all cores; the libraries are as before at the end.

    transformers reads a file three times, and makes the map of tensor names once for each module of a model.
    The files are ones that `read_gguf` has checked. A part that the installed versions lack is left out.
    """
    import gguf
    from gguf import quants
    from transformers import modeling_gguf_pytorch_utils as legacy

    quick: tuple[tuple[object, str, Callable[..., object]], ...] = (
        (gguf, "GGUFReader", cache),
        (gguf, "get_tensor_name_map", cache),
        (gguf.GGUFReader, "_get_field_parts", _quick_field_parts),
        (quants, "_apply_over_grouped_rows", lambda _: _apply_over_rows),
        (legacy, "_gguf_parse_value", _quick_value),
    )
    replaced = [
        (place, name, vars(place)[name], change) for place, name, change in quick if name in vars(place)
    ]
    try:
        for place, name, before, change in replaced:
            setattr(place, name, change(before))
        yield
    finally:
        for place, name, before, _ in replaced:
            setattr(place, name, before)


def _quick_field_parts(slow: Callable[[_Reader, int, int], _Parts]) -> Callable[[_Reader, int, int], _Parts]:
    """gguf's reading of a field, with a short way for arrays.

    gguf slices a numpy.memmap three times for each token and each merge, which takes most of the time of a
    small model. Here an element is a tuple of one number, or bytes.
    """
    from gguf import GGUFValueType

    def field_parts(reader: _Reader, orig_offs: int, raw_type: int) -> _Parts:
        if raw_type != GGUFValueType.ARRAY:
            return slow(reader, orig_offs, raw_type)
        reader.data = np.asarray(reader.data)  # a memmap looks for its file at every slice of a tensor
        data, at = reader.data.data, orig_offs + 12
        number, count = struct.unpack_from("<IQ", data, orig_offs)
        kind = GGUFValueType(number)
        types: list[object] = [GGUFValueType.ARRAY, *([kind] if count else [])]
        head: list[object] = [np.array([number], np.uint32), np.array([count], np.uint64)]
        if kind != GGUFValueType.STRING:
            values = np.frombuffer(data, reader.gguf_scalar_to_np[kind], count, at)
            return 12 + values.nbytes, [*head, *zip(values.tolist())], list(range(2, 2 + count)), types
        texts = []
        for _ in range(count):
            (length,) = struct.unpack_from("<Q", data, at)
            texts.append(((length,), bytes(data[at + 8 : at + 8 + length])))
            at += 8 + length
        return at - orig_offs, [*head, *chain(*texts)], list(range(3, 3 + 2 * count, 2)), types

    return field_parts


def _quick_value(slow: Callable[[object, object], object]) -> Callable[[object, object], object]:
    """transformers' reading of one value, with a short way for the elements of `_quick_field_parts`."""

    def value(part: object, types: object) -> object:
        if isinstance(part, bytes):
            return part.decode()
        return part[0] if isinstance(part, tuple) else slow(part, types)

    return value


def _apply_over_rows(
    func: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
    arr: NDArray[np.uint8],
    otype: DTypeLike,
    oshape: tuple[int, ...],
) -> NDArray[np.float32]:
    """gguf's loop over the rows of a tensor, in larger groups and on all cores. The arguments are gguf's."""
    rows = arr.reshape(-1, arr.shape[-1])
    out = np.empty((len(rows), math.prod(oshape) // len(rows)), otype)
    n_rows = max(1, _GROUP // out.shape[1])

    def group(start: int) -> None:
        some = rows[start : start + n_rows]
        out[start : start + n_rows] = func(some).reshape(len(some), -1)

    with ThreadPoolExecutor(n_cores()) as pool:
        list(pool.map(group, range(0, len(rows), n_rows)))
    return out.reshape(oshape)


# --- Gemma 3, as llama.cpp's conversion and loading have it ------------------------------------------------
# llama.cpp fixes some of its settings itself. Every sixth layer attends to all tokens. The others use rotary
# base 10,000. Scores are scaled by the head dimension; the largest model (62 layers) uses hidden size per
# head instead. A model with other settings is not written, and one that is read gets them.

_EVERY = 6  # of this many layers the last attends to all tokens
_LOCAL_BASE = 10_000.0
_LAYERS_27B = 62
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"


def is_gemma(config: PreTrainedConfig) -> bool:
    """Return True for the configuration of a Gemma 3."""
    return str(config.model_type) == "gemma3_text"


def gemma_rope(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the rotary settings of layers that attend to all tokens: base, and factor if it is scaled.

    Raises Refused for settings that llama.cpp does not support in Gemma 3.
    """
    ropes = dict(config.rope_parameters)
    local = dict(ropes.get(_LOCAL) or {})
    windows = list(config.layer_types) != _gemma_layers(int(config.num_hidden_layers))
    _refuse_gemma(windows, "windows in other layers")
    is_plain = local.get("rope_type", "default") == "default"
    turns = not is_plain or float(local.get("rope_theta", 0)) != _LOCAL_BASE
    _refuse_gemma(turns, "windowed layers that turn otherwise")
    scalar = config.query_pre_attn_scalar
    _refuse_gemma(scalar != _gemma_scalar(config), f"scores scaled by {scalar}")
    is_capped = bool(config.final_logit_softcapping or config.attn_logit_softcapping)
    _refuse_gemma(is_capped, "capped logits")
    is_both = bool(config.use_bidirectional_attention)
    _refuse_gemma(is_both, "attention in both directions")
    return dict(ropes[_GLOBAL])


def _refuse_gemma(is_there: bool, what: str) -> None:
    if is_there:
        raise Refused(f"A GGUF of a Gemma 3 with {what} is not written: llama.cpp would compute otherwise.")


def add_gemma_shape(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Write the keys of a Gemma 3 that other models do not have."""
    writer.add_sliding_window(int(config.sliding_window))
    rope = gemma_rope(config)
    if rope.get("rope_type") == "linear":
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))


def complete_gemma(config: PreTrainedConfig, metadata: Mapping[str, GgufValue]) -> None:
    """Complete a configuration that transformers has read from a GGUF."""
    values = {key.removeprefix("gemma3."): value for key, value in metadata.items()}
    every = _gemma_number(values, "attention.sliding_window_pattern", _EVERY)
    whole: dict[str, object] = {**config.rope_parameters[_GLOBAL]}
    if (how := values.get("rope.scaling.type", "none")) == "linear":
        whole |= {"rope_type": "linear", "factor": _gemma_number(values, "rope.scaling.factor", 0)}
    elif how != "none":
        raise Refused("A GGUF of a Gemma 3 whose rotations are not stretched linearly is not read here.")
    base = _gemma_number(values, "rope.freq_base_swa", _LOCAL_BASE)
    config.query_pre_attn_scalar = _gemma_scalar(config)
    config.layer_types = _gemma_layers(int(config.num_hidden_layers), int(every))
    config.rope_parameters = {_GLOBAL: whole, _LOCAL: {"rope_type": "default", "rope_theta": base}}


def _gemma_number(values: Mapping[str, GgufValue], key: str, default: float) -> float:
    """Return a number of at least 1."""
    number = values.get(key, default)
    if isinstance(number, bool) or not isinstance(number, int | float) or not 1 <= number < 2**31:
        raise Refused(f"A GGUF of a Gemma 3 whose {key} is {str(number)[:40]} is not read here.")
    return float(number)


def _gemma_layers(n_layers: int, every: int = _EVERY) -> list[str]:
    """Return the attention type of each layer."""
    return [_LOCAL if (at + 1) % every else _GLOBAL for at in range(n_layers)]


def _gemma_scalar(config: PreTrainedConfig) -> int:
    """Return the number whose inverse square root scales the scores."""
    if int(config.num_hidden_layers) == _LAYERS_27B:
        return int(config.hidden_size) // int(config.num_attention_heads)
    return int(config.head_dim)


# --- writing ---------------------------------------------------------------------------------------------

SPACE = "▁"
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_ADDED_SCORE = -1000.0  # as in the GGUFs of Gemma; no merge makes such a token
_NORMALIZER = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


def is_byte(token: str) -> bool:
    """Return True for a token of a single byte."""
    return bool(_BYTE_PIECE.fullmatch(token))


def is_spaces(token: str) -> bool:
    """Return True for a run of spaces: merges produce it, although it is listed as an added token."""
    return not token.strip(SPACE)


def score(token: str, ident: int, is_added: bool) -> float:
    """Return the merge priority of a token: by its id, which `refuse_unlike` has checked."""
    if is_added:
        return _ADDED_SCORE
    return 0.0 if is_byte(token) else -float(ident)


def refuse_unlike(path: Path, tokenizer: dict[str, Any]) -> None:
    """Raise Refused if llama.cpp, or transformers with the GGUF, would tokenize text differently."""
    split = tokenizer.get("pre_tokenizer")  # at most at spaces, which the normalizer has replaced
    is_whole = split is None or (split.get("type") == "Split" and split.get("pattern") == {"String": " "})
    if tokenizer.get("normalizer") != _NORMALIZER or not is_whole:
        raise Refused(f"{path}: of tokenizers with byte fallback a GGUF is written here of Gemma's alone.")
    added = [t for t in tokenizer.get("added_tokens") or [] if not is_spaces(t["content"])]
    if any(t.get("lstrip") or t.get("rstrip") or t.get("single_word") for t in added):
        raise Refused(f"{path}: llama.cpp takes no token together with the spaces beside it.")
    _refuse_other_merges(path, tokenizer["model"], {t["content"] for t in added})


def _refuse_other_merges(path: Path, model: dict[str, Any], added: set[str]) -> None:
    vocabulary: dict[str, int] = model["vocab"]
    ways: dict[str, set[str]] = {}
    last = -1
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if {left, right, left + right} & added:
            continue  # an added token is taken out of the text before any merge
        ident = vocabulary.get(left + right, -1)
        if ident < last:
            raise Refused(f"{path}: its merges are not in the order of their tokens' ids, as in a GGUF.")
        last = ident
        ways.setdefault(left + right, set()).add(left)
    plain = vocabulary.keys() - added
    for token in plain:
        splits = {token[:at] for at in range(1, len(token)) if token[:at] in plain and token[at:] in plain}
        if splits != ways.get(token, set()):
            raise Refused(
                f"{path}: of {token[:40]!r} llama.cpp would make one token where this makes several."
            )


_NORMAL, _CONTROL, _USER, _UNUSED, _BYTE = 1, 3, 4, 5, 6  # llama.cpp's token types
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_SPLITS = {_QWEN: "qwen2", _LLAMA3: "llama-bpe"}


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary. `split`: llama.cpp's name of the pre-tokenizer; `kinds[i]`: its type of token i.

    Gemma's vocabulary has one score per token and no merges.
    """

    split: str
    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    scores: list[float]
    bos: int | None
    eos: int | None
    unk: int | None
    eot: int | None  # the token with which the template ends an answer, if it is another one
    pad: int | None
    adds_bos: bool
    template: str


def read_vocabulary(folder: Path, n_rows: int, read_chat: GgufChatReader) -> Vocabulary:
    """Read the tokenizer in a model's folder, filled up to the embedding's `n_rows`.

    Raises Refused for an unsupported kind of tokenizer, Damaged for an inconsistent one.
    """
    path = folder / "tokenizer.json"
    tokenizer = read_json(path)
    model = tokenizer.get("model") or {}
    if model.get("type") != "BPE":
        kind = model.get("type") or "none"
        raise Refused(f"{path}: a GGUF is written here of BPE tokenizers, and this is {kind}.")
    if is_pieces := bool(model.get("byte_fallback")):
        refuse_unlike(path, tokenizer)
    elif tokenizer.get("normalizer") not in (None, {"type": "NFC"}):
        raise Refused(f"{path}: llama.cpp knows no normalizer like its own.")
    entries = _entries(tokenizer, is_pieces)
    tokens, kinds = [f"[PAD{i}]" for i in range(n_rows)], [_UNUSED] * n_rows
    for text, ident, kind in entries:
        if not 0 <= ident < n_rows:
            raise Damaged(f"{folder}: the token {text!r} has the id {ident}, the embedding {n_rows} rows.")
        tokens[ident], kinds[ident] = text, kind
    merges = [] if is_pieces else [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    listed = (_NORMAL, _BYTE)
    scores = [score(token, at, kinds[at] not in listed) for at, token in enumerate(tokens) if is_pieces]
    config = read_json(folder / "tokenizer_config.json")
    by_text = {text: ident for text, ident, _ in entries}
    ends = read_json(folder / "generation_config.json").get("eos_token_id")
    if isinstance(ends, list):
        ends = ends[0] if ends else None
    eos = ends if isinstance(ends, int) else by_text.get(_text(config.get("eos_token")))
    chat = read_chat(folder)
    eot = chat.answer_end if chat.answer_end != eos else None
    bos, pad, unk = (by_text.get(_text(config.get(f"{key}_token"))) for key in ("bos", "pad", "unk"))
    split = "default" if is_pieces else _split(folder, tokenizer.get("pre_tokenizer"))
    return Vocabulary(
        split, tokens, kinds, merges, scores,
        bos, eos, unk, eot, pad, _adds_bos(tokenizer, bos, tokens), chat.template,
    )  # fmt: skip


def _entries(tokenizer: dict[str, Any], is_pieces: bool) -> list[tuple[str, int, int]]:
    """Return text, id and kind of every token; added tokens last."""
    entries = [(text, ident, _NORMAL) for text, ident in tokenizer["model"]["vocab"].items()]
    added = tokenizer.get("added_tokens") or []
    if is_pieces:
        entries = [(t, ident, _BYTE if is_byte(t) else kind) for t, ident, kind in entries]
        added = [t for t in added if not is_spaces(t["content"])]
    return entries + [(t["content"], t["id"], _CONTROL if t.get("special") else _USER) for t in added]


def _split(folder: Path, given: Any) -> str:
    """Return llama.cpp's name of the pre-tokenizer."""
    steps = (given or {}).get("pretokenizers", [given] if given else [])
    kinds = [step.get("type") for step in steps]
    if kinds in (["ByteLevel"], ["Digits", "ByteLevel"]) and steps[-1].get("use_regex", True):
        if steps[-1].get("add_prefix_space"):
            raise Refused(f"{folder / 'tokenizer.json'}: llama.cpp puts no space before a text of this kind.")
        if len(kinds) == 1:
            return "gpt-2"
        if steps[0].get("individual_digits"):
            return "smollm"
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        pattern = (steps[0].get("pattern") or {}).get("Regex")
        if pattern in _SPLITS and steps[0].get("behavior") == "Isolated":
            return _SPLITS[pattern]
    raise Refused(
        f"{folder / 'tokenizer.json'}: llama.cpp has no name that is known here for its way of splitting text"
        f" ({', '.join(map(str, kinds)) or 'none'})."
    )


def _adds_bos(tokenizer: dict[str, Any], bos: int | None, tokens: list[str]) -> bool:
    post = tokenizer.get("post_processor") or {}
    single = [post, *(post.get("processors") or [])]
    named = [
        p["SpecialToken"]["id"] for each in single for p in each.get("single", []) if "SpecialToken" in p
    ]
    return bos is not None and tokens[bos] in named


def _text(token: object) -> str:
    """Return the text of a special token: a string, or an object with its content."""
    content = token.get("content", "") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


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
    _add_vocabulary(writer, read_vocabulary(folder, int(config.vocab_size), read_chat))
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
    is_gemma3 = is_gemma(config)
    rope = dict(setting(config, "rope_parameters", {}))
    if is_gemma3:
        rope = gemma_rope(config)
    if rope.get("rope_type", "default") not in (("default", "linear") if is_gemma3 else ("default",)):
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
    if is_gemma3:
        add_gemma_shape(writer, config)


def _add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("llama" if vocabulary.scores else "gpt2")
    writer.add_tokenizer_pre(vocabulary.split)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(False)
    else:
        writer.add_token_merges(vocabulary.merges)
    for ident, add in (
        (vocabulary.bos, writer.add_bos_token_id),
        (vocabulary.eos, writer.add_eos_token_id),
        (vocabulary.eot, writer.add_eot_token_id),
        (vocabulary.pad, writer.add_pad_token_id),
        (vocabulary.unk if vocabulary.scores else None, writer.add_unk_token_id),
    ):
        if ident is not None:
            add(ident)
    writer.add_add_bos_token(vocabulary.adds_bos)
    if vocabulary.template:
        writer.add_chat_template(vocabulary.template)


def _tensors(
    folder: Path, config: PreTrainedConfig, architecture: str, form: str
) -> Iterator[tuple[str, list[int], GGMLQuantizationType, Callable[[], Array]]]:
    """Yield name, shape and format of every tensor, and a function that makes its data, layer by layer."""
    import gguf

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
        yield written, shape, kind, partial(_as_llama_cpp, shard, name, config, architecture, kind)


def _as_llama_cpp(
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
