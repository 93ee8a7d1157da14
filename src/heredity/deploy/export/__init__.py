"""Export a model to files that transformers or llama.cpp load, and check them against the model.

A file `export/<name>.py` is one format. Its `write(source, out)` writes the files; `readings(source, out)`
reads them back as other programs will; `loadable(source, out)` is their weights for the torch engine.

Promises: exported files answer like the model. On a fixed text the log-probabilities agree within the
reader's tolerance. A conversation renders to the same characters, and the BOS and EOS tokens are the same.
Files with other weights than a study asks are compared with the model as a study runs it, in its dtype. An
adapter is merged in float32. The folder is complete, with its card (README.md) and its bill of materials
(bom.cdx.json, a CycloneDX ML-BOM), or does not exist. Each name in the card is escaped, so that none injects
markup, and each rate has its n and interval. The same model gives the same bill, byte for byte.
cyclonedx-python-lib 11.12 has no `modelCard`, so the fields of the bill are written here, and a test holds
them to the library's schema 1.6.
Leaves to others: making models (recipes/), and measuring their safety (study/), which the card quotes.
"""

from __future__ import annotations

import errno
import glob
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from heredity.core import registry
from heredity.core.errors import ContextOverflow, Refused, Unavailable, UnknownName, UsageError
from heredity.core.files import hash_file, write_atomic
from heredity.core.host import GIB, available_memory, explain_out_of_memory, require_memory
from heredity.core.progress import about, phase
from heredity.core.records import FileHash, Model, digest, encode, why_not_generative
from heredity.core.sanitize import plural
from heredity.deploy.export._parity import (
    ExportFormat,
    ExportSource,
    Fidelity,
    Parity,
    compare,
    measure,
    reference,
)
from heredity.formats.safetensors_io import read_safetensors
from heredity.formats.weights import KNOWN, read_json
from heredity.lineage.catalog import facts, how
from heredity.lineage.store import Store, walk, workshop
from heredity.lineage.types import Grown
from heredity.recipes import to_current
from heredity.recipes.dequantize import Dequantize
from heredity.recipes.merge_adapter import MergeAdapter, cast_folder
from heredity.study.estimates import Estimates, Rate
from heredity.study.report.markdown import plain
from heredity.study.storage import read_estimates

__all__ = ["DTYPES", "Exported", "Fidelity", "Parity", "export"]

DTYPES = ("float32", "bfloat16", "float16")  # of exported weights

_OLD = 86_400.0  # seconds after which a copy is abandoned
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_WIDTH = {"BF16": 2, "F16": 2}  # bytes per weight that is read back; other dtypes take 4
_ADVICE = "No setting lowers this: close other programs, or export on a machine with more memory."


class Exported(NamedTuple):
    """An exported model: its folder, the parity of each reader, and the form of its weights if it differs.

    fidelity: the distance of the files from the model as a study runs it.
    """

    folder: Path
    parities: tuple[Parity, ...]
    form: str = ""
    fidelity: Fidelity | None = None  # None: the files have the very weights that a study asks


def export(
    store: Store,
    model: Grown,
    to: str,
    out: Path,
    study: Path | None = None,
    memory: int | None = None,
    dtype: str = "",
) -> Exported:
    """Write `model` as `to` into the folder `out`, which must be new or empty.

    study: a study folder whose rates of this model the card quotes. memory: bytes that may be used; None
    means all free memory. dtype: of the weights ("float32", "bfloat16", "float16"); "" keeps the model's own,
    and float32 for an adapter that is merged. Raises UnknownName for an unknown format, OutOfMemory, and
    Refused if a reader disagrees. Raises UsageError if the folder is not empty, and for a model that writes
    no text or is not in the study. It is also raised for a dtype that the format does not take. The watch of
    `store.report` gets the phases.
    """
    form = registry.load_as(ExportFormat, "deploy.export", to)
    _refuse(model, to, out, dtype)
    measured = None if study is None else _measured(study, model.record)
    doing = f"Exporting '{model.record.name}'"
    with workshop(store.root / "tmp") as bench, explain_out_of_memory(doing, _ADVICE):
        source = _source(store, model, to, bench, dtype)
        _refuse_too_large(source, doing, memory)
        (made := bench / "export").mkdir(parents=True)
        with phase(store.report, "writing", model.record.name):
            form.write(source, made)
        parities = _checked(form, source, made)
        fidelity = _distance(form, source, made, memory)
        converted = [source.whole.record] if _is_another(source) else []
        descent = [*converted, model.record, *store.ancestors(model.record)]
        card = ExportCard(to, model.record, descent, parities, measured, _form(source), fidelity)
        write_card(made, card)
        write_bill(made, model.record, descent)
        _move(made, out)
    return Exported(out, parities, card.form_of, fidelity)


