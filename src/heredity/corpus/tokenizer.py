"""A byte-level BPE tokenizer, trained on the corpus's own text and written as transformers loads it.

The pre-tokenizer is one that llama.cpp knows by name, so that a model can be written as GGUF. It is that of
GPT-2, SmolLM (GPT-2's with separate digits) or Qwen2. Turns are written in ChatML.

Promises: the same text gives the same tokenizer for any number of threads. A vocabulary that the text
cannot fill is refused, because unseen entries are never learned.

Source: Sennrich et al. 2016 (1508.07909), over bytes as in GPT-2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from heredity.core.errors import BadInput, Unavailable, UsageError, how_to_install
from heredity.core.files import hash_file, write_atomic
from heredity.corpus import recipe
from heredity.corpus.storage import TokenizerFacts

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

END, TURN, TURN_END, PAD = recipe.SPECIAL[:4]
MASK = "<|mask|>"
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_LONG = re.compile(r"\S{8192}(?=\S)")
_NAME, _CONFIG = "tokenizer.json", "tokenizer_config.json"
_FILES = (_NAME, _CONFIG, "chat_template.jinja", "special_tokens_map.json")


def library() -> ModuleType:
    """The tokenizers library. Raises Unavailable."""
    try:
        import tokenizers
    except ImportError:
        raise Unavailable(f"A tokenizer needs transformers. {how_to_install('torch')}") from None
    return tokenizers


def train(texts: Iterable[str], settings: recipe.TokenizerSettings, path: Path) -> Tokenizer:
    """Train a tokenizer. Raises BadInput if the text has too few entries for the vocabulary."""
    tokenizers = library()
    made: Tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = _splitter(settings.split)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        min_frequency=settings.least_count,
        special_tokens=list(settings.special),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(map(_cut, texts), trainer)
    reached = made.get_vocab_size()
    if reached < settings.vocabulary:
        step = 64 if reached >= 1024 else 1
        raise BadInput(
            path,
            f"the vocabulary of {settings.vocabulary:,} is too large for the text: it has {reached:,} entries"
            f" that are seen at least {settings.least_count} times. Ask for"
            f" {reached // step * step:,} or fewer, give more text, or lower least_count",
        )
    return made


def _cut(text: str) -> str:
    """Cut long runs without a blank: the trainer's time is quadratic in a word's length, and no vocabulary
    entry is that long."""
    return _LONG.sub(r"\g<0>\n", text)


def _splitter(split: recipe.Split) -> PreTokenizer:
    kinds = library().pre_tokenizers
    splitter: PreTokenizer = kinds.ByteLevel(add_prefix_space=False, use_regex=split != "qwen2")
    if split == "qwen2":
        splitter = kinds.Sequence([kinds.Split(library().Regex(_QWEN2), "isolated"), splitter])
    elif split == "smollm":
        splitter = kinds.Sequence([kinds.Digits(individual_digits=True), splitter])
    return splitter


def write(made: Tokenizer, settings: recipe.TokenizerSettings, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    write_atomic(folder / _NAME, made.to_str(pretty=False).encode())
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": [name for name in settings.special if name not in (END, PAD, MASK)],
        "chat_template": CHATML,
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
    }
    if MASK in settings.special:
        config["mask_token"] = MASK
    write_atomic(folder / _CONFIG, json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n")


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of an existing tokenizer."""
    return {name: hash_file(folder / name) for name in _FILES if (folder / name).is_file()}


def copy(source: Path, folder: Path) -> None:
    """Copy an existing tokenizer unchanged."""
    for name in _FILES:
        if (source / name).is_file():
            write_atomic(folder / name, (source / name).read_bytes())
        elif name in (_NAME, _CONFIG):
            raise UsageError(
                f"tokenizer: {source} has no {name}. Name a folder that transformers could load.",
                key="tokenizer",
            )


def load(folder: Path) -> Tokenizer:
    """The tokenizer of a folder, for plain text: a special token that is spelt out in it is ordinary text."""
    made: Tokenizer = library().Tokenizer.from_file(str(folder / _NAME))
    made.encode_special_tokens = True
    made.no_truncation()
    made.no_padding()
    return made


def end_of(folder: Path) -> int:
    """The end token, after every document. Raises UsageError if the tokenizer names none."""
    config = json.loads((folder / _CONFIG).read_text("utf-8"))
    named = config.get("eos_token")
    name = named if isinstance(named, str) else (named or {}).get("content", "")
    token_id: int | None = load(folder).token_to_id(name)
    if token_id is None:
        raise UsageError(f"{folder / _CONFIG}: it names no eos_token, which ends every document.")
    return token_id


def facts(
    folder: Path, sample_bytes: int, bytes_per_token: float | None, train_bytes_per_token: float, n_used: int
) -> TokenizerFacts:
    """The tokenizer of a corpus, as its card records it. n_used: entries that occur in the corpus."""
    n_vocabulary = load(folder).get_vocab_size()
    added = json.loads((folder / _NAME).read_text("utf-8")).get("added_tokens") or []
    return TokenizerFacts(
        sha256=hash_file(folder / _NAME),
        config_sha256=hash_file(folder / _CONFIG),
        vocabulary=n_vocabulary,
        split=split_of(folder),
        special={token["content"]: token["id"] for token in added if token.get("special")},
        end=end_of(folder),
        sample_bytes=sample_bytes,
        bytes_per_token=bytes_per_token,
        train_bytes_per_token=train_bytes_per_token,
        unused=n_vocabulary - n_used,
    )


def split_of(folder: Path) -> str:
    """llama.cpp's name of its pre-tokenizer, "other" if unknown here."""
    given = json.loads((folder / _NAME).read_text("utf-8")).get("pre_tokenizer")
    for name in ("gpt-2", "smollm", "qwen2"):
        made = library().Tokenizer(library().models.BPE())
        made.pre_tokenizer = _splitter(name)
        if json.loads(made.to_str())["pre_tokenizer"] == given:
            return name
    return "other"
