"""Detect a secret key in the place of a name.

A key in the model's place of a reference is refused: it would be recorded in the store and sent to a
service. Known vendors are recognised by the prefix of their keys. Others are recognised by random-looking
runs: the kind of character (letter, capital, digit) changes every few characters.

Promises: linear in the text's length; names of published models are not taken for keys (tests hold a list).
Leaves to others: saying so without the key (remote.py).
"""

from __future__ import annotations

import re

_PREFIXES = re.compile(
    r"(?:sk|rk|pk)-[\w-]{16}|gsk_\w{16}|hf_[A-Za-z0-9]{16}|AIza[\w-]{20}|ya29\.[\w-]{16}|AKIA[A-Z0-9]{16}"
    r"|gh[opusr]_\w{16}|github_pat_\w{16}|glpat-[\w-]{16}|eyJ[\w-]{12,}\.[\w-]{12}|Bearer\b",
    re.IGNORECASE,
)
_RUN = re.compile(r"[A-Za-z0-9]{20,}")
_HEX = re.compile(r"[0-9a-f]{32,}|[0-9A-F]{32,}")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
_PER_WORD = 4  # characters; random text has about two, names five and more
_FAMILIES = re.compile(
    r"llama|qwen|gemma|gemini|claude|mistral|mixtral|deepseek|command|nemotron|granite|falcon|smollm"
    r"|instruct|maverick|scout|turbo|flash|coder",
    re.IGNORECASE,
)


def has_known_prefix(text: str) -> bool:
    """Whether some part of the text begins as the keys of a known service do."""
    return any(_PREFIXES.match(part) for part in re.split(r"[^\w.-]+", text))


def looks_like_key(text: str) -> bool:
    """Whether some part of the text is a key by how it begins, or has a run that looks drawn at random."""
    return has_known_prefix(text) or any(_is_random(run) for run in _RUN.findall(text))


def _is_random(run: str) -> bool:
    has_digit = any(each.isdigit() for each in run)
    if has_digit and _HEX.fullmatch(run):
        return True
    is_broken = len(_WORD.findall(run)) * _PER_WORD > len(run)
    return has_digit and is_broken and not _FAMILIES.search(run)