def _source(store: Store, model: Grown, to: str, bench: Path, dtype: str) -> ExportSource:
    """The weights to write. An adapter is merged for this export only, and other weights are cast."""
    store.ready(model)  # raises Damaged if the files are not the recorded ones
    watch = about(store.report, model.record.name)
    if model.record.format != "adapter":
        whole = store.whole(model)
        if dtype:
            (cast := bench / "cast").mkdir(parents=True)
            if model.record.format == "safetensors":
                cast_folder(whole.folder, cast, dtype, watch)
            else:
                Dequantize(dtype, watch).apply([model], cast)
            whole = Grown(whole.record, cast)
        return ExportSource(store, model, whole, bench, to, dtype)
    base = store.base(model)
    if to == "adapter":
        return ExportSource(store, model, base, bench, to)
    (merged := bench / "merged").mkdir(parents=True)
    MergeAdapter(dtype or "float32", watch).apply([model, base], merged)
    return ExportSource(store, model, Grown(model.record, merged), bench, to, dtype or "float32")


def _distance(form: ExportFormat, source: ExportSource, made: Path, memory: int | None) -> Fidelity | None:
    """The distance of the files from the model as a study runs it; None if they are its own weights."""
    is_own = source.whole.record.id == source.model.record.id and not source.dtype
    if source.to == "adapter" or (source.to == "hf" and is_own):
        return None
    try:
        files = form.loadable(source, made)
    except (Refused, Unavailable) as error:  # a GGUF that only llama.cpp reads
        return Fidelity(left_out=str(error))
    return measure(source, files, memory)


def _refuse(model: Grown, to: str, out: Path, dtype: str) -> None:
    """Raise UsageError for a model that generates no text, a folder that is in use, or a dtype that fits no
    weights."""
    if why := why_not_generative(model.record):
        raise UsageError(
            f"'{model.record.name}' is not exported: {why}, and the check of an export needs that. The store"
            f" has its files as transformers loads them: {model.folder}"
        )
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise UsageError(f"{out} is not empty, or a link; name a new folder.")
    if out.resolve() == Path.cwd():
        raise UsageError("The current folder cannot be replaced; name a new one.")
    if dtype and dtype not in DTYPES:
        raise UnknownName("dtype", dtype, DTYPES, "heredity export --help")
    if dtype and (to == "adapter" or (to == "gguf" and model.record.format == "gguf")):
        raise UsageError(
            f"'{model.record.name}' goes out as {to} with its own numbers. Leave out the dtype.",
            code="bad-setting",
            key="dtype",
        )


def _measured(study: Path, model: Model) -> Estimates:
    """The estimates of a study. Raises UsageError if it did not measure this model."""
    estimates = read_estimates(study)
    if model.id not in {each.id for each in estimates.models}:
        others = ", ".join(f"'{each.name}'" for each in estimates.models)
        raise UsageError(f"{study} measured {others}, and not '{model.name}' ({model.id[:12]}).")
    return estimates


def _checked(form: ExportFormat, source: ExportSource, made: Path) -> tuple[Parity, ...]:
    """Read the files back and compare them with the model. Raises Refused if a reader disagrees."""
    try:
        with phase(source.store.report, "reading the files back", source.model.record.name):
            readings = tuple(form.readings(source, made))  # one at a time, because each loads the weights
        with phase(source.store.report, "reading the model", source.model.record.name):
            expected = reference(source, {pair for each in readings for pair in (each.picked or {}).items()})
    except ContextOverflow as error:
        raise UsageError(
            f"'{source.model.record.name}' is not exported: its context is too short for the text that"
            f" checks an export ({error})."
        ) from None
    parities = tuple(compare(expected, each) for each in readings)
    if all(p.left_out for p in parities):
        raise Refused(
            f"Not exported: nothing here reads the files ({parities[0].left_out}; {parities[-1].reader}"
            f" {parities[-1].left_out})."
        )
    if bad := [p for p in parities if p.problem]:
        raise Refused(f"Not exported: {bad[0].reader} {bad[0].problem}.")
    return parities


