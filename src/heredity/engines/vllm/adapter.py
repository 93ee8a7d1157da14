"""An adapter for a vLLM server: the options that serve it over its base.

vLLM 0.32 ignores an embedding that an adapter holds whole. Earlier versions also ignore the ranks and scales
of single modules. Its server would answer with another model than the recorded one, without an error. Such
adapters are refused here. So is one whose tokens are not its base's: vLLM has one tokenizer for both.

Promises: of the weights only the header is read.
Leaves to others: forms that vLLM itself refuses, such as DoRA; the error has the cause from its log.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from heredity.core.errors import Damaged, Unavailable
from heredity.engines.chat.folder import has_tokenizer, vocabulary

_CONFIG, _TENSORS = "adapter_config.json", "adapter_model.safetensors"
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank takes
_OF_LORA = re.compile(r".+\.lora_(?:embedding_)?[AB](?:\.weight)?")


def server_options(name: str, adapter: Path, base: Path) -> list[str]:
    """Return the options of a server that has an adapter under `name`, and its base under another name.

    Raises Unavailable for an adapter that vLLM would serve in part, Damaged for files that do not read.
    """
    rank = _rank(name, adapter)
    _refuse_partial(name, adapter, base)
    module = json.dumps({"name": name, "path": str(adapter)})
    return ["--enable-lora", "--max-loras", "1", "--max-lora-rank", str(rank), "--lora-modules", module]


def _rank(name: str, adapter: Path) -> int:
    """Return the smallest rank of vLLM that holds the adapter's."""
    path = adapter / _CONFIG
    try:
        config = json.loads(path.read_bytes())
        rank, patterns = config["r"], [key for key in ("rank_pattern", "alpha_pattern") if config.get(key)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{path}: does not read ({type(error).__name__}).") from None
    if patterns:
        raise _partial(name, f"vLLM before 0.32 ignores its {patterns[0]}")
    if not isinstance(rank, int) or rank > _RANKS[-1]:
        raise _partial(name, f"its rank is {str(rank)[:20]}, and vLLM's largest {_RANKS[-1]}")
    return next(each for each in _RANKS if each >= rank)


def _refuse_partial(name: str, adapter: Path, base: Path) -> None:
    path = adapter / _TENSORS
    try:
        with safe_open(path, "numpy") as file:
            others = sorted(each for each in file.keys() if not _OF_LORA.fullmatch(each))  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise Damaged(f"{path}: {error}") from None
    if others:
        raise _partial(name, f"it holds {others[0][:80]!r}, which is no matrix of LoRA")
    if has_tokenizer(adapter) and vocabulary(adapter) != vocabulary(base):
        raise _partial(name, "its tokens differ from those of its base")


def _partial(name: str, why: str) -> Unavailable:
    return Unavailable(
        f"vLLM cannot serve the adapter '{name}': {why}. Merge it, and name the result:"
        f" heredity derive merge_adapter {name} BASE",
        code="adapter-to-be-merged",
    )
