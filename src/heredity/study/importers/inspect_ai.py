"""Answers in an inspect_ai log (`.eval` or `.json`): the last completion of every sample and epoch.

The file is a zip of JSON. `header.json` names the model; an unfinished run has `_journal/start.json` instead.
Each of `samples/*.json` holds one sample and epoch. Columns are `id`, `epoch`, `input`, `target`, `model`,
`task`, metadata keys and scores; --verdict SCORER=VALUE makes a score a judge. inspect_ai need not be
installed. Recent logs are packed with zstd, which needs the extra `inspect` before Python 3.14.
Source: inspect_ai 0.3.285, log/_recorders/eval.py, log/_log.py, log/_condense.py.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from heredity.core.errors import BadInput, Unavailable, how_to_install
from heredity.core.records import Stop, ToolCall
from heredity.core.sanitize import clean_call
from heredity.study.importers import Lacking, RecordedAnswer

OWN = {"prompt": "input", "sample": "epoch"}
MAX_BYTES = 1 << 28  # of one unpacked sample: a crafted zip must not fill the memory
MAX_VALUES = 1 << 23  # commas and brackets of it: "[]," takes 30 times its bytes as a list
_ZSTD = 93
_ATTACHED = "attachment://"
_STOPS: dict[str, Stop] = {"max_tokens": "length", "model_length": "length", "content_filter": "filter"}


def is_mine(path: Path, start: bytes) -> bool:
    """Whether a file is an inspect_ai log: a zip named `.eval`, or one JSON document named `.json`."""
    is_zip = path.suffix.lower() == ".eval" and start.startswith(b"PK")
    return is_zip or (path.suffix.lower() == ".json" and start.lstrip().startswith(b"{"))


def read(path: Path) -> Iterator[RecordedAnswer]:
    """Yield every sample with its number in the log. Raises BadInput for any other file."""
    if path.suffix.lower() == ".json":
        yield from _document(path)
        return
    try:
        with zipfile.ZipFile(path) as log:
            spec = _spec(path, log)
            samples = sorted(n for n in log.namelist() if n.startswith("samples/") and n.endswith(".json"))
            for number, name in enumerate(samples, 1):
                yield _sample(path, number, _json(path, log, name), spec)
    except zipfile.BadZipFile as error:
        raise BadInput(path, f"not a whole inspect_ai log: {error}") from None


def lacking(path: Path) -> Lacking | None:
    """The samples of the run that are not in the log; None if its header has no total."""
    if path.suffix.lower() == ".json":
        try:
            log = _dict(json.loads(path.read_bytes()))
        except (ValueError, RecursionError):
            return None
        samples = log.get("samples")
        n_held, head = len(samples) if isinstance(samples, list) else 0, log
    else:
        with zipfile.ZipFile(path) as packed:
            names = packed.namelist()
            n_held = sum(name.startswith("samples/") and name.endswith(".json") for name in names)
            head = {"eval": _spec(path, packed)}
            if "header.json" in names:
                head = _json(path, packed, "header.json")
    planned = _planned(head)
    return None if planned is None else Lacking(path, max(planned - n_held, 0), planned, "sample")


def _planned(head: Mapping[str, object]) -> int | None:
    """Samples times epochs, as the header of a log has them."""
    total = _dict(head.get("results")).get("total_samples")
    if type(total) is int:
        return total
    spec = _dict(head.get("eval"))
    ids, epochs = _dict(spec.get("dataset")).get("sample_ids"), _dict(spec.get("config")).get("epochs")
    return len(ids) * (epochs if type(epochs) is int else 1) if isinstance(ids, list) else None


def _document(path: Path) -> Iterator[RecordedAnswer]:
    """The samples of a log in one JSON document, which is read whole."""
    try:
        log = _dict(json.loads(path.read_bytes()))
    except (ValueError, RecursionError) as error:
        raise BadInput(path, f"not JSON: {error}", code="not-json") from None
    spec, samples = log.get("eval"), log.get("samples")
    if not isinstance(spec, dict) or not isinstance(samples, list):
        raise BadInput(path, "not an inspect_ai log: no `eval` or no `samples` in it. Rows go into .jsonl")
    for number, sample in enumerate(samples, 1):
        yield _sample(path, number, _dict(sample), spec)


def _spec(path: Path, log: zipfile.ZipFile) -> dict[str, Any]:
    """The description of the run: the part `eval` of the header."""
    names = log.namelist()
    for name in ("header.json", "_journal/start.json"):
        if name in names:
            spec = _json(path, log, name).get("eval")
            if isinstance(spec, dict):
                return spec
    raise BadInput(path, "not an inspect_ai log: no header.json in it")


def _json(path: Path, log: zipfile.ZipFile, name: str) -> dict[str, Any]:
    info = log.getinfo(name)
    if info.file_size > MAX_BYTES:
        raise BadInput(
            path, f"{name[:80]} unpacks to {info.file_size:,} bytes; at most {MAX_BYTES:,} are read"
        )
    try:
        is_foreign = info.compress_type == _ZSTD and sys.version_info < (3, 14)
        data = _unpacked(path, info) if is_foreign else log.read(info)
        if sum(map(data.count, (b",", b"[", b"{"))) > MAX_VALUES:
            raise BadInput(path, f"{name[:80]} has too many values to read")
        decoded = json.loads(data)
    except (ValueError, RecursionError, NotImplementedError, EOFError) as error:
        raise BadInput(path, f"{name[:80]} is not JSON: {error}") from None
    if not isinstance(decoded, dict):
        raise BadInput(path, f"{name[:80]} is not a JSON object")
    return decoded


def _unpacked(path: Path, info: zipfile.ZipInfo) -> bytes:
    """A member packed with zstd, which the zipfile of Python before 3.14 cannot read."""
    try:
        import zstandard
    except ImportError:
        raise Unavailable(
            f"{path} is packed with zstd. {how_to_install('inspect')}, "
            "or convert the log: inspect log convert --to json",
            code="package-missing",
        ) from None
    with path.open("rb") as file:
        file.seek(info.header_offset)
        head = file.read(30)
        n_name, n_extra = (int.from_bytes(head[at : at + 2], "little") for at in (26, 28))
        file.seek(info.header_offset + 30 + n_name + n_extra)
        packed = file.read(info.compress_size)
    try:
        with zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True) as stream:
            return bytes(stream.read(MAX_BYTES))
    except zstandard.ZstdError as error:
        raise BadInput(path, f"{info.filename[:80]} cannot be unpacked: {error}") from None


def _sample(path: Path, number: int, sample: dict[str, Any], spec: dict[str, Any]) -> RecordedAnswer:
    output = sample.get("output")
    if "input" not in sample or not isinstance(output, dict):
        raise BadInput(path, f"sample {number} has no input or no output. Is it an inspect_ai log?", number)
    attached = _dict(sample.get("attachments"))
    choices = output.get("choices")
    choice = _dict(choices[0]) if isinstance(choices, list) and choices else {}
    message, usage = _dict(choice.get("message")), _dict(output.get("usage"))
    error = _dict(sample.get("error")).get("message") or output.get("error")
    row = {
        **_dict(sample.get("metadata")),
        **{name: _dict(score).get("value") for name, score in _dict(sample.get("scores")).items()},
        "id": sample.get("id"),
        "epoch": sample.get("epoch"),
        "target": sample.get("target"),
        "task": spec.get("task"),
        "model": spec.get("model"),
        "input": _resolved(sample["input"], attached),
        "response": _resolved(message.get("content", output.get("completion") or None), attached),
        "error": error,
    }
    return RecordedAnswer(
        line=number,
        row=row,
        stop=_STOPS.get(str(choice.get("stop_reason")), "end"),
        n_prompt_tokens=_count(usage.get("input_tokens")),
        n_tokens=_count(usage.get("output_tokens")),
        tool_calls=tuple(_calls(message.get("tool_calls"))),
        shown=_resolved(_before(sample), attached),
    )


def _before(sample: dict[str, Any]) -> list[Any] | None:
    """The messages before the last answer; None where the log keeps none."""
    messages = sample.get("messages")
    if not isinstance(messages, list):
        return None
    last = max((i for i, m in enumerate(messages) if _dict(m).get("role") == "assistant"), default=0)
    return messages[:last] or None


def _resolved(value: Any, attached: dict[str, Any]) -> Any:
    """`value` with what the log keeps apart put back in its place."""
    if isinstance(value, str) and value.startswith(_ATTACHED):
        return attached.get(value.removeprefix(_ATTACHED), value)
    if isinstance(value, list):
        return [_resolved(part, attached) for part in value]
    if isinstance(value, dict):
        return {key: _resolved(part, attached) for key, part in value.items()}
    return value


def _calls(calls: object) -> Iterator[ToolCall]:
    for call in calls if isinstance(calls, list) else ():
        if isinstance(call, dict) and call.get("function"):
            yield clean_call(ToolCall(str(call["function"]), _dict(call.get("arguments"))))


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < 2**53 else 0
