"""A model before its weights are fetched: the engine that would answer it, its size, and its terms.

Promises: of a repository only the list of files and the config.json are read, of a GGUF on this disk only the
header. The figures of the hub are taken, and else those of the catalogue.
"""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from heredity.core.errors import Damaged
from heredity.engines.chat import template_source
from heredity.formats.architectures import ENCODERS, EngineChoice, choose_by_config, choose_for_gguf
from heredity.formats.gguf import GgufHeader, read_gguf, read_gguf_start
from heredity.lineage.catalog import BYTES_PER_WEIGHT, Entry
from heredity.lineage.types import Preview
from heredity.recipes.pull.hub import HubFile

CONFIG = "config.json"
_DTYPE = "bfloat16"  # that weights without quantization are computed in, unless float32 is faster
_CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")


def of_config(name: str, config: Mapping[str, object], n_weight_bytes: int) -> Preview:
    """The model of a config.json, with this many bytes of safetensors."""
    choice = choose_by_config(config)
    stored = _stored_dtype(config)
    width = _packed_width(config) if choice.quantization else BYTES_PER_WEIGHT.get(stored, 0)
    parameters = round(n_weight_bytes / width) if width else 0
    preview = Preview(
        name,
        choice.engine,
        choice.reason,
        choice.architecture,
        choice.quantization,
        n_bytes=n_weight_bytes,
        parameters=parameters,
        dtype=_DTYPE if parameters else choice.quantization,
        memory=round(parameters * BYTES_PER_WEIGHT[_DTYPE]) or n_weight_bytes,
        context=_context(config),
    )
    return replace(preview, instead=_instead(name, choice, "safetensors"))


def _of_metadata(name: str, header: GgufHeader, n_bytes: int, parameters: int = 0) -> Preview:
    """The model of a GGUF. The engine answers it through the bfloat16 weights that heredity makes of it.

    parameters: by its tensors; 0 if only its label tells them.
    """
    architecture = header.text("general.architecture")
    choice = choose_for_gguf(architecture)
    context = header.metadata.get(f"{architecture}.context_length")
    parameters = parameters or _by_label(header.text("general.size_label"))
    return Preview(
        name,
        choice.engine,
        choice.reason,
        architecture[:80],
        "gguf",
        n_bytes=n_bytes,
        parameters=parameters,
        dtype=_DTYPE,
        memory=round(parameters * BYTES_PER_WEIGHT[_DTYPE]),
        context=context if isinstance(context, int) else 0,
        chat=bool(header.text("tokenizer.chat_template")),
        licence=header.text("general.license")[:80],
        instead=_instead(name, choice, "gguf"),
    )


def of_start(name: str, start: bytes, n_bytes: int) -> Preview:
    """The model of a GGUF elsewhere, by its first bytes. Raises Damaged."""
    return _of_metadata(name, read_gguf_start(start), n_bytes)


def of_gguf(path: Path) -> Preview:
    """The model of a GGUF file on this disk. Raises Damaged."""
    header = read_gguf(path)
    parameters = sum(math.prod(tensor.shape) for tensor in header.tensors)
    return _of_metadata(path.stem, header, path.stat().st_size, parameters)


def on_this_processor(preview: Preview, cpuinfo: Path = Path("/proc/cpuinfo")) -> Preview:
    """The model with the memory that it takes on this processor: in float32 if that lacks a bfloat16 product.

    Unchanged if the system does not list the processor's features.
    """
    if preview.dtype != _DTYPE or platform.machine().lower() not in ("x86_64", "amd64"):
        return preview
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    features = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    if not features or features & {"amx_bf16", "avx512_bf16"}:
        return preview
    ratio = BYTES_PER_WEIGHT["float32"] / BYTES_PER_WEIGHT[_DTYPE]
    return replace(preview, dtype="float32", memory=round(ratio * preview.memory))


