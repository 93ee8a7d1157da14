"""safetensors with configuration, tokenizer and template: what transformers, vLLM and PEFT load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from heredity.core.errors import EngineFailure, Refused
from heredity.core.records import Message, Request
from heredity.deploy.export._parity import ASKED, TALK, TEXT, ExportSource, ParityReading
from heredity.engines.chat.codec import Template, merge_system
from heredity.engines.chat.sandbox import DAY
from heredity.train.data.chat import ConversationEncoder

_SKIPPED = ("training.jsonl", "training.svg", "README.md")
_GIVEN = {"trust_remote_code": False, "local_files_only": True}
_ROWS = 32  # places whose distribution is taken at once
_TOLERANCE = 2e-3  # nats: both in float32, their sums in another order


def write(source: ExportSource, out: Path) -> None:
    """The whole weights and everything beside them."""
    from heredity.deploy.export import copy

    files = [p for p in sorted(source.whole.folder.iterdir()) if p.is_file() and p.name not in _SKIPPED]
    copy(files, out)
    writer = ConversationEncoder(source.whole.folder)
    said = _ends(out)
    if said is None or (writer.end is not None and writer.end not in said):
        # The tokenizer, or the chat template, says what ends an answer, and generate asks neither.
        place = out / "generation_config.json"
        config = json.loads(place.read_text("utf-8")) if place.is_file() else {}
        config["eos_token_id"] = sorted(writer.stops)
        place.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _ends(folder: Path) -> set[int] | None:
    """What transformers' generate ends an answer at; None where nothing says so."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            said = json.loads((folder / name).read_text("utf-8")).get("eos_token_id")
            if said is not None:
                return set(said) if isinstance(said, list) else {said}
    return None


def readings(source: ExportSource, out: Path) -> Iterator[ParityReading]:
    """What transformers makes of them."""
    yield read(out, source.bench / "offloaded")


def read(out: Path, bench: Path) -> ParityReading:
    """The folder as transformers reads it, in float32, its layers one at a time; `bench`: a new folder."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoTokenizer

    from heredity.core import host

    host.quiet_transformers()
    tokenizer = AutoTokenizer.from_pretrained(out, **_GIVEN)
    model = _model(out, bench)
    is_base = not tokenizer.chat_template
    prompt = _plain() if is_base else _rendered(tokenizer, (Message("user", ASKED),))
    before = tokenizer.encode(prompt, add_special_tokens=is_base)
    said = tokenizer.encode(TEXT, add_special_tokens=False)
    n = len(said)
    with torch.inference_mode():
        rows = model(torch.tensor([before + said]), logits_to_keep=n + 1).logits[0, :n]
        parts = zip(rows.split(_ROWS), torch.tensor(said).split(_ROWS), strict=True)
        logs = [float(-log) for row, tokens in parts for log in cross_entropy(row, tokens, reduction="none")]
    rendered = None if is_base else _rendered(tokenizer, TALK)
    tokens = (*(tokenizer.encode(rendered, add_special_tokens=False) if rendered else ()), *said)
    ends = model.generation_config.eos_token_id
    found = frozenset(ends if isinstance(ends, list) else [ends]) - {None}
    del model, rows
    host.trim_memory()
    return ParityReading(
        "transformers", _TOLERANCE, logs, tokens, rendered, found, bos=tokenizer.bos_token_id
    )


def _model(out: Path, bench: Path) -> Any:
    """The model in float32; what its layers hold is read when they compute, by accelerate."""
    import logging

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(out, **_GIVEN).get_text_config()
    ends = "cpu" if config.tie_word_embeddings else "disk"  # one matrix for both is held once
    places = {"model.embed_tokens": ends, "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": ends}
    places |= {f"model.layers.{at}": "disk" for at in range(config.num_hidden_layers)}
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)  # it tells what was asked of it
    return AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, device_map=places, offload_folder=bench, **_GIVEN
    ).eval()


def _rendered(tokenizer: Any, talk: tuple[Message, ...]) -> str:
    """By transformers, on the engine's day; without a system role where the template has none."""
    template = Template(tokenizer.get_chat_template(), specials=dict(tokenizer.special_tokens_map))
    has_system = template.has_system
    said = [
        {"role": each.role, "content": each.content} for each in (talk if has_system else merge_system(talk))
    ]
    try:
        template.render(Request(0, talk))  # first, since transformers sets no limit
        found: str = tokenizer.apply_chat_template(
            said, tokenize=False, add_generation_prompt=True, strftime_now=DAY.strftime
        )
    except (TemplateError, EngineFailure) as error:
        raise Refused(f"Not exported: transformers cannot render a conversation: {error}.") from error
    return found


def _plain() -> str:
    return Template("").render(Request(0, (Message("user", ASKED),)))
