"""Record a model that was made elsewhere as the child of a model of the store, with evidence.

`Adopt` takes a stored model as its second parent, and `AdoptFiles` a folder, a file or a hub's repository.
Files of the store are hard links if the file system allows, otherwise copies.

Promises: only adapter and model files are opened, and each is checked as `pull` checks it. Leftovers of a
training (optimizer.pt, training_args.bin, checkpoint-*) are left out by name. A descent that the files
contradict is refused.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, Protocol

from heredity.core.errors import Damaged, Refused, Unavailable, UsageError, first_line
from heredity.core.files import Lock, explain_full_disk
from heredity.core.progress import Watch, about, phase
from heredity.core.records import Descent, Evidence, Level, Model, Relation
from heredity.engines.chat import has_tokenizer, template_source, vocabulary
from heredity.formats.gguf import read_gguf
from heredity.formats.static_embeddings import holds_static
from heredity.lineage import evidence, graph
from heredity.lineage.catalog import is_from_hub, is_quantized_name, names_of, plain_name
from heredity.lineage.evidence import Findings, read_config
from heredity.lineage.references import HUB, is_there
from heredity.lineage.store import Store
from heredity.lineage.types import Adoption, Description, Grown, KnownParent, Recipe
from heredity.recipes.merge_adapter import TOKENIZER
from heredity.recipes.pull import WANTED, check_files, copy_checked, refuse_link, refuse_name
from heredity.recipes.pull.hub import HubFile, Repository, choose, download, look_up
from heredity.recipes.pull.recipe import (
    FromFile,
    describe_files,
    licence_of_card,
    move_parts,
    parse_hub,
    remove_parts,
)

# Settings of config.json that change the arithmetic and leave the shapes of the weights as they are.
_SETTINGS = (
    *("model_type", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("hidden_act", "rms_norm_eps", "layer_norm_eps", "sliding_window", "max_position_embeddings"),
    *("rope_theta", "rope_scaling", "rope_parameters"),
)


def compare_chat(child: Path, parent: Path, findings: Findings, must_agree: bool) -> None:
    """Compare tokens and chat template; other tokens speak against the descent if they must agree."""
    ours, theirs = _tokens(child), _tokens(parent)
    if ours and theirs:
        both = ours.keys() & theirs.keys()
        if differ := sorted(ident for ident in both if ours[ident] != theirs[ident]):
            at = differ[0]
            words = f"another tokenizer ({len(differ):,} of {len(both):,} tokens; id {at} is"
            words += f" {ours[at][:20]!r}, and {theirs[at][:20]!r} to the parent)"
            if must_agree:
                findings.against.append(words)
            else:
                findings.differs.append("tokens")
        elif 2 * len(both) >= len(theirs):  # fewer in common show nothing
            findings.agrees.append("tokens")
    template, base = _template(child), _template(parent)
    if template and template == base:
        findings.agrees.append("chat template")
    elif template and template != base:
        findings.differs.append("chat template")


def _tokens(folder: Path) -> dict[int, str]:
    """Token texts by id; {} where the files do not list them. Padding of a GGUF is left out."""
    for path in sorted(folder.glob("*.gguf")):
        padding = re.compile(r"\[PAD\d+\]|<unused\d+>")
        return {n: text for n, text in enumerate(read_gguf(path).tokens) if not padding.fullmatch(text)}
    try:
        return {int(ident): str(text) for text, ident in vocabulary(folder).items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{folder}: its tokenizer makes no sense ({error}).") from None


def _template(folder: Path) -> str:
    for path in sorted(folder.glob("*.gguf")):
        return read_gguf(path).text("tokenizer.chat_template").strip()
    return template_source(folder).strip()


_MAX_CARD = 1 << 16  # bytes of a card's metadata
_NAME = 120  # characters of a claimed name
_BASE_OF_CARD = re.compile(r"^base_model:[ \t]*(.*(?:\n[ \t]*- .*)*)", re.MULTILINE)


def read_claims(folder: Path) -> dict[str, list[str]]:
    """Return the parents that a model's own files name, by the file and field."""
    claims: dict[str, list[str]] = {}
    with suppress(OSError, ValueError, AttributeError):
        base = json.loads((folder / "adapter_config.json").read_bytes()).get("base_model_name_or_path")
        claims["adapter_config.json"] = [base] if isinstance(base, str) else []
    with suppress(OSError):
        claims["README.md"] = _bases_of_card(folder / "README.md")
    for path in sorted(folder.glob("*.gguf")):
        header = read_gguf(path)
        count = header.metadata.get("general.base_model.count", 0)
        n = count if isinstance(count, int) else 0
        keys = [f"general.base_model.{at}" for at in range(min(n, 16))]
        claims[path.name] = [header.text(f"{key}.repo_url") or header.text(f"{key}.name") for key in keys]
    shown = {place: [_shown(name) for name in names if name.strip()] for place, names in claims.items()}
    return {place: names for place, names in shown.items() if names}


