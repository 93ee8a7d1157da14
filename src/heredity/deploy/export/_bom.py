"""Write bom.cdx.json: a CycloneDX bill of materials (ML-BOM) of an exported model and all its ancestors.

Promises: it lists every exported file, and every model with its file hashes, licence, recipe and parents.
The same model gives the same bytes. The schema is 1.6 (ECMA-424). Its reference library has no model cards
yet, so this module writes the fields itself and tests validate them against the schema.
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
    """Write bom.cdx.json into `out`: its files, and the models that they come from."""
    files = [FileHash(path, (out / path).stat().st_size, hash_file(out / path)) for path in walk(out)]
    text = msgspec.json.format(msgspec.json.encode(bom(files, model, descent)), indent=2)
    store.write_atomic(out / "bom.cdx.json", text + b"\n")


def bom(files: Sequence[FileHash], model: Model, descent: Sequence[Model]) -> dict[str, Any]:
    """Return the bill of materials as a dict; `descent` holds the models of origin, nearest first."""
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
    """Return the SPDX id of a licence, or "" if it is unknown."""
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
