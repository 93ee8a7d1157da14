"""Fetch a model from the catalogue, the model hub or this disk; and select the files of a foreign folder.

Promises: only safetensors, GGUF and text that describes them pass. A pickle, code, a config that needs
code, or a link is Refused by name, before another library opens it.
"""

from __future__ import annotations

import shutil
import stat
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from heredity.core.errors import Damaged, Refused
from heredity.core.files import explain_full_disk
from heredity.engines.chat import check_template, template_source
from heredity.formats.gguf import read_gguf
from heredity.formats.safetensors_io import INDEX, read_safetensors
from heredity.formats.tokenizer_files import NAMES, check_tokenizer

WANTED = ("*.safetensors", "*.gguf", "*.json", "*.jinja", "*.txt", "*.model", "*.md", "LICENSE*", "NOTICE*")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".msgpack")
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".nemo", ".keras")
_FILES = (".safetensors", ".gguf", ".json", ".jinja", ".txt", ".model", ".md", ".py", *_PICKLES, *_ARCHIVES)
ADAPTER_CONFIG = "adapter_config.json"
_MAX_TEXT = 256 << 20  # bytes; the largest tokenizer.json known is a tenth of it
_NEST = 32  # levels of a config
_CODE = ("auto_map", "custom_pipelines", "trust_remote_code")  # keys that ask for code of the model's own


def choose_files(folder: Path) -> list[str]:
    """The files of `folder` that make up the model, as POSIX paths. Only names and links are checked.

    Raises Refused for a pickle, an archive, code, a link, a pipe, a socket or a device.
    """
    chosen = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        refuse_link(path)
        if any(part.startswith(".") for part in PurePosixPath(name).parts) or not path.is_file():
            continue
        refuse_name(path, name)
        if any(PurePosixPath(name).match(pattern) for pattern in WANTED):
            chosen.append(name)
    return chosen


def is_file_name(name: str) -> bool:
    """Whether a name ends as a file of a model does, with weights or without."""
    return PurePosixPath(name).suffix.lower() in _FILES


def refuse_name(place: Path | str, name: str) -> None:
    """Raise Refused if a file of this name could run code when it is opened."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in _PICKLES:
        raise Refused(
            f"{place}: only safetensors and GGUF are opened; a {suffix} file can run code when it is read."
            " Convert the weights to safetensors, or remove it where a .safetensors stands beside it.",
            code="runs-code",
        )
    if suffix == ".py":
        raise Refused(f"{place}: this model brings its own code; heredity never runs it.", code="runs-code")
    if suffix in _ARCHIVES:
        raise Refused(f"{place}: an archive is not opened. Unpack it and pull the folder.")


def refuse_link(path: Path) -> None:
    """Raise Refused for a link, a pipe, a socket or a device."""
    if path.is_symlink():
        raise Refused(f"{path} is a link; a model's folder holds its own files. Copy it with cp -rL first.")
    mode = path.lstat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise Refused(f"{path} is a pipe, a socket or a device; a model's folder holds files. Remove it.")


def refuse_outside(place: Path | str, name: str) -> None:
    """Raise Refused if `name` would be unpacked outside its folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
        raise Refused(f"{place}: it holds the path {name[:120]!r}, which leads outside its folder.")


def copy_checked(folder: Path, names: list[str], out: Path, is_adapter: bool = False) -> None:
    """Copy the chosen files and check every copy. The checked file is the stored file."""
    for name in names:
        refuse_outside(folder, name)
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not (folder / name).stat().st_size:
            continue  # an empty README says nothing
        with explain_full_disk(out, (folder / name).stat().st_size):
            shutil.copyfile(folder / name, target, follow_symlinks=False)
    check_files(out, str(folder), is_adapter)


def check_files(folder: Path, place: str, is_adapter: bool = False) -> None:
    """Check every file by its content. Raises Damaged or Refused, which name the folder as `place`.

    is_adapter: an adapter's config may be there. In a folder of whole weights it is refused.
    """
    try:
        for path in sorted(folder.rglob("*")):
            if path.is_symlink():
                raise Refused(f"{path} is a link; a model holds its own files.")
            if path.is_file():
                refuse_name(path, path.name)
                _check_file(path, is_adapter)
    except (Damaged, Refused) as error:  # the user does not know this temporary folder
        raise type(error)(str(error).replace(str(folder), place), code=error.code) from error
    for each in dict.fromkeys((template_source(folder), template_source(folder, "tool_use"))):
        if each:
            check_template(each, place)


