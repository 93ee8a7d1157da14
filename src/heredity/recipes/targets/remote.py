"""Record a model behind an API as a target: "remote:API:MODEL[@BASE_URL][?OPTION=VALUE[&OPTION=VALUE...]]".

    remote:openai:gpt-4o-mini                            OpenAI
    remote:openai:qwen@http://127.0.0.1:8000/v1          any server with OpenAI's chat completions
    remote:anthropic:claude-sonnet-4-5                   Anthropic
    remote:gemini:gemini-2.5-flash                       Google
    remote:openai:o4-mini?omit=temperature&reasoning_effort=low

Options are part of the model. Four are heredity's own; any other is sent unchanged with each request:

    omit                parameters that this model refuses: temperature, top_p, seed, max_tokens (with commas)
    prefill             how this server begins the assistant's answer; see engines/remote/apis/openai.py
    think               tokens for thinking before the answer, in addition to its max_tokens
    anthropic_version   2023-06-01 for models of Anthropic's that still take a temperature

Promises: no key, user or password is recorded; equal references give equal ids on every machine. Names of
published models are not taken for keys (tests hold a list).
Leaves to others: requests (engines/remote/engine.py), and the key itself (the environment).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from heredity.core.errors import UnknownName, UsageError
from heredity.core.records import is_digest
from heredity.engines.remote.services import HOMES
from heredity.lineage.types import Description, Grown, StoredModels

PREFIX = "remote:"
HOW = "Write remote:API:MODEL, or remote:API:MODEL@http://HOST/v1; API is openai, anthropic or gemini."
NOTE = "a remote model: what answers under its name is not recorded by weights and may change"
OMITTED = ("temperature", "top_p", "seed", "max_tokens")
PREFILLS = {
    "openai": ("continue_final_message", "trailing", "prefix"),
    "anthropic": (),
    "gemini": ("trailing",),
}
# Not options: the application sets these fields of a request.
_OURS = frozenset(
    {*OMITTED, "max_completion_tokens", "model", "messages", "contents", "system", "tools", "stream", "n"}
)
_SECRET = re.compile(r"key|token$|secret|password|authori[sz]ation|bearer|credential", re.IGNORECASE)
_REF = re.compile(
    r"remote:(?P<api>[a-z]+):(?P<model>[^@?\s]+(?:@(?!https?://)[^@?\s]+)*)(?:@(?P<url>[^?\s]+))?(?:\?(?P<options>\S*))?"
)
_FAMILIES = (
    "gpt",
    "claude",
    "gemini",
    "gemma",
    "llama",
    "mistral",
    "mixtral",
    "qwen",
    "deepseek",
    "phi",
    "smollm",
)
WRAPS_MODEL = False


@dataclass(frozen=True)
class RemoteTarget:
    """A model behind an API: its name, address, and options."""

    api: str
    model: str
    base_url: str = ""  # "": the vendor's
    options: Mapping[str, Any] = field(default_factory=dict)

    kind = "remote"

    def __post_init__(self) -> None:
        is_random = looks_like_key(self.model) and not _is_served_here(self)
        others = json.dumps([self.api, self.base_url, dict(self.options)], default=str)
        _refuse(is_random or has_known_prefix(others))
        if self.api not in HOMES:
            raise UnknownName("API of remote models", self.api, HOMES)
        if not self.model or "://" in self.model:
            raise UsageError(f"'{self.model}' is not a name of a remote model. {HOW}")
        _check_url(self.base_url)
        for name in self.options:
            if name in _OURS:
                raise UsageError(f"'{name}' is the application's to set, not an option of a remote model.")
            if _SECRET.search(name):  # the message does not repeat its value
                raise UsageError(
                    f"The option '{name}' looks like a key; keys come from the environment: --key-env"
                )
        if type(self.options.get("think", 0)) is not int or not 0 <= self.options.get("think", 0) <= 10**6:
            raise UsageError("The option 'think' is a number of tokens.")
        if "anthropic_version" in self.options and self.api != "anthropic":
            raise UsageError("The option 'anthropic_version' is for remote:anthropic:... only.")
        for name in self.options.get("omit", ()):
            if name not in OMITTED:
                raise UnknownName("parameter to omit", name, OMITTED)
        how, known = self.options.get("prefill"), PREFILLS[self.api]
        if how is not None and how not in known:
            raise UnknownName(f"way of {self.api} to begin an answer", str(how), known)

    @property
    def name(self) -> str:
        """The reference, in its one canonical spelling."""
        at = f"@{self._url}" if self._url != HOMES[self.api] else ""
        pairs = [f"{k}={_spelt(v)}" for k, v in sorted(self.options.items())]
        return f"{PREFIX}{self.api}:{self.model}{at}" + (f"?{'&'.join(pairs)}" if pairs else "")

    @property
    def _url(self) -> str:
        return (self.base_url or HOMES[self.api]).rstrip("/")

    def settings(self) -> dict[str, Any]:
        """Everything that the reference says; never a key."""
        return {
            "engine": "remote",
            "api": self.api,
            "base_url": self._url,
            "model": self.model,
            "options": {k: self.options[k] for k in sorted(self.options)},
        }

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:  # noqa: ARG002
        """Describe the model. No file is written, and no request is sent."""
        model = self.model.lower()
        family = next((name for name in _FAMILIES if name in model), "unknown")
        return Description(self.name, family, "not stated", "remote", notes={"about": NOTE})


def resolve(store: StoredModels, ref: str) -> tuple[RemoteTarget, list[Grown]]:  # noqa: ARG001 (no parent)
    """The recipe of a reference, without parents. Raises UsageError, UnknownName for another API."""
    return parse(ref), []


def parse(ref: str) -> RemoteTarget:
    """The recipe of a reference. Raises UsageError, UnknownName for another API."""
    match = _REF.fullmatch(ref)
    if match is None:
        _refuse(looks_like_key(ref))  # before an error repeats the reference
        raise UsageError(f"'{ref}' is not a remote model. {HOW}")
    _refuse(has_known_prefix(ref))
    url = match["url"] or ""
    try:
        pairs = parse_qsl(
            match["options"] or "", keep_blank_values=True, strict_parsing=bool(match["options"])
        )
    except ValueError:
        raise UsageError(f"'{ref}': options are written ?NAME=VALUE&NAME=VALUE.") from None
    if len({name for name, _ in pairs}) < len(pairs):
        raise UsageError(f"'{ref}' gives an option twice.", code="name-twice")
    return RemoteTarget(match["api"], match["model"], url, {name: _value(name, text) for name, text in pairs})


def _is_served_here(remote: RemoteTarget) -> bool:
    """Whether the name is a model id, as `heredity serve` accepts it, on this machine."""
    host = urlsplit(remote.base_url).hostname or ""
    return is_digest(remote.model) and host in ("127.0.0.1", "localhost", "::1")


def _refuse(is_key: bool) -> None:
    if is_key:
        raise UsageError(
            "The reference to a remote model holds what looks like a secret key, which would be recorded and "
            "sent as a name. Write the model's name there, and put the key into an environment variable: "
            "--key-env NAME. If others may have seen the key, revoke it."
        )


def _value(name: str, text: str) -> Any:
    """An option's value: a list of names, parsed JSON, or the text itself."""
    if name == "omit":
        return sorted(set(text.split(",")))
    if name in ("prefill", "anthropic_version"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _spelt(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return quote(",".join(value), safe=",")
    return quote(value if isinstance(value, str) else json.dumps(value, separators=(",", ":")), safe=",:")


def _check_url(url: str) -> None:
    if not url:
        return
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_whole = False
    if not is_whole:
        raise UsageError(f"'{url}' is not an address of a server. {HOW}")
    if parts.username or parts.password:  # the message does not repeat it
        raise UsageError(
            "An address holds neither user nor password; name a variable with the key: --key-env"
        )
    if parts.query or parts.fragment:
        raise UsageError(f"'{url}' is more than the address of an API. {HOW}")


# --- keys -------------------------------------------------------------------------------------------

# A key in the place of a name would be recorded in the store and sent to a service. Known vendors are
# recognised by the prefix of their keys, others by runs in which the kind of character (letter, capital,
# digit) changes every few characters. The time is linear in the text's length.
_PREFIXES = re.compile(
    r"(?:sk|rk|pk)-[\w-]{16}|gsk_\w{16}|hf_[A-Za-z0-9]{16}|AIza[\w-]{20}|ya29\.[\w-]{16}|AKIA[A-Z0-9]{16}"
    r"|gh[opusr]_\w{16}|github_pat_\w{16}|glpat-[\w-]{16}|eyJ[\w-]{12,}\.[\w-]{12}|Bearer\b",
    re.IGNORECASE,
)
_RUN = re.compile(r"[A-Za-z0-9]{20,}")
_HEX = re.compile(r"[0-9a-f]{32,}|[0-9A-F]{32,}")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
_PER_WORD = 4  # characters; random text has about two, names five and more
_MODEL_WORDS = re.compile(
    r"llama|qwen|gemma|gemini|claude|mistral|mixtral|deepseek|command|nemotron|granite|falcon|smollm"
    r"|instruct|maverick|scout|turbo|flash|coder",
    re.IGNORECASE,
)


def has_known_prefix(text: str) -> bool:
    """Whether a part of the text has the prefix of a known service's keys."""
    return any(_PREFIXES.match(part) for part in re.split(r"[^\w.-]+", text))


def looks_like_key(text: str) -> bool:
    """Whether a part of the text has the prefix of a key, or a run of random characters."""
    return has_known_prefix(text) or any(_is_random(run) for run in _RUN.findall(text))


def _is_random(run: str) -> bool:
    has_digit = any(each.isdigit() for each in run)
    if has_digit and _HEX.fullmatch(run):
        return True
    is_broken = len(_WORD.findall(run)) * _PER_WORD > len(run)
    return has_digit and is_broken and not _MODEL_WORDS.search(run)
