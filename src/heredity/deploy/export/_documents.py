"""Write the two documents of an exported model: README.md, its card, and bom.cdx.json, its bill of materials.

The card holds Hugging Face metadata, the lineage, the parity of each reader, and measured safety. The bill, a
CycloneDX ML-BOM, lists every exported file, and every model with its hashes, licence, recipe and parents.

Promises: every name is escaped, so a model's name cannot inject markup. Every rate has its n and interval.
Without a study the card states that nothing was measured. The same model gives the same bill, byte for byte.
The schema is 1.6 (ECMA-424). Its reference library has no model cards yet, so this module writes the fields
itself and tests validate them against the schema.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from heredity.core.files import hash_file, write_atomic
from heredity.core.records import FileHash, Model, digest, encode
from heredity.core.sanitize import plural
from heredity.deploy.export._fidelity import Fidelity
from heredity.deploy.export._parity import Parity
from heredity.lineage.catalog import facts, how
from heredity.lineage.store import walk
from heredity.recipes import to_current
from heredity.study.estimates import Estimates, Rate
from heredity.study.report.markdown import plain

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
    lines += [*_body(card), *_against_studied(card), *_measured(card.model, card.measured)]
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


def _measured(model: Model, estimates: Estimates | None) -> Iterator[str]:
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
