"""The tokenizer in a model's folder, its limits, and the errors of files that do not load.

A tokenizer.json is a program of a stranger: rules that replace, insert and copy text. Of one short text they
can make gigabytes.

Promises: a tokenizer that multiplies a text is refused before it reads one. Files that do not load are an
error that names the folder. The errors of transformers and tokenizers share no class, and a panic of Rust
code is not an Exception.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from heredity.core.errors import Damaged, Refused, first_line
from heredity.core.sanitize import check_pattern_size

PART = 16_384  # characters that are tokenized at once
_CUT = 16  # tokens that a cut between two parts may add, such as those of a special token


def has_more_tokens(text: str, n_tokens: int, count: Callable[[str], int]) -> bool:
    """Whether a text surely has more tokens than `n_tokens`. Parts of it are counted until it has.

    count: the number of tokens of a text.
    """
    return _end(text, n_tokens, count) is not None


def beginning(text: str, n_tokens: int, count: Callable[[str], int]) -> str:
    """The beginning of a long text, with surely more tokens than the `n_tokens` that are read of it."""
    return text[: _end(text, n_tokens, count)]


def _end(text: str, n_tokens: int, count: Callable[[str], int]) -> int | None:
    """The end of the first parts that surely have more tokens; None if the whole text need not."""
    if len(text) <= PART:
        return None
    n_found = 0
    for start in range(0, len(text), PART):
        n_found += max(0, count(text[start : start + PART]) - _CUT)
        if n_found > n_tokens:
            return start + PART
    return None


if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

NAMES = "tokenizer*.json"  # transformers may read one with a version in its name
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_NESTED = ("normalizers", "pretokenizers", "processors", "decoders")  # the key of a Sequence
_MAX_PARTS, _LONGEST, _LONGEST_TOKEN = 64, 64, 4096  # parts; characters of their texts, and of a token
_MAX_GROWTH = 128  # characters that are made of one; 72 for T5
_MAX_ADDED_TOKENS, _MAX_PADDING, _LONGEST_WORD = 256, 1 << 17, 1000  # tokens, tokens, characters
_MAX_ADDED = 1 << 20  # characters of all added tokens: each takes some 80 bytes as they are loaded
# Characters that these make of one at worst. NFKC and NFKD make 18 of U+FDFA, but of their own output 1.
_GROWTH = {"ByteLevel": 4, "BertNormalizer": 3, "Metaspace": 2, "Prepend": 2, "NFKC": 18, "NFKD": 18}
_COMPATIBLE = ("NFKC", "NFKD")
_TRIED = "".join(map(chr, range(32, 127))) + " hello ab, Zoë, 你好, \U0001f600\n" + "a" * 64
_MAX_TOKENS = 8  # of one character of the text above


@contextmanager
def tokenizer_errors(what: str) -> Iterator[None]:
    """Raise ValueError, which begins with `what`, for an error of transformers or tokenizers.

    Errors about a missing package or too little memory are not about the files, and stay.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError, ImportError):
        raise
    except BaseException as error:
        raise ValueError(f"{what}: {first_line(error)}") from None


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, by transformers. Raises Damaged, and Refused as `check_tokenizer` does."""
    from transformers import AutoTokenizer

    for path in folder.glob(NAMES):
        check_tokenizer(path)
    try:
        with tokenizer_errors("its tokenizer does not load"):
            pre_trained_tokenizer_base: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
            n_tokens = len(pre_trained_tokenizer_base.encode(_TRIED))
    except ValueError as error:
        raise Damaged(f"{folder}: {error}. Get the model again.") from None
    _check_tokens(n_tokens, folder)
    return pre_trained_tokenizer_base


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json, without padding and truncation.

    Raises ValueError, and Refused as `check_tokenizer` does.
    """
    from tokenizers import Tokenizer

    check_tokenizer(path)
    with tokenizer_errors(f"{path.name} does not load"):
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        n_tokens = len(tokenizer.encode(_TRIED).ids)
    _check_tokens(n_tokens, path)
    return tokenizer


