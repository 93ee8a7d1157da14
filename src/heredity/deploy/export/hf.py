"""Export to safetensors with configuration, tokenizer and template, for transformers, vLLM and PEFT."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from heredity.core.errors import EngineFailure, Refused
from heredity.core.records import Message, Request
from heredity.deploy.export._parity import ASKED, TALK, TEXT, ExportSource, LoadedFolder, ParityReading
from heredity.engines.chat import DAY, Template, merge_system
from heredity.formats.weights import KNOWN
from heredity.train.data.chat import ConversationEncoder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SKIPPED = ("training.jsonl", "training.svg", "answers.jsonl", "README.md")
GIVEN = {"trust_remote_code": False, "local_files_only": True}
_ROWS = 32  # positions whose distribution is computed at once
_TOLERANCE = 2e-3  # nats: both in float32, but they sum in different orders


def write(source: ExportSource, out: Path) -> None:
    """Write the full-precision weights and all files that come with them."""
    files = [p for p in sorted(source.whole.folder.iterdir()) if p.is_file() and p.name not in SKIPPED]
    for path in files:  # never links: a user may edit the export, but not the store
        shutil.copyfile(path, out / path.name)
    writer = ConversationEncoder(source.whole.folder)
    ends = _ends(out)
    if ends is None or (writer.end is not None and writer.end not in ends):
        # The tokenizer or the chat template defines the end of an answer, and generate() reads neither.
        place = out / "generation_config.json"
        config = json.loads(place.read_text("utf-8")) if place.is_file() else {}
        config["eos_token_id"] = sorted(writer.stops)
        place.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _ends(folder: Path) -> set[int] | None:
    """Return the EOS ids that transformers' generate() uses; None if no file defines them."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            ids = json.loads((folder / name).read_text("utf-8")).get("eos_token_id")
            if ids is not None:
                return set(ids) if isinstance(ids, list) else {ids}
    return None


def loadable(source: ExportSource, out: Path) -> LoadedFolder:  # noqa: ARG001 (the files are enough)
    """The files as they are."""
    return LoadedFolder(out)


def readings(source: ExportSource, out: Path) -> Iterator[ParityReading]:
    """Yield the reading of the files by transformers."""
    yield read(out, source.bench / "offloaded")


def read(out: Path, bench: Path) -> ParityReading:
    """Score the folder with transformers in float32, one layer at a time; `bench`: a new folder to offload
    to."""
    from heredity.core import host

    host.quiet_transformers()
    return score("transformers", _model(out, bench), out)


def score(reader: str, model: PreTrainedModel, folder: Path) -> ParityReading:
    """Score a model that transformers holds, with the tokenizer and the template of `folder`."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoTokenizer

    from heredity.core import host

    tokenizer = AutoTokenizer.from_pretrained(folder, **GIVEN)
    is_base = not tokenizer.chat_template
    prompt = (
        Template("").render(Request(0, (Message("user", ASKED),)))
        if is_base
        else _rendered(tokenizer, (Message("user", ASKED),))
    )
    before = tokenizer.encode(prompt, add_special_tokens=is_base)
    text = tokenizer.encode(TEXT, add_special_tokens=False)
    n = len(text)
    with torch.inference_mode():
        rows = _logits(model, torch.tensor([before + text]), n + 1)[:n]
        parts = zip(rows.split(_ROWS), torch.tensor(text).split(_ROWS), strict=True)
        logs = [float(-log) for row, tokens in parts for log in cross_entropy(row, tokens, reduction="none")]
    rendered = None if is_base else _rendered(tokenizer, TALK)
    tokens = (*(tokenizer.encode(rendered, add_special_tokens=False) if rendered else ()), *text)
    ends = model.generation_config.eos_token_id
    end_ids = frozenset(ends if isinstance(ends, list) else [ends]) - {None}
    del model, rows
    host.trim_memory()
    return ParityReading(reader, _TOLERANCE, logs, tokens, rendered, end_ids, bos=tokenizer.bos_token_id)


def _logits(model: PreTrainedModel, ids: torch.Tensor, n: int) -> torch.Tensor:
    """The last `n` rows of logits, which some architectures compute by themselves."""
    import inspect

    short = {"logits_to_keep": n} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    logits: torch.Tensor = model(ids, **short).logits[0, -n:]
    return logits


def _model(out: Path, bench: Path) -> PreTrainedModel:
    """Load the model in float32; accelerate reads each layer from disk when it computes."""
    import logging

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(out, **GIVEN).get_text_config()
    if config.model_type not in KNOWN:  # it may name its layers in another way
        return AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, **GIVEN).eval()
    ends = "cpu" if config.tie_word_embeddings else "disk"  # a tied matrix is held once
    places = {"model.embed_tokens": ends, "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": ends}
    places |= {f"model.layers.{at}": "disk" for at in range(config.num_hidden_layers)}
    # accelerate warns of the offloading that is requested here
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
    return AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, device_map=places, offload_folder=bench, **GIVEN
    ).eval()


def _rendered(tokenizer: PreTrainedTokenizerBase, talk: tuple[Message, ...]) -> str:
    """Render with transformers, on the engine's fixed date; without a system role if the template has
    none."""
    template = Template(tokenizer.get_chat_template(), specials=dict(tokenizer.special_tokens_map))
    has_system = template.has_system
    messages = [
        {"role": each.role, "content": each.content} for each in (talk if has_system else merge_system(talk))
    ]
    try:
        template.render(Request(0, talk))  # first, because transformers has no time limit
        prompt: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, strftime_now=DAY.strftime
        )
    except (TemplateError, EngineFailure) as error:
        raise Refused(f"Not exported: transformers cannot render a conversation: {error}.") from error
    return prompt
