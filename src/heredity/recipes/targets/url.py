"""Record a web address as a target: "url:https://host/path#/pointer/to/answer", or "url:FILE.toml".

    url = "https://bot.example/chat"
    body = { question = "$text", session = "$conversation" }    # default: { messages = "$messages" }
    answer = "/reply/text"             # a JSON pointer; "" (the default) is the whole body
    headers = { Authorization = "BOT_AUTHORIZATION" }           # header -> variable that holds it
    blocked = [403]                    # statuses of the application's guard: recorded as a refusal
    concurrency = 4
    timeout_seconds = 60

Promises: no file and no record holds a key, only the name of its environment variable. An error in the file
names its TOML key.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from heredity.core.errors import BadArgument, BadInput, UsageError, code_of
from heredity.core.readers import toml_of
from heredity.engines.url import slots_in
from heredity.lineage.types import Description, Grown, StoredModels

NOTE = "a web application: what stands behind the address is not recorded and may change"
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
WRAPS_MODEL = False


class UrlTarget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An address, the body of its requests, and the place of the answer in the response."""

    url: str
    body: dict[str, Any] = msgspec.field(default_factory=lambda: {"messages": "$messages"})
    answer: str = ""
    headers: dict[str, str] = {}
    blocked: tuple[int, ...] = ()
    concurrency: int = 4
    timeout_seconds: float = 60.0
    name: str = ""

    kind = "url"

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadArgument("url must be http://HOST/... or https://HOST/...")
        if parts.username or parts.password:
            raise BadArgument("url must not hold a user or a password; name a header's variable instead")
        if self.answer and not self.answer.startswith("/"):
            raise BadArgument("answer must be a JSON pointer such as /choices/0/message/content")
        if not {"messages", "text"} & slots_in(self.body):
            raise BadArgument("body must hold $messages or $text")
        for header, variable in self.headers.items():
            if not _VARIABLE.fullmatch(variable):  # the message does not repeat it, because it may be a key
                raise BadArgument(f"the header '{header}' must name an environment variable (LIKE_THIS)")
        if not 1 <= self.concurrency <= 256:
            raise ValueError(f"concurrency must be from 1 to 256, not {self.concurrency}")
        if not 0 < self.timeout_seconds <= 3600:
            raise ValueError(f"timeout_seconds must be above 0 and at most 3600, not {self.timeout_seconds}")

    def settings(self) -> dict[str, Any]:
        """All fields, and the engine. Headers hold only the names of variables."""
        fields = msgspec.to_builtins(self)
        return {"engine": "url", **{key: value for key, value in fields.items() if key != "name"}}

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:  # noqa: ARG002
        """Describe the target. No file is written, and no request is sent."""
        name = self.name or f"url:{self.url}"
        return Description(name, "url", "not stated", "remote", notes={"about": NOTE})


def resolve(store: StoredModels, ref: str) -> tuple[UrlTarget, list[Grown]]:  # noqa: ARG001 (no parent)
    """The recipe of "url:ADDRESS[#POINTER]" or "url:FILE.toml". Raises UsageError or BadInput."""
    rest = ref.removeprefix("url:")
    if "://" in rest:
        address, _, pointer = rest.partition("#")
        try:
            return UrlTarget(address, answer=unquote(pointer)), []
        except (ValueError, UsageError) as error:
            raise UsageError(f"url: {error}.", code=code_of(error)) from None
    path = Path(rest)
    data = {"name": f"url:{path.stem}", **toml_of(path)}
    try:
        return msgspec.convert(data, UrlTarget), []
    except (msgspec.ValidationError, UsageError) as error:
        raise BadInput(path, str(error), code=code_of(error)) from None
