"""A tokenizer.json in GGUF form: byte-level BPE with merges and pre-tokenizer, or Gemma's vocabulary.

Promises: a pre-tokenizer without a name in llama.cpp is refused, since another would tokenize text
differently. Tokens keep their ids. Special tokens are control tokens, so that no text becomes one.
Leaves to others: weights (gguf_write.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heredity.core.errors import Damaged, Refused
from heredity.formats.gguf import GgufChatReader
from heredity.formats.weights import read_json

SPACE = "▁"
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_ADDED_SCORE = -1000.0  # as in the GGUFs of Gemma; no merge makes such a token
_NORMALIZER = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


def is_byte(token: str) -> bool:
    """Return True for a token of a single byte."""
    return bool(_BYTE_PIECE.fullmatch(token))


def is_spaces(token: str) -> bool:
    """Return True for a run of spaces: merges produce it, although it is listed as an added token."""
    return not token.strip(SPACE)


def score(token: str, ident: int, is_added: bool) -> float:
    """Return the merge priority of a token: by its id, which `refuse_unlike` has checked."""
    if is_added:
        return _ADDED_SCORE
    return 0.0 if is_byte(token) else -float(ident)


def refuse_unlike(path: Path, tokenizer: dict[str, Any]) -> None:
    """Raise Refused if llama.cpp, or transformers with the GGUF, would tokenize text differently."""
    if tokenizer.get("normalizer") != _NORMALIZER or not _leaves_whole(tokenizer.get("pre_tokenizer")):
        raise Refused(f"{path}: of tokenizers with byte fallback a GGUF is written here of Gemma's alone.")
    added = [t for t in tokenizer.get("added_tokens") or [] if not is_spaces(t["content"])]
    if any(t.get("lstrip") or t.get("rstrip") or t.get("single_word") for t in added):
        raise Refused(f"{path}: llama.cpp takes no token together with the spaces beside it.")
    _refuse_other_merges(path, tokenizer["model"], {t["content"] for t in added})


def _leaves_whole(given: dict[str, object] | None) -> bool:
    """Return True if text is not split: at most at spaces, which the normalizer has replaced."""
    return given is None or (given.get("type") == "Split" and given.get("pattern") == {"String": " "})


def _refuse_other_merges(path: Path, model: dict[str, Any], added: set[str]) -> None:
    vocabulary: dict[str, int] = model["vocab"]
    ways: dict[str, set[str]] = {}
    last = -1
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if {left, right, left + right} & added:
            continue  # an added token is taken out of the text before any merge
        ident = vocabulary.get(left + right, -1)
        if ident < last:
            raise Refused(f"{path}: its merges are not in the order of their tokens' ids, as in a GGUF.")
        last = ident
        ways.setdefault(left + right, set()).add(left)
    plain = vocabulary.keys() - added
    for token in plain:
        splits = {token[:at] for at in range(1, len(token)) if token[:at] in plain and token[at:] in plain}
        if splits != ways.get(token, set()):
            raise Refused(
                f"{path}: of {token[:40]!r} llama.cpp would make one token where this makes several."
            )


_NORMAL, _CONTROL, _USER, _UNUSED, _BYTE = 1, 3, 4, 5, 6  # llama.cpp's token types
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_SPLITS = {_QWEN: "qwen2", _LLAMA3: "llama-bpe"}


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary. `split`: llama.cpp's name of the pre-tokenizer; `kinds[i]`: its type of token i.

    Gemma's vocabulary has one score per token and no merges.
    """

    split: str
    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    scores: list[float]
    bos: int | None
    eos: int | None
    unk: int | None
    eot: int | None  # the token with which the template ends an answer, if it is another one
    pad: int | None
    adds_bos: bool
    template: str


def read_vocabulary(folder: Path, n_rows: int, read_chat: GgufChatReader) -> Vocabulary:
    """Read the tokenizer in a model's folder, filled up to the embedding's `n_rows`.

    Raises Refused for an unsupported kind of tokenizer, Damaged for an inconsistent one.
    """
    path = folder / "tokenizer.json"
    tokenizer = read_json(path)
    model = tokenizer.get("model") or {}
    if model.get("type") != "BPE":
        kind = model.get("type") or "none"
        raise Refused(f"{path}: a GGUF is written here of BPE tokenizers, and this is {kind}.")
    if is_pieces := bool(model.get("byte_fallback")):
        refuse_unlike(path, tokenizer)
    elif tokenizer.get("normalizer") not in (None, {"type": "NFC"}):
        raise Refused(f"{path}: llama.cpp knows no normalizer like its own.")
    entries = _entries(tokenizer, is_pieces)
    tokens, kinds = [f"[PAD{i}]" for i in range(n_rows)], [_UNUSED] * n_rows
    for text, ident, kind in entries:
        if not 0 <= ident < n_rows:
            raise Damaged(f"{folder}: the token {text!r} has the id {ident}, the embedding {n_rows} rows.")
        tokens[ident], kinds[ident] = text, kind
    merges = [] if is_pieces else [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    listed = (_NORMAL, _BYTE)
    scores = [score(token, at, kinds[at] not in listed) for at, token in enumerate(tokens) if is_pieces]
    config = read_json(folder / "tokenizer_config.json")
    by_text = {text: ident for text, ident, _ in entries}
    eos = _end(folder, by_text, config)
    chat = read_chat(folder)
    eot = chat.answer_end if chat.answer_end != eos else None
    bos, pad, unk = (by_text.get(_text(config.get(f"{key}_token"))) for key in ("bos", "pad", "unk"))
    split = "default" if is_pieces else _split(folder, tokenizer.get("pre_tokenizer"))
    return Vocabulary(
        split, tokens, kinds, merges, scores,
        bos, eos, unk, eot, pad, _adds_bos(tokenizer, bos, tokens), chat.template,
    )  # fmt: skip


def _entries(tokenizer: dict[str, Any], is_pieces: bool) -> list[tuple[str, int, int]]:
    """Return text, id and kind of every token; added tokens last."""
    entries = [(text, ident, _NORMAL) for text, ident in tokenizer["model"]["vocab"].items()]
    added = tokenizer.get("added_tokens") or []
    if is_pieces:
        entries = [(t, ident, _BYTE if is_byte(t) else kind) for t, ident, kind in entries]
        added = [t for t in added if not is_spaces(t["content"])]
    return entries + [(t["content"], t["id"], _CONTROL if t.get("special") else _USER) for t in added]


def _split(folder: Path, given: Any) -> str:
    """Return llama.cpp's name of the pre-tokenizer."""
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
    """Return the token that ends an answer: of generation_config.json, else of the tokenizer."""
    ends = read_json(folder / "generation_config.json").get("eos_token_id")
    if isinstance(ends, list):
        ends = ends[0] if ends else None
    return ends if isinstance(ends, int) else by_text.get(_text(config.get("eos_token")))


def _adds_bos(tokenizer: dict[str, Any], bos: int | None, tokens: list[str]) -> bool:
    post = tokenizer.get("post_processor") or {}
    single = [post, *(post.get("processors") or [])]
    named = [
        p["SpecialToken"]["id"] for each in single for p in each.get("single", []) if "SpecialToken" in p
    ]
    return bos is not None and tokens[bos] in named


def _text(token: object) -> str:
    """Return the text of a special token: a string, or an object with its content."""
    found = token.get("content", "") if isinstance(token, dict) else token
    return found if isinstance(found, str) else ""
