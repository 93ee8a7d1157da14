"""bom.cdx.json: a CycloneDX bill of materials of a model and its whole ancestry (an ML-BOM).

Promises: every model with the hash of every file, its licence, its recipe and its parents; the same model
gives the same bytes. The schema is 1.6 (ECMA-424); its reference library has no model cards yet, so that the
few fields used here are written as they are, and tests hold them against the schema.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from heredity import store
from heredity.records import Model, encode

_SPDX = ("Apache-2.0", "MIT", "BSD-3-Clause", "CC-BY-4.0", "CC-BY-SA-4.0", "CC0-1.0", "GPL-3.0-only")


def write(out: Path, model: Model, ancestors: Sequence[Model]) -> None:
    """bom.cdx.json in `out`."""
    text = msgspec.json.format(msgspec.json.encode(bom(model, ancestors)), indent=2)
    store.write_atomic(out / "bom.cdx.json", text + b"\n")


def bom(model: Model, ancestors: Sequence[Model]) -> dict[str, Any]:
    """The bill itself."""
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'heredity:{model.id}')}",
        "version": 1,
        "metadata": {"timestamp": model.made.at, "component": _component(model)},
        "components": [_component(each) for each in ancestors],
        "dependencies": [
            {"ref": each.id, "dependsOn": list(dict.fromkeys(each.parents))} for each in (model, *ancestors)
        ],
    }  # fmt: skip


def _component(model: Model) -> dict[str, Any]:
    known = {each.lower(): each for each in _SPDX}
    licence = known.get(model.licence.lower())
    settings = encode(model.recipe.settings).decode()
    said = {"recipe": model.recipe.kind, "settings": settings, "family": model.family, **model.notes}
    return {
        "type": "machine-learning-model",
        "bom-ref": model.id,
        "name": model.name,
        "version": model.id[:12],
        "licenses": [{"license": {"id": licence} if licence else {"name": model.licence or "unknown"}}],
        "components": [
            {
                "type": "file",
                "bom-ref": f"{model.id}/{file.path}",
                "name": file.path,
                "hashes": [{"alg": "SHA-256", "content": file.sha256}],
            }
            for file in model.files
        ],
        "modelCard": {
            "bom-ref": f"{model.id}/card",
            "modelParameters": {"task": "text-generation", "architectureFamily": model.family},
        },
        "properties": [{"name": f"heredity:{key}", "value": value} for key, value in sorted(said.items())],
    }