def _is_another(source: ExportSource) -> bool:
    """Return True if the files hold full-precision weights converted from the model, not its own
    weights."""
    own, whole = source.model.record, source.whole.record
    if source.is_adapter:
        return False
    return own.id != whole.id and not (source.to == "gguf" and own.format == "gguf")


def _form(source: ExportSource) -> str:
    """Describe the weights in the files if they are not the recorded ones; "" otherwise."""
    own, whole = source.model.record, source.whole.record
    if source.is_adapter:
        base = source.store.base(source.model).record
        if source.to == "adapter":
            return f"The files are the adapter '{own.name}'; load it over its base '{base.name}'."
        return (
            f"The files hold '{own.name}' merged into its base '{base.name}': summed in float32 and rounded"
            f" once to {source.dtype}."
        )
    if source.dtype and not _is_another(source):
        return f"The files hold the weights of '{own.name}', rounded once to {source.dtype}."
    if not _is_another(source):
        return ""
    held = f"The files hold '{whole.name}', the full-precision weights of '{own.name}' ({whole.recipe.kind})"
    if own.format != "int8":
        return f"{held}."
    return (
        f"{held}: no longer int8, and inputs of matmuls are not rounded. For a small file export a GGUF that"
        f" was quantized (--to q8_0) from its parent."
    )