def check_tokenizer(path: Path, is_tried: bool = False) -> None:
    """Raise Refused for a tokenizer.json that can make a long text of a short one.

    is_tried: load it, too, and tokenize a text, where the package tokenizers is installed. One that does not
    load passes: its loader names what is wrong.
    """
    try:
        whole = msgspec.json.decode(path.read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    if isinstance(whole, dict) and (why := _excess(whole)):
        raise _unsafe(path, why)
    if is_tried and isinstance(whole, dict) and whole.get("model"):
        with suppress(ImportError, ValueError):
            read_tokenizer(path)


def _check_tokens(n_tokens: int, place: Path) -> None:
    if n_tokens > _MAX_TOKENS * len(_TRIED):
        raise _unsafe(place, f"it makes {n_tokens:,} tokens of {len(_TRIED)} characters")


def _unsafe(place: Path, why: str) -> Refused:
    return Refused(f"{place}: its tokenizer multiplies text: {why}. Replace it.")


def _excess(whole: Mapping[str, object]) -> str:
    """Return what is too large in a tokenizer.json; "" for nothing."""
    parts = {name: list(_flat(whole.get(name))) for name in _PARTS}
    if (n_parts := sum(map(len, parts.values()))) > _MAX_PARTS:
        return f"it has {n_parts} parts, and at most {_MAX_PARTS} are read"
    model = whole.get("model")
    settings = dict(model) if isinstance(model, dict) else {}
    vocabulary = settings.pop("vocab", ())
    for part in (settings, *(part for each in parts.values() for part in each)):
        for key, value in part.items():
            if isinstance(value, str) and len(value) > _LONGEST and key != "precompiled_charsmap":
                return f"its '{key[:40]}' has {len(value):,} characters"
        pattern = part.get("pattern")
        try:
            check_pattern_size(str(pattern.get("Regex", "")) if isinstance(pattern, dict) else "")
        except ValueError as error:
            return f"a pattern is too large: {error}"
    for name, of_one in (
        ("text", (*parts["normalizer"], *parts["pre_tokenizer"])),
        ("answer", parts["decoder"]),
    ):
        if (growth := _growth(of_one)) > _MAX_GROWTH:
            return f"of one character of a{'n' * (name < 'b')} {name} it may make {growth:,.0f}"
    if (n_copies := math.prod(map(_copies, parts["post_processor"]))) > 1:
        return f"it copies a text {n_copies:,} times"
    return _over_limit(whole, settings, vocabulary, sum(map(_added, parts["post_processor"])))


def _over_limit(
    whole: Mapping[str, object], settings: Mapping[str, object], vocabulary: object, n_added: int
) -> str:
    """Return the first number of a tokenizer.json that is over its limit; "" for none."""
    tokens = [each.get("content") for each in _dicts(whole.get("added_tokens"))]
    n_of_added = sum(len(each) for each in tokens if isinstance(each, str))
    tokens += [each[0] if isinstance(each, list) and each else each for each in _items(vocabulary)]
    longest = max((len(each) for each in tokens if isinstance(each, str)), default=0)
    padding = whole.get("padding")
    strategy = padding.get("strategy") if isinstance(padding, dict) else None
    n_padding = strategy.get("Fixed", 0) if isinstance(strategy, dict) else 0
    multiple = padding.get("pad_to_multiple_of") if isinstance(padding, dict) else 0
    word = settings.get("max_input_chars_per_word")
    limits = {
        "tokens around a text": (n_added, _MAX_ADDED_TOKENS),
        "characters in a token": (longest, _LONGEST_TOKEN),
        "characters in added tokens": (n_of_added, _MAX_ADDED),
        "tokens of padding": (n_padding, _MAX_PADDING), "as multiple of tokens": (multiple, _MAX_PADDING),
        "characters in a word": (word, _LONGEST_WORD),
    }  # fmt: skip
    over = ((what, n, most) for what, (n, most) in limits.items() if isinstance(n, int) and n > most)
    return next((f"{n:,} {what} are more than {most:,}" for what, n, most in over), "")


def _items(value: object) -> list[object]:
    return list(value) if isinstance(value, list | dict) else []


def _dicts(value: object) -> list[dict[str, object]]:
    return [each for each in _items(value) if isinstance(each, dict)] if isinstance(value, list) else []


def _flat(part: object) -> Iterator[dict[str, object]]:
    """Yield a part, or the parts of a Sequence at any depth."""
    waiting = [part]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield each
            waiting += [inner for key in _NESTED for inner in reversed(_items(each.get(key)))]


def _growth(parts: Iterable[Mapping[str, object]]) -> float:
    """Return the characters that parts in a row make of one character at worst."""
    growth, is_own = 1.0, True  # whether the text has no character that a part brought in
    for part in parts:
        kind, content = part.get("type"), str(part.get("content", ""))
        if kind == "Precompiled":
            growth *= max(1, _longest_replacement(part.get("precompiled_charsmap")))
        elif kind == "Replace":
            growth *= _replacement(part.get("pattern"), content)
        elif kind not in _COMPATIBLE or not is_own:
            growth *= _GROWTH.get(str(kind), 1)
        is_own = is_own and kind != "Precompiled" and content.isascii()
    return growth


def _replacement(pattern: object, content: str) -> float:
    """Return the growth by a replacement. A regular expression may match between all characters."""
    if isinstance(pattern, dict) and isinstance(text := pattern.get("String"), str) and text:
        return max(1.0, len(content) / len(text))
    return 1.0 + len(content)


def _longest_replacement(charsmap: object) -> int:
    """Return the characters of the longest replacement in SentencePiece's table: a trie, and texts."""
    try:
        table = base64.b64decode(str(charsmap))
    except ValueError:
        return 1
    texts = table[4 + int.from_bytes(table[:4], "little") :]
    return max(len(each.decode("utf-8", "replace")) for each in texts.split(b"\0"))


def _copies(processor: Mapping[str, object]) -> int:
    """Return how often a processor copies a text."""
    pieces = _dicts(processor.get("single"))
    return max(1, sum("Sequence" in each for each in pieces))


def _added(processor: Mapping[str, object]) -> int:
    """Return the tokens that a processor can add to a text or a pair, or more."""
    special = processor.get("special_tokens")
    known = list(special.values()) if isinstance(special, dict) else []
    longest = max((len(_items(each.get("ids"))) for each in known if isinstance(each, dict)), default=1)
    return max(1, longest) * max(len(_items(processor.get(key))) for key in ("single", "pair"))
