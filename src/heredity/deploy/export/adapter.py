"""Export an adapter as PEFT writes it, with the tokenizer and the chat template of its base.

`base_model_name_or_path` names the base: the hub's repository if its safetensors were pulled from there, else
the name of the model. Nothing is merged, so the files are what was studied.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from heredity.core.errors import UsageError
from heredity.core.records import Model
from heredity.deploy.export import hf
from heredity.deploy.export._parity import ExportSource, LoadedFolder, ParityReading, read_folder
from heredity.engines.chat import has_tokenizer
from heredity.formats.peft import CONFIG, TENSORS
from heredity.formats.safetensors_io import INDEX
from heredity.lineage.catalog import catalogue
from heredity.recipes.merge_adapter import bring_tokenizer
from heredity.train.data.chat import ConversationEncoder

_OF_BASE = ("config.json", "generation_config.json", "README.md", INDEX)

_BACK = 1e-3  # nats: the same weights in the same arithmetic


def write(source: ExportSource, out: Path) -> None:
    """Write the adapter, and its tokenizer and template: those of its base if it has none."""
    record = source.model.record
    if not source.is_adapter:
        raise UsageError(
            f"'{record.name}' is not an adapter (its format is {record.format}): export it with --to hf."
        )
    base = source.store.base(source.model)
    for path in sorted(base.folder.iterdir()):
        if path.is_file() and path.suffix != ".safetensors" and path.name not in (*hf.SKIPPED, *_OF_BASE):
            shutil.copyfile(path, out / path.name)
    if has_tokenizer(source.model.folder):
        bring_tokenizer(source.model.folder, out)
    shutil.copyfile(source.model.folder / TENSORS, out / TENSORS)
    config = json.loads((source.model.folder / CONFIG).read_text("utf-8"))
    config["base_model_name_or_path"] = name_of_base(base.record)
    (out / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def name_of_base(base: Model) -> str:
    """How PEFT's configuration names a base: its repository on the hub, or the name of the model.

    A repository is named only if the base has its safetensors. A converted GGUF has other weights.
    """
    if not base.parents and base.format == "safetensors" and base.recipe.kind == "pull":
        repo = base.recipe.settings.get("repo")
        known = catalogue().get(str(base.recipe.settings.get("name")))
        return str(repo) if repo else known.hub.repo if known else base.name
    return base.name


def loadable(source: ExportSource, out: Path) -> LoadedFolder:
    """The adapter over its base, as the torch engine loads both."""
    return LoadedFolder(source.store.base(source.model).folder, out)


def readings(source: ExportSource, out: Path) -> Iterator[ParityReading]:
    """Yield the readings of the files over the base of the store: by the torch engine, and by PEFT."""
    yield read_folder(loadable(source, out), "the adapter, read back,", _BACK)
    try:
        from peft import PeftModel
    except ImportError:
        yield ParityReading("PEFT", left_out="not installed (pip install peft), so not checked")
        return
    import torch
    from transformers import AutoModelForCausalLM

    from heredity.core import host

    host.quiet_transformers()
    base = source.store.base(source.model).folder
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **hf.GIVEN)
    model = PeftModel.from_pretrained(whole, out, local_files_only=True).eval()
    scores = hf.score("PEFT", model, out)
    # The end of an answer is in the base's files, which are not exported.
    yield dataclasses.replace(scores, ends=ConversationEncoder(base).stops)