def adapter_config_refused(path: Path) -> Refused:
    """The error for an adapter's config in a folder of whole weights."""
    if not (path.parent / "config.json").is_file():
        return Refused(
            f"{path.parent} is an adapter, which needs its base: heredity adopt {path.parent} --parent MODEL",
            code="adapter-config",
        )
    return Refused(
        f"{path}: an adapter's config names other weights, which would be loaded in place of these. "
        "An adapter needs its base: heredity adopt FOLDER --parent MODEL. Next to weights, delete it.",
        code="adapter-config",
    )


def _check_file(path: Path, is_adapter: bool) -> None:
    if path.name == ADAPTER_CONFIG and not is_adapter:
        raise adapter_config_refused(path)
    if path.suffix == ".safetensors":
        read_safetensors(path)
    elif path.suffix == ".gguf":
        template = read_gguf(path).metadata.get("tokenizer.chat_template")
        if isinstance(template, str) and template:
            check_template(template, str(path))
    elif path.stat().st_size > _MAX_TEXT:
        raise Refused(f"{path}: {path.stat().st_size:,} bytes are too many for a file without weights.")
    elif path.suffix == ".json":
        _refuse_code(path, _decode(path))
        if path.match(NAMES):
            check_tokenizer(path, is_tried=True)
    elif path.suffix == ".model":
        with path.open("rb") as file:
            start = file.read(4)
        if start.startswith((b"PK", b"\x1f\x8b")) or (start[:1] == b"\x80" and start[1:2] <= b"\x05"):
            raise Refused(
                f"{path}: this is a pickle or an archive, whatever its name says; it is not opened.",
                code="runs-code",
            )
    else:
        try:
            path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise Refused(f"{path}: it should be text and is not UTF-8; it is not opened.") from error


def _decode(path: Path) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged(f"{path}: malformed JSON: {error}") from error


def _refuse_code(path: Path, value: Any, level: int = 0) -> None:
    """Refuse code of the model's own (auto_map, custom_pipelines), and kernels of a hub ("org/name")."""
    if isinstance(value, list):
        for inner in value if level < _NEST else ():
            _refuse_code(path, inner, level + 1)
    if not isinstance(value, dict) or level > _NEST:
        return
    for key, inner in value.items():
        if key in _CODE and inner:
            raise Refused(
                f"{path}: its '{key}' asks for remote code; heredity never runs it.", code="runs-code"
            )
        if "attn_implementation" in key and "/" in str(inner):
            raise Refused(
                f"{path}: its '{key}' asks for a kernel from a hub; heredity never loads one.",
                code="runs-code",
            )
        _refuse_code(path, inner, level + 1)


def check_shards(out: Path, name: str) -> None:
    """Raise Damaged if the index of a model's shards names a file that is missing."""
    index = out / INDEX
    if not index.is_file():
        return
    try:
        shards = set(msgspec.json.decode(index.read_bytes())["weight_map"].values())
    except (KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{name}/{index.name}: it maps no tensors to files.") from error
    for shard in sorted(map(str, shards)):
        refuse_outside(f"{name}/{index.name}", shard)
        if not (out / shard).is_file():
            raise Damaged(f"{name}/{index.name} names {shard[:120]!r}, which is missing. Get it again.")


def drop_code(folder: Path) -> list[str]:
    """Take out of every JSON file what names code of the model's own. Returns the files that changed.

    For models whose architecture transformers has itself. All other settings stay as they are.
    """
    changed = []
    for path in sorted(folder.rglob("*.json")):
        value = _decode(path)
        if isinstance(value, dict) and (kept := {k: v for k, v in value.items() if k not in _CODE}) != value:
            path.write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=2) + b"\n")
            changed.append(path.relative_to(folder).as_posix())
    return changed
