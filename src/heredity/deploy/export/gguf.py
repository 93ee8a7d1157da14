"""Export to one GGUF file for llama.cpp, Ollama and LM Studio: lossless, or the recorded GGUF unchanged.

Weights are written in their own precision. For fewer bits, derive a quantized child and export it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from heredity.core.files import hash_file
from heredity.core.host import trim_memory
from heredity.core.records import FileHash, Request
from heredity.deploy.export._parity import TALK, TEXT, ExportSource, ParityReading, read_folder, tokens_behind
from heredity.engines.chat.codec import Template
from heredity.engines.formats.gguf import read_gguf
from heredity.engines.formats.gguf_write import write_gguf
from heredity.engines.formats.safetensors_io import read_safetensors
from heredity.lineage.types import Grown
from heredity.recipes.dequantize import Dequantize

_BACK = 1e-3  # nats: the same weights in the same arithmetic
_EVERY = 3  # positions in the text: llama.cpp reports its likeliest token at every third
# nats, by the format of the matrices: llama.cpp rounds the activations to match that format
_LLAMA_CPP = {"F32": 0.01, "F16": 0.1, "BF16": 0.25}
_BLOCKS = 1.0
_FORMS = {"BF16": "bf16", "F16": "f16"}
_EXACT = {"BF16": "bfloat16", "F16": "float16"}
_SAME = "the GGUF, read back,"


def write(source: ExportSource, out: Path) -> None:
    """Write `NAME.gguf` into `out`."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", source.model.record.name).lstrip("._-")[:100] or "model"
    path = out / f"{name}.gguf"
    if source.model.record.format == "gguf":
        (own,) = source.model.folder.glob("*.gguf")
        shutil.copyfile(own, path)
    else:
        write_gguf(source.whole.folder, path, _FORMS.get(_dtype(source.whole.folder), "f32"), path.stem)


def readings(source: ExportSource, out: Path) -> Iterator[ParityReading]:
    """Yield the reading of the file by transformers, and by llama.cpp if it is installed."""
    (path,) = out.glob("*.gguf")
    header = read_gguf(path)
    bos, eos, eot = (header.special_id(each) for each in ("bos", "eos", "eot"))
    template = Template(header.text("tokenizer.chat_template"), header.special("bos"), header.special("eos"))
    rendered = None if template.stop_text else template.render(Request(0, TALK))
    back = _read_back(source, path)
    ends = frozenset(each for each in (eos, eot) if each is not None)
    first_token = bos if header.metadata.get("tokenizer.ggml.add_bos_token") or back.bos is not None else None
    yield ParityReading(_SAME, _BACK, back.logs, back.tokens, rendered, ends, bos=first_token)
    yield _llama_cpp(source, path, back, rendered, ends)


def _read_back(source: ExportSource, path: Path) -> ParityReading:
    """Read the file with transformers, in a precision that represents every written weight exactly."""
    record = source.model.record
    if record.format == "gguf" and [hash_file(path)] == [file.sha256 for file in record.files]:
        return read_folder(source.reference, _SAME, _BACK)
    (folder := source.bench / "back").mkdir()
    files = (FileHash(path.name, path.stat().st_size, ""),)
    written = msgspec.structs.replace(record, format="gguf", files=files)
    Dequantize(_EXACT.get(_dtype(source.whole.folder), "float32")).apply(
        [Grown(written, path.parent)], folder
    )
    trim_memory()
    try:
        return read_folder(folder, _SAME, _BACK)
    finally:
        shutil.rmtree(folder)


def _llama_cpp(
    source: ExportSource, path: Path, back: ParityReading, rendered: str | None, ends: frozenset[int]
) -> ParityReading:
    try:
        from heredity.engines import llamacpp
    except ImportError:
        return ParityReading(
            "llama.cpp", left_out="not installed (pip install 'heredity[llamacpp]'), so not checked"
        )
    kinds = {t.type for t in read_gguf(path).tensors if len(t.shape) > 1}
    import gguf

    names = {gguf.GGMLQuantizationType(kind).name for kind in kinds}
    allowed = max(_LLAMA_CPP.get(name, _BLOCKS) for name in names)
    before, behind = tokens_behind(source.whole.folder)
    engine = llamacpp.open_file(path, width=1, context=1024)
    try:
        talk = [*(engine.tokenize(rendered) if rendered else ()), *engine.tokenize(TEXT)]
        likeliest = {at: engine.likeliest((*before, *behind[:at])) for at in range(0, len(behind), _EVERY)}
    finally:
        engine.close()
    found = {at: each for at, each in likeliest.items() if each is not None}
    return ParityReading(
        "llama.cpp", allowed, [log for _, log in found.values()], tuple(talk), rendered, ends, bos=back.bos,
        picked={at: token for at, (token, _) in found.items()},
    )  # fmt: skip


def _dtype(folder: Path) -> str:
    """Return the dtype that all tensors share, or F32 if they differ."""
    shards = sorted(folder.glob("*.safetensors"))
    kinds = {tensor.dtype for shard in shards for tensor in read_safetensors(shard).values()}
    return kinds.pop() if len(kinds) == 1 else "F32"