def of_folder(folder: Path, names: Sequence[str]) -> Preview:
    """The model of a folder, as `pull` chose its files. Raises Damaged."""
    weights = [name for name in names if name.endswith(".safetensors")]
    if not weights:
        preview = of_gguf(folder / next(name for name in names if name.endswith(".gguf")))
        return replace(preview, name=folder.resolve().name)
    config = read_config(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    n_bytes = sum((folder / name).stat().st_size for name in weights)
    preview = of_config(folder.resolve().name, config, n_bytes)
    return replace(preview, chat=bool(template_source(folder)))


def of_listing(name: str, files: Sequence[HubFile], config: Mapping[str, object]) -> Preview:
    """The model of a repository with safetensors, by its files and its config.json."""
    weights = sum(f.n_bytes for f in files if f.path.endswith(".safetensors"))
    preview = of_config(name, config, weights)
    has_template = any(f.path.startswith("chat_template.") for f in files)
    return replace(preview, n_bytes=sum(f.n_bytes for f in files), chat=True if has_template else None)


def of_pinned(name: str, entry: Entry) -> Preview:
    """A model of the catalogue whose files are pinned: nothing needs to be asked."""
    if entry.format == "gguf":
        choice = choose_for_gguf(entry.architecture)
    else:
        choice = EngineChoice("", entry.about, entry.architecture)
    memory = entry.memory().get(_DTYPE, 0)
    return Preview(
        name,
        choice.engine,
        choice.reason,
        entry.architecture,
        choice.quantization,
        n_bytes=entry.n_bytes,
        parameters=round(entry.parameters),
        is_exact=False,
        dtype=_DTYPE,
        memory=memory,
        context=entry.context,
        chat=entry.chat if entry.modality == "text" else None,
        licence=entry.licence,
        is_gated=entry.hub.gated,
        instead=_instead(name, choice, entry.format) if entry.modality == "text" else (),
    )


def read_config(path: Path) -> dict[str, object]:
    """The settings of a config.json. Raises Damaged."""
    try:
        config = msgspec.json.decode(path.read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise Damaged(f"{path.name}: malformed JSON: {error}") from error
    if not isinstance(config, dict):
        raise Damaged(f"{path.name}: it is not a table of settings.")
    return config


def _instead(name: str, choice: EngineChoice, form: str) -> tuple[str, ...]:
    """Other references to the same weights: an engine that reads the form, or a server that has the model."""
    if choice.architecture in ENCODERS:
        return ()
    server = f"remote:openai:{name.rsplit('/', 1)[-1]}@http://HOST:PORT/v1"
    own = f"llamacpp:{name}" if form == "gguf" else f"vllm:{name}"
    return (own, server) if choice.architecture or form == "gguf" else (server,)


def _packed_width(config: Mapping[str, object]) -> float:
    """Bytes of a quantized weight, which is computed in bfloat16; 0 if its bits are not named."""
    how = config.get("quantization_config")
    if not isinstance(how, dict):
        return 0
    bits = how.get("bits", 8 if "fp8" in str(how.get("quant_method")) else 0)
    return bits / 8 if isinstance(bits, int) and 0 < bits <= 8 else 0


def _stored_dtype(config: Mapping[str, object]) -> str:
    inner = config.get("text_config")
    for table in (config, inner if isinstance(inner, dict) else {}):
        for key in ("dtype", "torch_dtype", "embedding_dtype"):
            if (dtype := str(table.get(key, "")).removeprefix("torch.")) in BYTES_PER_WEIGHT:
                return dtype
    return _DTYPE


def _context(config: Mapping[str, object]) -> int:
    inner = config.get("text_config")
    for table in (config, inner if isinstance(inner, dict) else {}):
        for key in _CONTEXTS:
            if isinstance(context := table.get(key), int) and not isinstance(context, bool) and context > 0:
                return context
    return 0


def _by_label(label: str) -> int:
    """The parameters that a label such as "135M" or "8x7B" means; 0 for any other text."""
    match = re.fullmatch(r"(?:(\d{1,3})x)?(\d{1,4}(?:\.\d{1,3})?)([KMBT])", label)
    if match is None:
        return 0
    unit = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}[match[3]]
    return round(int(match[1] or 1) * float(match[2]) * unit)
