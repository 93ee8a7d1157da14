"""bom.cdx.json: a CycloneDX bill of materials of what is handed out and of its whole ancestry (an ML-BOM).

Promises: every file beside it and every model with the hash of every file, its licence, its recipe and its
parents; the same model gives the same bytes. The schema is 1.6 (ECMA-424); its reference library has no model
cards yet, so that the few fields used here are written as they are, and tests hold them against the schema.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from heredity.core import files as store
from heredity.core.files import hash_file
from heredity.core.records import FileHash, Model, digest, encode
from heredity.lineage.integrity import walk

_SPDX = ("Apache-2.0", "MIT", "BSD-3-Clause", "CC-BY-4.0", "CC-BY-SA-4.0", "CC0-1.0", "GPL-3.0-only")


def write(out: Path, model: Model, descent: Sequence[Model]) -> None:
    """bom.cdx.json in `out`, of the files that are there and of the models that they came from."""
    files = [FileHash(path, (out / path).stat().st_size, hash_file(out / path)) for path in walk(out)]
    text = msgspec.json.format(msgspec.json.encode(bom(files, model, descent)), indent=2)
    store.write_atomic(out / "bom.cdx.json", text + b"\n")


def bom(files: Sequence[FileHash], model: Model, descent: Sequence[Model]) -> dict[str, Any]:
    """The bill itself: what is handed out as `model`, and where that comes from, nearest first."""
    handed = digest([model.id, list(files)])
    depends = [{"ref": handed, "dependsOn": [descent[0].id]}]
    depends += [{"ref": each.id, "dependsOn": list(dict.fromkeys(each.parents))} for each in descent]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'heredity:{handed}')}",
        "version": 1,
        "metadata": {"timestamp": model.made.at, "component": _component(model, handed, files)},
        "components": [_component(each, each.id, each.files) for each in descent],
        "dependencies": depends,
    }


def spdx(licence: str) -> str:
    """The licence's SPDX id, "" where it is none that is known here."""
    return {each.lower(): each for each in _SPDX}.get(licence.lower(), "")


def _component(model: Model, ref: str, files: Sequence[FileHash]) -> dict[str, Any]:
    licence = spdx(model.licence)
    settings = encode(model.recipe.settings).decode()
    said = {"recipe": model.recipe.kind, "settings": settings, "family": model.family, **model.notes}
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
        "properties": [{"name": f"heredity:{key}", "value": value} for key, value in sorted(said.items())],
    }