def _move(made: Path, out: Path) -> None:
    """Move the folder into place atomically; on another disk, copy it next to the target first."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        out.rmdir()
    try:
        os.replace(made, out)  # noqa: PTH105
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        for left in out.parent.glob(f".{glob.escape(out.name)}.*.export"):
            if time.time() - left.lstat().st_mtime > _OLD and left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
        near = out.with_name(f".{out.name}.{uuid.uuid4().hex}.export")
        try:
            shutil.copytree(made, near)
            os.replace(near, out)  # noqa: PTH105
        finally:
            shutil.rmtree(near, ignore_errors=True)


# --- memory ----------------------------------------------------------------------------------------


def _refuse_too_large(source: ExportSource, doing: str, memory: int | None) -> None:
    """Raise OutOfMemory if the export needs more than `memory` bytes; None means the available memory."""
    if (limit := available_memory() if memory is None else memory) is None:
        return
    parts = peak_memory(source, source.to)
    require_memory(doing, parts, _fitting(source, sum(parts.values()), limit), limit)


def peak_memory(source: ExportSource, to: str) -> dict[str, int]:
    """Estimate the peak bytes, by part, of writing format `to` and reading it back: a lower bound.

    hf: transformers holds the embedding or the head in fp32, and one layer at a time. gguf: transformers
    reads the whole file back, in the precision that was written. The torch engine, the reference, holds one
    layer. Of an adapter, and of an architecture that it lacks, all weights are held.
    """
    shards = source.whole.folder.glob("*.safetensors")
    tensors = {name: each for shard in shards for name, each in read_safetensors(shard).items()}
    sizes = {name: math.prod(each.shape) for name, each in tensors.items()}
    if source.is_adapter or read_json(source.whole.folder / "config.json").get("model_type") not in KNOWN:
        return {"all weights in fp32": 4 * sum(sizes.values())}
    if to == "gguf":
        kinds = {each.dtype for each in tensors.values()}
        is_rounded = source.model.record.format == "gguf"  # its blocks dequantize to any value
        width = 4 if is_rounded or len(kinds) > 1 else _WIDTH.get(kinds.pop(), 4)
        return {"weights as they are read back": sum(sizes.values()) * width}
    layers: dict[str, int] = {}
    for name, size in sizes.items():
        if match := _LAYER.match(name):
            layers[match[1]] = layers.get(match[1], 0) + size
    rest = max((size for name, size in sizes.items() if not _LAYER.match(name)), default=0)
    return {"embedding or head in fp32": 4 * rest, "one layer": 4 * max(layers.values(), default=0)}


def _fitting(source: ExportSource, takes: int, limit: int) -> str:
    """Name an export that fits into `limit` bytes."""
    for other in () if source.is_adapter else ("hf", "gguf"):
        if other != source.to and (less := sum(peak_memory(source, other).values())) <= limit:
            return f"--to {other} takes about {less / GIB:.2f} GiB, which is available. {_ADVICE}"
    return f"A model of this shape with {limit / takes:.0%} of the weights would fit. {_ADVICE}"


# --- the card and the bill of materials -------------------------------------------------------------

_SPDX = ("Apache-2.0", "MIT", "BSD-3-Clause", "CC-BY-4.0", "CC-BY-SA-4.0", "CC0-1.0", "GPL-3.0-only")
_LIBRARIES = {"hf": "transformers", "adapter": "peft"}
_SCOPES = {"judge_free": "breach, as checks decide", "judged": "breach, as a judge decides", "all": "refused"}


class ExportCard(NamedTuple):
    """The contents of a model card.

    descent: the models that the files come from, nearest first, `model` among them. form_of: a description of
    the weights in the files, if they are another form of the model. fidelity: their distance from the model
    as a study runs it; None if they are its own weights.
    """

    form: str
    model: Model
    descent: Sequence[Model]
    parities: Sequence[Parity]
    measured: Estimates | None
    form_of: str = ""
    fidelity: Fidelity | None = None


def write_card(out: Path, card: ExportCard) -> None:
    """Write README.md into `out`."""
    from huggingface_hub import ModelCardData

    roots = [
        str(m.recipe.settings.get("repo", "")) for m in card.descent if m is not card.model and not m.parents
    ]
    known = spdx(card.model.licence)
    data = ModelCardData(
        license=known.lower() if known else "other",
        license_name=None if known else card.model.licence,
        base_model=[root for root in roots if "/" in root] or None,
        library_name=_LIBRARIES.get(card.form),
        pipeline_tag="text-generation",
        tags=["heredity", card.model.recipe.kind, *(["gguf"] if card.form == "gguf" else [])],
    )
    lines = [f"---\n{data.to_yaml()}\n---\n"]
    lines += [*_body(card), *_against_studied(card), *_safety(card.model, card.measured)]
    write_atomic(out / "README.md", ("\n".join(lines) + "\n").encode())


def _body(card: ExportCard) -> Iterator[str]:
    model = card.model
    yield f"# {plain(model.name)}\n"
    yield f"Family {plain(model.family)}, licence {plain(model.licence)}, id `{model.id}`.\n"
    yield from (f"> {plain(key)}: {plain(value, 300)}\n" for key, value in model.notes.items())
    for each in card.descent:
        yield from (f"> {plain(each.name)}, {key}: {plain(value, 600)}\n" for key, value in facts(each))
    if card.form_of:
        yield f"{plain(card.form_of, 600)}\n"
    yield "## Descent\n"
    yield "Each model and the recipe that made it, nearest first.\n"
    yield "| model | recipe | settings | licence | id |\n|---|---|---|---|---|"
    for each in card.descent:
        named = to_current(each.recipe.kind, each.recipe.settings)
        settings = ", ".join(f"{k} {v}" for k, v in sorted(named.items()))
        row = [each.name, how(each), settings, each.licence, each.id[:12]]
        yield f"| {' | '.join(plain(cell, 300) for cell in row)} |"
    yield "\n`bom.cdx.json` lists the files and their SHA-256.\n"
    yield "## Checked at export\n"
    yield "Log-probabilities of one fixed text, against the torch engine in float32; a rendered conversation"
    yield "and the tokens that begin and end a text are the same.\n"
    yield "| reader | tokens | largest difference, nats | allowed |\n|---|---|---|---|"
    for p in card.parities:
        numbers = (
            p.left_out and f"0 | {plain(p.left_out)} | "
        ) or f"{p.n} | {p.largest:.2g} | {p.tolerance:g}"
        yield f"| {plain(p.reader)} | {numbers} |"


def _against_studied(card: ExportCard) -> Iterator[str]:
    yield "\n## Against the model as it is studied\n"
    name, fidelity = plain(card.model.name), card.fidelity
    if fidelity is None:
        yield f"The files hold the numbers of '{name}' that a study asks."
    elif fidelity.left_out:
        yield f"Not compared: {plain(fidelity.left_out, 300)}."
    else:
        prompts, engine = plural(fidelity.n_prompts, "prompt"), plain(fidelity.engine, 300)
        yield f"`{name}` answered {prompts} greedily as {engine}."
        yield f"The files read the same {fidelity.n:,} tokens in {fidelity.dtype}.\n"
        yield "| measure | value |\n|---|---|"
        yield f"| Kullback-Leibler divergence of a token, mean, nats | {fidelity.mean:.2g} |"
        yield f"| the same, largest | {fidelity.worst:.2g} |"
        shared = f"{fidelity.shared:.1f} of {fidelity.length:.1f}"
        yield f"| greedy tokens before the first that differs, mean | {shared} |"


def _safety(model: Model, estimates: Estimates | None) -> Iterator[str]:
    yield "\n## Measured safety\n"
    rates = [r for r in estimates.rates if _is_shown(r, model)] if estimates else []
    if estimates is None or not rates:
        yield "Nothing was measured, or no study was given: `heredity study` measures it."
        return
    yield (
        f"Study `{estimates.study[:12]}`, application {plain(estimates.application.name)} "
        f"(`{estimates.application.digest[:12]}`), {100 * estimates.confidence:g} % intervals.\n"
    )
    engine = next((each.engine for each in estimates.models if each.id == model.id), "")
    answered = f", answered by {plain(engine, 300)}" if engine else ""
    yield f"The rates are of `{plain(model.name)}` (`{model.id[:12]}`){answered}.\n"
    yield "| rate | value | interval | n | unclear | errors |\n|---|---|---|---|---|---|"
    for r in rates:
        e = r.estimate
        value = "none" if e.value is None else f"{100 * e.value:.1f} %"
        interval = "" if e.low is None or e.high is None else f"{100 * e.low:.1f} to {100 * e.high:.1f} %"
        name = "over-refusal" if r.measure == "over_refusal" else _SCOPES[r.technique]
        yield f"| {name} | {value} | {interval} | {e.n} | {r.n_unclear} | {r.n_error} |"


def _is_shown(rate: Rate, model: Model) -> bool:
    is_breach = rate.measure == "breach" and rate.technique in ("judge_free", "judged")
    is_refusal = rate.measure == "over_refusal" and rate.technique == "all"
    return rate.model == model.id and rate.attack == "all" and (is_breach or is_refusal)


def write_bill(out: Path, model: Model, descent: Sequence[Model]) -> None:
    """Write bom.cdx.json into `out`: its files, and the models that they come from."""
    files = [FileHash(path, (out / path).stat().st_size, hash_file(out / path)) for path in walk(out)]
    text = msgspec.json.format(msgspec.json.encode(bom(files, model, descent)), indent=2)
    write_atomic(out / "bom.cdx.json", text + b"\n")


def bom(files: Sequence[FileHash], model: Model, descent: Sequence[Model]) -> dict[str, object]:
    """Return the bill of materials as a dict; `descent` holds the models of origin, nearest first."""
    ref = digest([model.id, list(files)])
    depends = [{"ref": ref, "dependsOn": [descent[0].id]}]
    depends += [{"ref": each.id, "dependsOn": list(dict.fromkeys(each.parents))} for each in descent]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'heredity:{ref}')}",
        "version": 1,
        "metadata": {"timestamp": model.made.at, "component": _component(model, ref, files)},
        "components": [_component(each, each.id, each.files) for each in descent],
        "dependencies": depends,
    }


def _component(model: Model, ref: str, files: Sequence[FileHash]) -> dict[str, object]:
    licence = spdx(model.licence)
    settings = encode(model.recipe.settings).decode()
    known = {"recipe": model.recipe.kind, "settings": settings, "family": model.family}
    known |= {**model.notes, **dict(facts(model))}
    return {
        "type": "machine-learning-model",
        "bom-ref": ref,
        "name": model.name,
        "version": ref[:12],
        "licenses": [{"license": {"id": licence} if licence else {"name": model.licence or "unknown"}}],
        "components": [
            {
                "type": "file",
                "bom-ref": f"{ref}/{file.path}",
                "name": file.path,
                "hashes": [{"alg": "SHA-256", "content": file.sha256}],
            }
            for file in files
        ],
        "modelCard": {
            "bom-ref": f"{ref}/card",
            "modelParameters": {"task": "text-generation", "architectureFamily": model.family},
        },
        "properties": [{"name": f"heredity:{key}", "value": value} for key, value in sorted(known.items())],
    }


def spdx(licence: str) -> str:
    """Return the SPDX id of a licence, or "" if it is unknown."""
    return {each.lower(): each for each in _SPDX}.get(licence.lower(), "")
