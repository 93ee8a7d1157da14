"""Write README.md of an exported model: Hugging Face metadata, lineage, parity of each reader, measured
safety.

Promises: every name is escaped, so a model's name cannot inject markup. Every rate has its n and interval.
Without a study the card states that nothing was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from heredity.core import files
from heredity.core.records import Model
from heredity.deploy.export._bom import spdx
from heredity.deploy.export._parity import Parity
from heredity.recipes import to_current
from heredity.study.estimates import Estimates, Rate
from heredity.study.report.markdown import plain

_SCOPES = {"judge_free": "breach, no judge needed", "judged": "breach, as a judge decides", "all": "refused"}


def write(
    out: Path,
    form: str,
    model: Model,
    descent: Sequence[Model],
    parities: Sequence[Parity],
    measured: Estimates | None,
    form_of: str = "",
) -> None:
    """Write README.md into `out`. `descent`: the models that its files come from, nearest first, with
    `model`.

    `form_of`: a description of the weights in the files, if they are another form of the model.
    """
    lines = [_metadata(form, model, descent), *_body(model, descent, parities, form_of)]
    lines += _measured(model, measured)
    files.write_atomic(out / "README.md", ("\n".join(lines) + "\n").encode())


def _metadata(form: str, model: Model, descent: Sequence[Model]) -> str:
    from huggingface_hub import ModelCardData

    roots = [str(m.recipe.settings.get("repo", "")) for m in descent if m is not model and not m.parents]
    known = spdx(model.licence)
    data = ModelCardData(
        license=known.lower() if known else "other",
        license_name=None if known else model.licence,
        base_model=[root for root in roots if "/" in root] or None,
        library_name="transformers" if form == "hf" else None,
        pipeline_tag="text-generation",
        tags=["heredity", model.recipe.kind, *(["gguf"] if form == "gguf" else [])],
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _body(model: Model, descent: Sequence[Model], parities: Sequence[Parity], form_of: str) -> Iterator[str]:
    yield f"# {plain(model.name)}\n"
    yield f"Family {plain(model.family)}, licence {plain(model.licence)}, id `{model.id}`.\n"
    yield from (f"> {plain(key)}: {plain(value, 300)}\n" for key, value in model.notes.items())
    if form_of:
        yield f"{plain(form_of, 600)}\n"
    yield "## Descent\n"
    yield "Each model and the recipe that made it, nearest first.\n"
    yield "| model | recipe | settings | licence | id |\n|---|---|---|---|---|"
    for each in descent:
        named = to_current(each.recipe.kind, each.recipe.settings)
        settings = ", ".join(f"{k} {v}" for k, v in sorted(named.items()))
        said = [each.name, each.recipe.kind, settings, each.licence, each.id[:12]]
        yield f"| {' | '.join(plain(s, 300) for s in said)} |"
    yield "\n`bom.cdx.json` lists the files and their SHA-256.\n"
    yield "## Checked at export\n"
    yield "Log-probabilities of one fixed text, against the torch engine in float32; a rendered conversation"
    yield "and the tokens that begin and end a text are the same.\n"
    yield "| reader | tokens | largest difference, nats | allowed |\n|---|---|---|---|"
    for p in parities:
        numbers = (
            p.left_out and f"0 | {plain(p.left_out)} | "
        ) or f"{p.n} | {p.largest:.2g} | {p.tolerance:g}"
        yield f"| {plain(p.reader)} | {numbers} |"


def _measured(model: Model, found: Estimates | None) -> Iterator[str]:
    yield "\n## Measured safety\n"
    rates = [r for r in found.rates if _is_shown(r, model)] if found else []
    if found is None or not rates:
        yield "Nothing was measured, or nothing of it was given: `heredity study` measures it."
        return
    yield (
        f"Study `{found.study[:12]}`, application {plain(found.application.name)} "
        f"(`{found.application.digest[:12]}`), {100 * found.confidence:g} % intervals.\n"
    )
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