def _bases_of_card(path: Path) -> list[str]:
    with path.open("rb") as file:
        text = file.read(_MAX_CARD).decode("utf-8", "replace")
    parts = text.split("---", 2)
    match = _BASE_OF_CARD.search(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    if match is None:
        return []
    return [name for line in match[1].splitlines() if (name := line.strip().lstrip("-").strip(" '\"[]"))]


def _shown(name: str) -> str:
    """A claimed name without the folders of another machine's path."""
    name = name.strip()
    if re.match(r"https?://", name):
        name = "/".join(name.rstrip("/").split("/")[-2:])
    if name.startswith(("/", "~", ".")) or "\\" in name or name.count("/") > 1:
        name = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    return "".join(c if c.isprintable() else "?" for c in name)[:_NAME]


_CONFIG, _TENSORS = "adapter_config.json", "adapter_model.safetensors"
_ADAPTER = (_CONFIG, _TENSORS, *TOKENIZER, "README.md", "LICENSE*", "NOTICE*")
_OF_ADAPTERS: tuple[Relation, ...] = ("lora", "alora")
_LEFTOVERS = ("trainer_state.json", "*_results.json", "training_args.json")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_SHOWN = 12  # names of left-out files in a record


class _Source(Protocol):
    """Where the files of a model come from."""

    @property
    def is_adapter(self) -> bool: ...

    def settings(self) -> dict[str, object]:
        """The name of the source, without folders of this machine."""

    def bring(self, out: Path) -> _Brought:
        """Write the files into `out`, checked."""


class _Brought(NamedTuple):
    name: str
    licence: str | None
    notes: dict[str, str]


# --- recipes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adopt:
    """The second parent unchanged, as a declared child of the first.

    adoption: None records the declaration without looking for evidence.
    """

    name: str = field(default="", compare=False)
    adoption: Adoption | None = field(default=None, compare=False)

    kind = "adopt"

    def settings(self) -> dict[str, object]:
        """None: the two parents decide the result."""
        return {}

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Link the files of the second parent. Raises Refused for an adapter, whose base is another model."""
        if len(parents) != 2:
            raise UsageError(f"adopt has two parents, the parent and its child, not {len(parents)}.")
        made = parents[1].record
        if made.format in ("adapter", "remote"):
            raise Refused(f"'{made.name}' has the format {made.format}: adopt needs whole weights.")
        link_files(parents[1], out)
        form: Literal["gguf", "int8", "safetensors"] = "safetensors"
        if made.format == "gguf" or made.format == "int8":
            form = made.format
        name = self.name or f"{made.name}-of-{parents[0].record.name}"
        description = Description(name, made.family, made.licence, form, made.modality, made.notes)
        if self.adoption is None:
            return description
        relation = self.adoption.made or _relation(out, False)
        return Description(
            name, made.family, made.licence, form, made.modality, made.notes,
            descent=find_descent(out, parents[:1], self.adoption, relation, made.name),
        )  # fmt: skip


@dataclass(frozen=True)
class AdoptFiles:
    """Files that another tool wrote, as a child of the parents."""

    source: _Source
    adoption: Adoption = field(compare=False)
    made: Relation = "finetune"
    watch: Watch | None = field(default=None, compare=False, repr=False)

    kind = "adopt"

    def settings(self) -> dict[str, object]:
        """The source by name, and how the child was made."""
        return {**self.source.settings(), "made": self.made}

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Bring the files and look for evidence. Raises Refused if they contradict the descent."""
        from importlib.metadata import version

        with phase(self.watch, "getting the files"):
            brought = self.source.bring(out)
        name = self.adoption.name or brought.name
        watch = about(self.watch, name)
        with phase(watch, "comparing with the parent"):
            if self.source.is_adapter and has_tokenizer(out):
                _check_tokenizer(out, brought.name)
            made, invocation_notes = self._made(out, brought.name, parents[0])
            descent = find_descent(out, parents, self.adoption, made, brought.name, watch)
        notes = brought.notes | _base_note(descent, parents[0].record) | invocation_notes
        parent = parents[0].record
        if self.source.is_adapter:
            licence = brought.licence or licence_of_card(out)
            description = Description(name, parent.family, licence, "adapter", parent.modality, notes)
        else:
            description = describe_files(out, name, brought.licence, notes)
        versions = {each: version(each) for each in ("torch", "safetensors")}
        return Description(
            name,
            description.family,
            description.licence,
            description.format,
            description.modality,
            description.notes,
            versions,
            descent,
        )

    def _made(self, out: Path, name: str, parent: Grown) -> tuple[Relation, dict[str, str]]:
        """How the files were made, and the invocation of an activated adapter as a note.

        Raises UsageError for an adapter without one that was declared to be activated.
        """
        if not self.source.is_adapter:
            return self.made, {}
        from heredity.formats.peft import read_config
        from heredity.recipes._training_run import invocation_note

        tokens = read_config(out).alora_invocation_tokens
        if self.adoption.made == "alora" and not tokens:
            raise UsageError(f"'{name}' has no alora_invocation_tokens: it was made by 'lora', not 'alora'.")
        if not tokens:
            return self.made, {}
        return "alora", invocation_note(out if has_tokenizer(out) else parent.folder, tokens)


def _check_tokenizer(folder: Path, name: str) -> None:
    """Raise Refused if the tokenizer of an adapter does not load: it replaces that of its base."""
    from heredity.engines.chat import ChatCodec

    try:
        ChatCodec(folder)
    except MemoryError:  # it says nothing about the files
        raise
    except Exception as error:  # of transformers and tokenizers, whose errors share no base
        raise Refused(
            f"'{name}' is not adopted: its tokenizer does not load ({first_line(error)}). Take its files out"
            " of the folder to use that of the parent."
        ) from error


def resolve_files(ref: str, adoption: Adoption, downloads: Path, progress: Watch | None = None) -> Recipe:
    """The recipe that records the files of `ref` as a child.

    Raises UsageError for a path that does not exist, and Refused for a form that is never opened.
    """
    source = _source(ref, downloads, progress)
    if source.is_adapter and adoption.made not in (None, *_OF_ADAPTERS):
        raise UsageError(f"{ref} is an adapter, so it was made by 'lora', not '{adoption.made}'.")
    if not source.is_adapter and adoption.made in _OF_ADAPTERS:
        raise UsageError(
            f"{ref} has no {_CONFIG}, as '{adoption.made}' leaves it; a merged one is a 'finetune'."
        )
    relation: Relation | None = "lora" if source.is_adapter else adoption.made  # its files tell an aLoRA
    if relation is None:
        relation = _relation(Path(ref), ref.endswith(".gguf"))
    return AdoptFiles(source, adoption, relation, progress)


def _relation(place: Path, is_gguf: bool) -> Relation:
    """How whole weights were made, by their files: a static model of an encoder, quantized, or else tuned."""
    if holds_static(place):
        return "distill"
    if is_gguf or any(place.glob("*.gguf")):
        return "quantize"
    return "quantize" if evidence.is_quantized(place) else "finetune"


def _base_note(descent: Descent, parent: Model) -> dict[str, str]:
    """A note on an adapter that was trained over a base in 4 or 8 bits, as by QLoRA."""
    claims = {name for each in descent.evidence for name in each.claims.values()}
    if descent.made not in _OF_ADAPTERS or not (quantized := sorted(filter(is_quantized_name, claims))):
        return {}
    words = f"it was trained over {quantized[0]}; here it applies to '{parent.name}' in full precision"
    return {"base": words}


# --- evidence --------------------------------------------------------------------------------------


def find_descent(
    child: Path,
    parents: Sequence[Grown],
    adoption: Adoption,
    made: Relation,
    name: str,
    watch: Watch | None = None,
) -> Descent:
    """Compare the files of a child with its parents. Raises Refused with everything that contradicts.

    watch: gets the count of the tensors.
    """
    claims = read_claims(child)
    comparisons = [_compare(child, parent.folder, made, watch) for parent in parents]
    if against := [why for each in comparisons for why in each.against]:
        shown = "; ".join(against)
        raise Refused(
            f"'{name}' is not adopted as a child of {_names(parents)}: {shown[:900]}. Give the model that it"
            " was made from with --parent."
        )
    _refuse_other_claims(claims, adoption, parents, name)
    known = {each for parent in adoption.parents for each in parent.names}
    if claims and not any(plain_name(name) in known for names in claims.values() for name in names):
        comparisons[0].differs.append("name")
    return Descent(made, tuple(
        _evidence(f, _claims_of(claims, known, is_first=number == 0), made)
        for number, (f, known) in enumerate(zip(comparisons, adoption.parents, strict=True))
    ))  # fmt: skip


def _compare(child: Path, parent: Path, made: Relation, watch: Watch | None) -> Findings:
    findings = Findings(watch)
    compare_chat(child, parent, findings, must_agree=made != "distill")
    ours, theirs = read_config(child), read_config(parent)
    findings.differs += [
        key for key in _SETTINGS if key in ours and key in theirs and ours[key] != theirs[key]
    ]
    if (child / _CONFIG).is_file():
        evidence.compare_adapter(child, parent, findings)
    elif any(child.glob("*.gguf")) or evidence.is_quantized(child):
        evidence.compare_quantized(child, parent, findings)
    else:
        evidence.compare_whole(child, parent, findings)
    if made == "distill":  # a student may have any shape, and weights of its own
        findings.against.clear()
    return findings


def _evidence(findings: Findings, claims: dict[str, str], made: Relation) -> Evidence:
    is_related = findings.cosine is not None and findings.cosine >= evidence.RELATED
    fits = "tokens" in findings.agrees if made == "distill" else "shapes" in findings.agrees
    level: Level = "shown" if is_related else "consistent" if fits else "claimed"
    return Evidence(
        level, claims, tuple(findings.agrees), tuple(findings.differs), findings.n_tensors, findings.n_equal,
        findings.cosine, findings.distance, tuple(findings.ranks), tuple(findings.sizes), findings.worst_step,
        findings.within_step, findings.n_written, findings.n_lost,
    )  # fmt: skip


def _claims_of(claims: dict[str, list[str]], parent: KnownParent, is_first: bool) -> dict[str, str]:
    """The claims that name a parent, and for the first one also those that name nobody who is known."""
    named = {}
    for place, names in claims.items():
        if match := [name for name in names if plain_name(name) in parent.names]:
            named[place] = match[0]
        elif is_first:
            named[place] = ", ".join(names[:3])
    return named


def _refuse_other_claims(
    claims: dict[str, list[str]], adoption: Adoption, parents: Sequence[Grown], name: str
) -> None:
    """Raise Refused if a file names another model of the store, or of the hub if the parents are of a hub."""
    if adoption.is_declared:
        return
    known = {each for parent in adoption.parents for each in parent.names}
    are_from_hub = all(parent.is_from_hub for parent in adoption.parents)
    for place, names in claims.items():
        plain = {plain_name(each) for each in names}
        is_of_hub = are_from_hub and all(each.count("/") == 1 for each in names)
        if not plain & known and (is_of_hub or plain <= adoption.others):
            raise Refused(
                f"'{name}' is not adopted: its {place} names {names[0]} as its parent, and {_names(parents)}"
                " was given. Pull that parent and give it with --parent. If both are one, add --declared."
            )


def _names(parents: Sequence[Grown]) -> str:
    return " and ".join(f"'{parent.record.name}'" for parent in parents)


# --- sources ---------------------------------------------------------------------------------------


def _source(ref: str, downloads: Path, progress: Watch | None) -> _Source:
    if ref.startswith("hf:"):
        repo, file, revision = parse_hub(ref)
        repository = look_up(repo, revision)
        names = {each.path for each in repository.files}
        if _CONFIG in names and not file:
            refuse_pickled_adapter(repo, names)
        return _FromHub(repository, file, _CONFIG in names and not file, downloads, progress)
    path = Path(ref).expanduser()
    is_real = is_there(path)  # a text can be too long for a path
    if is_real and path.is_file() and path.suffix == ".gguf":
        return _FromGguf(path)
    if not (is_real and path.is_dir()):
        raise UsageError(
            f"{ref[:200]}: no such folder, nor a .gguf file. A model of the hub is written hf:ORG/REPO.",
            code="unreadable-file",
        )
    names = {each.name for each in path.iterdir()}
    if _CONFIG in names:
        refuse_pickled_adapter(path, names)
    elif not any(name.endswith((".safetensors", ".gguf")) for name in names):
        steps = sorted((int(m[1]), name) for name in names if (m := _CHECKPOINT.fullmatch(name)))
        if steps:
            raise UsageError(
                f"{path} holds {len(steps)} checkpoints and no finished model. Adopt one of them: "
                f"{path / steps[-1][1]}"
            )
        for name in sorted(names):
            refuse_name(path / name, name)
        raise Refused(f"{path} holds neither safetensors nor GGUF; nothing else is opened.")
    return _FromFolder(path, _CONFIG in names)


def refuse_pickled_adapter(place: Path | str, names: Iterable[str]) -> None:
    """Raise Refused for an adapter whose tensors are not safetensors, with the way to convert them."""
    if _TENSORS in names:
        return
    adapters = sorted(name for name in names if name.startswith("adapter_model"))
    what = f"{adapters[0]} can run code when it is read" if adapters else f"it has no {_TENSORS}"
    raise Refused(
        f"{place}: {what}. Load it with PEFT where you trust it, and save it again with "
        "save_pretrained(FOLDER), which writes safetensors.",
        code="runs-code" if adapters else "",
    )


def _wanted(names: Iterable[str], is_adapter: bool) -> list[str]:
    """The files at the top of a folder that make up the model; code is refused by the caller."""
    patterns = _ADAPTER if is_adapter else WANTED
    return [
        name
        for name in sorted(names)
        if any(PurePosixPath(name).match(pattern) for pattern in patterns)
        and not any(PurePosixPath(name).match(pattern) for pattern in _LEFTOVERS)
    ]


def _left_out(names: Iterable[str]) -> dict[str, str]:
    ordered = sorted(names)
    if not ordered:
        return {}
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return {"left out": ", ".join(name[:80] for name in ordered[:_SHOWN]) + more}


@dataclass(frozen=True)
class _FromFolder:
    """A folder as PEFT, TRL or transformers write it."""

    path: Path = field(compare=False)
    is_adapter: bool

    def settings(self) -> dict[str, object]:
        return {"folder": self.path.resolve().name}

    def bring(self, out: Path) -> _Brought:
        there = {each.name: each for each in self.path.iterdir() if not each.name.startswith(".")}
        if code := sorted(name for name in there if name.endswith(".py")):
            refuse_name(self.path / code[0], code[0])
        files = {name for name, each in there.items() if each.is_symlink() or not each.is_dir()}
        chosen = _wanted(files, self.is_adapter)
        for name in chosen:
            refuse_link(there[name])
        copy_checked(self.path, chosen, out, self.is_adapter)
        left = [f"{name}/" if name not in files else name for name in there.keys() - set(chosen)]
        name = self.path.resolve().name
        return _Brought(name, None, {"source": f"folder: {name}"} | _left_out(left))


@dataclass(frozen=True)
class _FromGguf:
    """A GGUF file on this disk."""

    path: Path = field(compare=False)
    is_adapter: bool = False

    def settings(self) -> dict[str, object]:
        return {"file": self.path.name}

    def bring(self, out: Path) -> _Brought:
        description = FromFile(self.path).apply((), out)
        return _Brought(description.name, description.licence, dict(description.notes))


@dataclass(frozen=True)
class _FromHub:
    """A repository of the hub, or one GGUF file of it."""

    repository: Repository = field(compare=False)
    file: str | None
    is_adapter: bool
    downloads: Path = field(compare=False, repr=False)
    progress: Watch | None = field(default=None, compare=False, repr=False)

    def settings(self) -> dict[str, object]:
        return {"repo": self.repository.repo, **({"file": self.file} if self.file else {})}

    def bring(self, out: Path) -> _Brought:
        repo, name = self.repository.repo, self.repository.repo.split("/")[1]
        parts = self.downloads / f"hf--{repo.replace('/', '--')}"
        files = [each for each in self._files() if each.n_bytes]
        with Lock(parts):
            move_parts(download(self.repository, files, parts, self.progress), out)
            check_files(out, repo, self.is_adapter)
            remove_parts(parts)
        top = {each.path for each in self.repository.files if "/" not in each.path and each.path[:1] != "."}
        left = _left_out(top - {each.path for each in files})
        notes = {"source": f"model hub: {repo} at {self.repository.commit}"} | left
        return _Brought(name, self.repository.licence, notes)

    def _files(self) -> list[HubFile]:
        if not self.is_adapter:
            return choose(self.repository, self.file)
        by_path = {each.path: each for each in self.repository.files if "/" not in each.path}
        return [by_path[name] for name in _wanted(by_path, is_adapter=True)]


def link_files(model: Grown, out: Path) -> None:
    """Link a model's files into another folder, or copy them."""
    for file in model.record.files:
        source, target = model.folder / file.path, out / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without links
            with explain_full_disk(out, file.bytes):
                shutil.copyfile(source, target)


def adopt(
    ref: str,
    parents: Grown | Sequence[Grown],
    store: Store | None = None,
    made: Relation | None = None,
    name: str = "",
    is_declared: bool = False,
    progress: Watch | None = None,
) -> Grown:
    """Record a model that another tool made as a child of its parents, with the evidence of its descent.

        base = store.pull("hf:org/base")
        child = h.adopt("out/my-adapter", base, store)

    ref: a folder with a PEFT adapter or with whole weights, a .gguf file, "hf:ORG/REPO", or a model of the
    store. Training leftovers, such as optimizer.pt and checkpoints, are left out by name and never opened.
    parents: one; of a merge several, and of a distilled student its start and its teacher.
    made: "lora", "alora", "finetune", "quantize", "merge" or "distill"; None lets the files decide.
    is_declared: record the descent although the model's own files name another parent.

    Raises Refused, with the contradictions, for other shapes or tokens, for values that are unrelated to the
    parent's, and for files that name another parent. Raises UsageError for a path that does not exist.
    """
    given = [parents] if isinstance(parents, Grown) else list(parents)
    if not given or (len(given) > 1 and made not in ("merge", "distill")):
        raise UsageError(f"A child has one parent, of a merge or a distillation several, not {len(given)}.")
    store = store or Store(given[0].folder.parents[2])
    for parent in given:
        if why := graph.why_childless(parent.record, needs_text=False):
            raise Unavailable(f"Nothing is adopted as a child of '{parent.record.name}': {why}.")
    whole = [store.whole(parent) for parent in given]
    kin = [[parent.record, *store.ancestors(parent.record)] for parent in whole]
    known = tuple(KnownParent(names_of(models), is_from_hub(models)) for models in kin)
    adoption = Adoption(made, known, name, is_declared, _others(store, whole))
    if not (ref.startswith(HUB) or "/" in ref or "\\" in ref or Path(ref).exists()):
        with phase(progress, "comparing with the parent", ref):
            return _stored(store, ref, whole, adoption)
    return store.grow(resolve_files(ref, adoption, store.downloads, progress), whole)


def _others(store: Store, parents: Sequence[Grown]) -> frozenset[str]:
    """The plain names of models that are unrelated to these parents."""
    related = {
        each.id
        for parent in parents
        for each in (parent.record, *store.ancestors(parent.record), *store.descendants(parent.record))
    }
    return names_of(model for model in store.models() if model.id not in related and not model.parents)


def _stored(store: Store, ref: str, whole: Sequence[Grown], adoption: Adoption) -> Grown:
    """A stored model as a child; itself if its record has that ancestor already."""
    made = store.get(ref)
    if made.record.id in {parent.record.id for parent in whole}:
        raise UsageError(f"'{made.record.name}' cannot be its own child.")
    if len(whole) > 1:
        raise UsageError("Give the files of a merge by their path; a stored model gets one parent.")
    ancestors = {each.id for each in store.ancestors(made.record)}
    if {parent.record.id for parent in whole} <= ancestors:
        return made
    return store.grow(Adopt(adoption.name, adoption), [*whole, made])
