"""Export to one GGUF file for llama.cpp, Ollama and LM Studio: lossless, or the recorded GGUF unchanged.

Weights are written in their own precision. For fewer bits, derive a quantized child and export it. An
architecture that gguf_weights.py lacks is converted by llama.cpp's own program, if it is on the PATH.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec

from heredity.core.errors import Refused, Unavailable, how_to_install
from heredity.core.files import hash_file
from heredity.core.host import trim_memory
from heredity.core.records import FileHash, Request
from heredity.deploy.export._parity import (
    TALK,
    TEXT,
    ExportSource,
    LoadedFolder,
    ParityReading,
    read_folder,
    tokens_behind,
)
from heredity.engines.chat import Template, read_gguf_chat
from heredity.formats.gguf import read_gguf
from heredity.formats.gguf_weights import is_written, write_gguf
from heredity.formats.safetensors_io import read_safetensors
from heredity.formats.weights import read_json
from heredity.lineage.types import Grown
from heredity.recipes.dequantize import Dequantize

_BACK = 1e-3  # nats: the same weights in the same arithmetic
_EVERY = 3  # positions in the text: llama.cpp reports its likeliest token at every third
# nats, by the format of the matrices: llama.cpp rounds the activations to match that format
_LLAMA_CPP = {"F32": 0.01, "F16": 0.1, "BF16": 0.25}
_BLOCKS = 1.0
_FORMS = {"BF16": "bf16", "F16": "f16"}
_EXACT = {"BF16": "bfloat16", "F16": "float16"}
_CONVERTERS = ("convert_hf_to_gguf.py", "llama-convert-hf-to-gguf")
_SAME = "the GGUF, read back,"


def write(source: ExportSource, out: Path) -> None:
    """Write `NAME.gguf` into `out`."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", source.model.record.name).lstrip("._-")[:100] or "model"
    path = out / f"{name}.gguf"
    if source.model.record.format == "gguf":
        (own,) = source.model.folder.glob("*.gguf")
        shutil.copyfile(own, path)
    elif is_written(source.whole.folder):
        write_gguf(source.whole.folder, path, _form(source), path.stem, read_gguf_chat, source.watch)
    else:
        _convert(source.whole.folder, path, _form(source))


def _form(source: ExportSource) -> str:
    return _FORMS.get(_dtype(source.whole.folder), "f32")


def _convert(folder: Path, path: Path, form: str) -> None:
    """Run llama.cpp's converter. Raises Refused if it is missing or fails."""
    program = next((program_path for name in _CONVERTERS if (program_path := shutil.which(name))), None)
    kind = read_json(folder / "config.json").get("model_type")
    if program is None:
        raise Refused(
            f"A GGUF of '{kind}' needs llama.cpp's converter, and {_CONVERTERS[0]} is not on the PATH. --to"
            " hf works without it."
        )
    given = [program, str(folder), "--outfile", str(path), "--outtype", form]
    done = subprocess.run(given, capture_output=True, text=True, check=False)
    if done.returncode or not path.is_file():
        last_line = (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
        raise Refused(f"{Path(program).name} does not convert '{kind}': {last_line}")


def readings(source: ExportSource, out: Path) -> Iterator[ParityReading]:
    """Yield the reading of the file by transformers, and by llama.cpp if it is installed."""
    (path,) = out.glob("*.gguf")
    header = read_gguf(path)
    bos, eos, eot = (header.special_id(each) for each in ("bos", "eos", "eot"))
    template = Template(header.text("tokenizer.chat_template"), header.special("bos"), header.special("eos"))
    rendered = None if template.stop_text else template.render(Request(0, TALK))
    back = _read_back(source, out)
    ends = frozenset(each for each in (eos, eot) if each is not None)
    first_token = bos if header.metadata.get("tokenizer.ggml.add_bos_token") or back.bos is not None else None
    yield ParityReading(_SAME, _BACK, back.logs, back.tokens, rendered, ends, bos=first_token)
    yield _llama_cpp(source, path, back, rendered, ends)


def loadable(source: ExportSource, out: Path) -> LoadedFolder:
    """The file as safetensors, in a precision that represents every written weight exactly; made once."""
    (path,) = out.glob("*.gguf")
    record = source.model.record
    if record.format == "gguf" and [hash_file(path)] == [file.sha256 for file in record.files]:
        return LoadedFolder(source.reference)
    folder = source.bench / "back"
    if not folder.exists():
        folder.mkdir()
        files = (FileHash(path.name, path.stat().st_size, ""),)
        written = msgspec.structs.replace(record, format="gguf", files=files)
        Dequantize(_EXACT.get(_dtype(source.whole.folder), "float32"), source.watch).apply(
            [Grown(written, path.parent)], folder
        )
        trim_memory()
    return LoadedFolder(folder)


def _read_back(source: ExportSource, out: Path) -> ParityReading:
    """The reading of the file as safetensors. Only one that llama.cpp's converter wrote may be left out."""
    try:
        return read_folder(loadable(source, out), _SAME, _BACK)
    except (Refused, Unavailable) as error:
        if source.model.record.format == "gguf" or is_written(source.whole.folder):
            raise
        return ParityReading(_SAME, left_out=f"not read: {error}")


def _llama_cpp(
    source: ExportSource, path: Path, back: ParityReading, rendered: str | None, ends: frozenset[int]
) -> ParityReading:
    try:
        from heredity.engines import llamacpp
    except ImportError:
        return ParityReading(
            "llama.cpp", left_out=f"not installed, so not checked. {how_to_install('llamacpp')}"
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
    known = {at: each for at, each in likeliest.items() if each is not None}
    return ParityReading(
        "llama.cpp", allowed, [log for _, log in known.values()], tuple(talk), rendered, ends, bos=back.bos,
        picked={at: token for at, (token, _) in known.items()},
    )  # fmt: skip


def _dtype(folder: Path) -> str:
    """Return the dtype that all tensors share, or F32 if they differ."""
    shards = sorted(folder.glob("*.safetensors"))
    kinds = {tensor.dtype for shard in shards for tensor in read_safetensors(shard).values()}
    return kinds.pop() if len(kinds) == 1 else "F32"
