"""A tokenizer.json as a GGUF says it: byte-level BPE with its merges and its way of splitting text, or the
pieces of a Gemma.

Promises: a way of splitting that llama.cpp has no name for is refused, since another one would read a user's
words as other tokens; tokens keep their ids; special tokens are control tokens, so that no text becomes one.
Leaves to others: weights (_gguf_write.py), and whether pieces are merged as llama.cpp does (_gguf_pieces.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heredity.engines._template import source
from heredity.engines._weights import read_json
from heredity.errors import Damaged, Refused
from heredity.recipes import _gguf_pieces
from heredity.train.documents import Writer

_NORMAL, _CONTROL, _USER, _UNUSED, _BYTE = 1, 3, 4, 5, 6  # llama.cpp's token types
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_SPLITS = {_QWEN: "qwen2", _LLAMA3: "llama-bpe"}


@dataclass(frozen=True)
class Vocabulary:
    """`split` is llama.cpp's name of the pre-tokenizer; `kinds[i]` its type of token i.

    A vocabulary of pieces has a score a token and no merges.
    """

    split: str
    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    scores: list[float]
    bos: int | None
    eos: int | None
    unk: int | None
    eot: int | None  # what the template ends an answer with, where that is another token
    pad: int | None
    adds_bos: bool
    template: str


def read(folder: Path, n_rows: int) -> Vocabulary:
    """The tokenizer in a model's folder, filled up to the embedding's `n_rows`.

    Raises Refused for a kind of tokenizer that is not written here, Damaged for one that makes no sense.
    """
    path = folder / "tokenizer.json"
    said = read_json(path)
    model = said.get("model") or {}
    if model.get("type") != "BPE":
        kind = model.get("type") or "none"
        raise Refused(f"{path}: a GGUF is written here of BPE tokenizers, and this is {kind}.")
    if is_pieces := bool(model.get("byte_fallback")):
        _gguf_pieces.refuse_unlike(path, said)
    elif said.get("normalizer") not in (None, {"type": "NFC"}):
        raise Refused(f"{path}: llama.cpp knows no normalizer like its own.")
    entries = _entries(said, is_pieces)
    tokens, kinds = [f"[PAD{i}]" for i in range(n_rows)], [_UNUSED] * n_rows
    for text, ident, kind in entries:
        if not 0 <= ident < n_rows:
            raise Damaged(f"{folder}: the token {text!r} has the id {ident}, the embedding {n_rows} rows.")
        tokens[ident], kinds[ident] = text, kind
    merges = [] if is_pieces else [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    listed = (_NORMAL, _BYTE)
    scores = [
        _gguf_pieces.score(token, at, kinds[at] not in listed) for at, token in enumerate(tokens) if is_pieces
    ]
    config = read_json(folder / "tokenizer_config.json")
    by_text = {text: ident for text, ident, _ in entries}
    eos = _end(folder, by_text, config)
    eot = end if (end := Writer(folder).end) != eos else None
    bos, pad, unk = (by_text.get(_text(config.get(f"{key}_token"))) for key in ("bos", "pad", "unk"))
    return Vocabulary(
        "default" if is_pieces else _split(folder, said.get("pre_tokenizer")), tokens, kinds, merges, scores,
        bos, eos, unk, eot, pad, _adds_bos(said, bos, tokens), source(folder),
    )  # fmt: skip


def _entries(said: dict[str, Any], is_pieces: bool) -> list[tuple[str, int, int]]:
    """Text, id and kind of every token; an added one's last."""
    entries = [(text, ident, _NORMAL) for text, ident in said["model"]["vocab"].items()]
    added = said.get("added_tokens") or []
    if is_pieces:
        entries = [(t, ident, _BYTE if _gguf_pieces.is_byte(t) else kind) for t, ident, kind in entries]
        added = [t for t in added if not _gguf_pieces.is_spaces(t["content"])]
    return entries + [(t["content"], t["id"], _CONTROL if t.get("special") else _USER) for t in added]


def _split(folder: Path, given: Any) -> str:
    """llama.cpp's name of the way text is split before merging."""
    steps = (given or {}).get("pretokenizers", [given] if given else [])
    kinds = [step.get("type") for step in steps]
    if kinds in (["ByteLevel"], ["Digits", "ByteLevel"]) and steps[-1].get("use_regex", True):
        if steps[-1].get("add_prefix_space"):
            raise Refused(f"{folder / 'tokenizer.json'}: llama.cpp puts no space before a text of this kind.")
        if len(kinds) == 1:
            return "gpt-2"
        if steps[0].get("individual_digits"):
            return "smollm"
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        pattern = (steps[0].get("pattern") or {}).get("Regex")
        if pattern in _SPLITS and steps[0].get("behavior") == "Isolated":
            return _SPLITS[pattern]
    raise Refused(
        f"{folder / 'tokenizer.json'}: llama.cpp has no name that is known here for its way of splitting text"
        f" ({', '.join(map(str, kinds)) or 'none'})."
    )


def _end(folder: Path, by_text: dict[str, int], config: dict[str, Any]) -> int | None:
    """The token that ends an answer: what generation says first, then the tokenizer's."""
    said = read_json(folder / "generation_config.json").get("eos_token_id")
    if isinstance(said, list):
        said = said[0] if said else None
    return said if isinstance(said, int) else by_text.get(_text(config.get("eos_token")))


def _adds_bos(said: dict[str, Any], bos: int | None, tokens: list[str]) -> bool:
    post = said.get("post_processor") or {}
    single = [post, *(post.get("processors") or [])]
    named = [
        p["SpecialToken"]["id"] for each in single for p in each.get("single", []) if "SpecialToken" in p
    ]
    return bos is not None and tokens[bos] in named


def _text(token: Any) -> str:
    return token if isinstance(token, str) else (token or {}).get("content", "")
