"""A Gemma's tokenizer.json as a GGUF says it: pieces with a score each, as SentencePiece has them, no merges.

llama.cpp joins any two neighbours whose text is a piece, the one with the highest score first; transformers
reads such a GGUF back with merges in the order of their pieces' ids.

Promises: a tokenizer that does otherwise (a way that is missing in which a piece comes about, or another
order of merges) is refused, since a user's words would become other tokens.
Leaves to others: ids, kinds of tokens and the template (_gguf_vocabulary.py).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from heredity.errors import Refused

SPACE = "▁"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_ADDED_SCORE = -1000.0  # as in the GGUFs of Gemma; no merge makes such a token
_NORMALIZER = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


def is_byte(token: str) -> bool:
    """Whether it stands for a byte that no piece has."""
    return bool(_BYTE.fullmatch(token))


def is_spaces(token: str) -> bool:
    """Whether it is a run of spaces, which merging makes though it is listed as an added token."""
    return not token.strip(SPACE)


def score(token: str, ident: int, is_added: bool) -> float:
    """The higher, the sooner it is made of its parts: by its id, as `refuse_unlike` has found it."""
    if is_added:
        return _ADDED_SCORE
    return 0.0 if is_byte(token) else -float(ident)


def refuse_unlike(path: Path, said: dict[str, Any]) -> None:
    """Raise Refused where llama.cpp, or transformers in reading the GGUF, would cut text otherwise."""
    if said.get("normalizer") != _NORMALIZER or not _leaves_whole(said.get("pre_tokenizer")):
        raise Refused(
            f"{path}: of tokenizers with byte fallback a GGUF is written here of Gemma's alone.",
            code="tokenizer-not-gemma",
        )
    added = [t for t in said.get("added_tokens") or [] if not is_spaces(t["content"])]
    if any(t.get("lstrip") or t.get("rstrip") or t.get("single_word") for t in added):
        raise Refused(
            f"{path}: llama.cpp takes no token together with the spaces beside it.", code="tokenizer-spaces"
        )
    _refuse_other_merges(path, said["model"], {t["content"] for t in added})


def _leaves_whole(given: Any) -> bool:
    """Splitting at spaces, of which the normalizer has left none."""
    return given is None or (given.get("type") == "Split" and given.get("pattern") == {"String": " "})


def _refuse_other_merges(path: Path, model: dict[str, Any], added: set[str]) -> None:
    vocabulary: dict[str, int] = model["vocab"]
    ways: dict[str, set[str]] = {}
    last = -1
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if {left, right, left + right} & added:
            continue  # an added token is cut out of the text before anything is merged
        ident = vocabulary.get(left + right, -1)
        if ident < last:
            raise Refused(
                f"{path}: its merges are not in the order of their tokens' ids, as in a GGUF.",
                code="tokenizer-order",
            )
        last = ident
        ways.setdefault(left + right, set()).add(left)
    plain = vocabulary.keys() - added
    for token in plain:
        splits = {token[:at] for at in range(1, len(token)) if token[:at] in plain and token[at:] in plain}
        if splits != ways.get(token, set()):
            raise Refused(
                f"{path}: of {token[:40]!r} llama.cpp would make one token where this makes several.",
                code="tokenizer-merges",
            )
