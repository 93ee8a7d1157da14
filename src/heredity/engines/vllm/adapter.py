"""An adapter for a vLLM server: the options that serve it over its base.

vLLM 0.32 ignores two things without an error: an embedding that an adapter holds whole, and a module that has
another name in the base. Earlier versions also ignore the ranks and scales of single modules. The answers are
then of another model than the recorded one. So only an adapter of plain LoRA is served, with the names and
the tokenizer of its base.

Promises: of the weights only the headers are read.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from safetensors import SafetensorError, safe_open

from heredity.core.errors import Damaged, Unavailable
from heredity.engines.chat.folder import has_tokenizer, vocabulary

_CONFIG, _TENSORS = "adapter_config.json", "adapter_model.safetensors"
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank takes
_OF_LORA = re.compile(r"base_model\.model\.(.+)\.lora_(?:embedding_)?[AB](?:\.weight)?")
_ACTIVATED = "alora_invocation_tokens"  # vLLM does not read it (pull request 19710 is closed)
# Settings that change what an adapter computes, and that not every version of vLLM has.
_OTHER_FORMS = (
    "rank_pattern",
    "alpha_pattern",
    "target_parameters",
    "use_dora",
    "lora_bias",
    "modules_to_save",
)
_OF_TOKENIZER = ("normalizer", "pre_tokenizer", "post_processor")  # of tokenizer.json, beside its vocabulary


def server_options(name: str, adapter: Path, base: Path) -> list[str]:
    """Return the options of a server that has an adapter under `name`, and its base under another name.

    Raises as `check_adapter` does.
    """
    rank = check_adapter(name, adapter, base)
    module = json.dumps({"name": name, "path": str(adapter)})
    return ["--enable-lora", "--max-loras", "1", "--max-lora-rank", str(rank), "--lora-modules", module]


def check_adapter(name: str, adapter: Path, base: Path, base_name: str = "BASE") -> int:
    """Return the smallest rank of vLLM that holds the adapter's. base_name: for the advice.

    Raises Unavailable for an adapter that vLLM would serve in part, Damaged for files that do not read.
    """
    rank, why = _config(adapter)
    if why == _ACTIVATED:
        raise Unavailable(
            f"vLLM cannot serve the adapter '{name}': it is an activated LoRA (aLoRA), which vLLM would apply"
            " to the whole text. Name it without 'vllm:'; the torch engine answers it."
        )
    if not why:
        why = _other_names(adapter, base) or _other_tokens(adapter, base)
    if why:
        raise Unavailable(
            f"vLLM cannot serve the adapter '{name}': {why}. Merge it, and name the result:"
            f" heredity derive merge_adapter {shlex.quote(name)} {shlex.quote(base_name)}"
        )
    return next(each for each in _RANKS if each >= rank)


def _config(adapter: Path) -> tuple[int, str]:
    """Return the rank, and what vLLM would not take in the config; "" for nothing."""
    path = adapter / _CONFIG
    try:
        config = json.loads(path.read_bytes())
        if config.get(_ACTIVATED):
            return 0, _ACTIVATED
        rank, forms = config["r"], [key for key in _OTHER_FORMS if config.get(key)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{path}: does not read ({type(error).__name__}).") from None
    if forms:
        return 0, f"it has {forms[0]}, which not every version serves"
    if not isinstance(rank, int) or not 0 < rank <= _RANKS[-1]:
        return 0, f"its rank is {str(rank)[:20]}, and vLLM's largest {_RANKS[-1]}"
    return rank, ""


def _other_names(adapter: Path, base: Path) -> str:
    """Return a tensor that is not a matrix of LoRA on a module of the base; "" for none."""
    there = {name for path in sorted(base.glob("*.safetensors")) for name in _names(path)}
    for name in _names(adapter / _TENSORS):
        match = _OF_LORA.fullmatch(name)
        if match is None or f"{match[1]}.weight" not in there:
            return f"{name[:80]!r} is not a matrix of LoRA on a module of the base"
    return ""


def _names(path: Path) -> list[str]:
    try:
        with safe_open(path, "numpy") as file:
            return sorted(file.keys())
    except (OSError, SafetensorError) as error:
        raise Damaged(f"{path}: {error}") from None


def _other_tokens(adapter: Path, base: Path) -> str:
    if has_tokenizer(adapter) and _tokenizer(adapter) != _tokenizer(base):
        return "its tokenizer differs from that of its base"
    return ""


def _tokenizer(folder: Path) -> list[object]:
    """Return the parts of a tokenizer that decide the tokens of a text."""
    fast, slow = folder / "tokenizer.json", folder / "tokenizer.model"
    try:
        if not fast.is_file():
            return [slow.read_bytes()]
        whole = json.loads(fast.read_bytes())
        merges = [
            " ".join(each) if isinstance(each, list) else each for each in whole["model"].get("merges") or ()
        ]
        return [vocabulary(folder), merges, *(whole.get(key) for key in _OF_TOKENIZER)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{folder}: its tokenizer does not read ({type(error).__name__}).") from None
