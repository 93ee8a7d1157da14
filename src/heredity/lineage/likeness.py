"""How the files next to the weights compare with the parent's: tokens, chat template, settings.

Leaves to others: the weights themselves (evidence.py).
"""

from __future__ import annotations

import re
from pathlib import Path

from heredity.core.errors import Damaged
from heredity.engines.chat.folder import template_source, vocabulary
from heredity.formats.gguf import read_gguf
from heredity.lineage.evidence import Findings, read_config

# Settings of config.json that change the arithmetic and leave the shapes of the weights as they are.
_SETTINGS = (
    *("model_type", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("hidden_act", "rms_norm_eps", "layer_norm_eps", "sliding_window", "max_position_embeddings"),
    *("rope_theta", "rope_scaling", "rope_parameters"),
)


def compare_settings(child: Path, parent: Path, found: Findings) -> None:
    """Name the settings that differ from the parent's. Those that only one file has are left out."""
    ours, theirs = read_config(child), read_config(parent)
    found.differs += [key for key in _SETTINGS if key in ours and key in theirs and ours[key] != theirs[key]]


def compare_chat(child: Path, parent: Path, found: Findings, must_agree: bool) -> None:
    """Compare tokens and chat template; other tokens speak against the descent if they must agree."""
    ours, theirs = _tokens(child), _tokens(parent)
    if ours and theirs:
        both = ours.keys() & theirs.keys()
        if differ := sorted(ident for ident in both if ours[ident] != theirs[ident]):
            at = differ[0]
            words = f"another tokenizer ({len(differ):,} of {len(both):,} tokens; id {at} is"
            words += f" {ours[at][:20]!r}, and {theirs[at][:20]!r} to the parent)"
            if must_agree:
                found.against.append(words)
            else:
                found.differs.append("tokens")
        elif 2 * len(both) >= len(theirs):  # fewer in common show nothing
            found.agrees.append("tokens")
    template, base = _template(child), _template(parent)
    if template and template == base:
        found.agrees.append("chat template")
    elif template and template != base:
        found.differs.append("chat template")


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
