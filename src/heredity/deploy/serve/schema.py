"""The common parts of all endpoints: shared fields of bodies, the rules of a served model, and errors.

Promises: an unsupported field that would change an answer is refused by name. Only --ignore-settings makes it
ignored, and then the answer names it. A field that changes no answer (`user`, `metadata`, ...) is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import msgspec

from heredity.application.spec import Application, check_decoding
from heredity.core.errors import BadArgument, UsageError, code_of
from heredity.core.records import Decoding, Reply, Request
from heredity.engines import TokenScorer

MAX_LOGS = 20  # likeliest tokens listed at each place
LONGEST = 512  # tokens of an answer, if neither the caller nor an application sets a limit
MAX_ANSWERS, MAX_STOPS, LONGEST_STOPS = 16, 16, 4096
MAX_VALUES = 40_000  # of lists and objects in a body: to read ten times as many takes seconds
_LONGEST_MESSAGE = 2000  # characters of an error: some repeat a value of the body
_MAX_SEED, _MAX_TOKENS = 1 << 63, 1 << 31
_REASONS = {"end": "stop", "length": "length", "filter": "content_filter"}
_IGNORED = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention",
}  # fmt: skip
_HINTS = {"reasoning_effort", "verbosity"}  # for models that read them; none here does
# Fields that change an answer, and their neutral values. These only steer how tokens are drawn:
_SETTINGS: dict[str, Sequence[object]] = {
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "top_k": (0, -1), "min_p": (0,),
    "repetition_penalty": (1,), "repeat_penalty": (1,), "length_penalty": (1,), "min_tokens": (0,),
    "ignore_eos": (False,), "use_beam_search": (False,), "typical_p": (1,), "best_of": (1,),
}  # fmt: skip
# These change what an answer is, so that it could not be taken for what was asked:
_FORMS: dict[str, Sequence[object]] = {
    "response_format": ({"type": "text"},), "functions": ([],), "function_call": ("none", "auto"),
    "suffix": ("",), "modalities": (["text"],), "skip_special_tokens": (True,), "top_logprobs": (0,),
    "echo": (False,),
}  # fmt: skip
_PLACE = re.compile(r"at `\$\.?([^`]+)`|required field `([^`]+)`")


class Refusal(Exception):
    """An error response: an HTTP status, a message, and a machine-readable code.

    param: the field of the body that it is about; "" for none. wait: seconds after which to retry.
    """

    def __init__(
        self, status: int, message: str, code: str, reason: str = "", param: str = "", wait: int = 1
    ) -> None:
        super().__init__(message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]} ...")
        self.status, self.code, self.reason, self.param, self.wait = status, code, reason, param, wait

    @property
    def body(self) -> dict[str, object]:
        """The error as a body in OpenAI's format."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": str(self), "type": kind, "param": self.param or None, "code": self.code}
        return {"error": {**error, "reason": self.reason} if self.reason else error}


@dataclass(frozen=True, slots=True)
class Rules:
    """How the requests to a served model are read.

    may_draw: whether a caller may override the application's sampling parameters.
    ignores: whether other settings than the application's are ignored, instead of refused.
    shows_tools: whether the model's chat template shows tools.
    """

    application: Application | None = None
    may_draw: bool = False
    ignores: bool = False
    shows_tools: bool = True
    scorer: TokenScorer | None = None  # the engine, if it scores tokens
    check_schema: Callable[[str], object] | None = None  # as of protocols.Capabilities
    check_length: Callable[[Request], object] | None = None
    is_guarded: bool = False  # whether the application has guards, which check whole answers


@dataclass(frozen=True, slots=True)
class Echo:
    """The prompt of an answer, which the caller wants in front of it.

    tokens: the prompt, if the caller sent tokens; else `text` is. n_new: tokens to add, if the answer is read
    off the scores of the prompt; None: it is generated.
    """

    text: str
    tokens: tuple[int, ...] = ()
    n_new: int | None = None


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """The options of a stream."""

    include_usage: bool = False
    include_obfuscation: bool = False  # padding against traffic analysis: never sent
    continuous_usage_stats: bool = False  # usage in each event: never sent


class Body(msgspec.Struct, kw_only=True):
    """The fields that chat and text completions share."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None


B = TypeVar("B", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class CallReading:
    """How the tool calls of an answer are read.

    names: the caller's tools; an application's are its own. is_off: calls stay part of the text.
    is_parallel: whether an answer may have several.
    """

    names: tuple[str, ...] = ()
    is_off: bool = False
    is_parallel: bool = True


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A parsed body. `requests`: one request per answer. `ignored`: settings that were ignored, by name."""

    requests: list[Request]
    stops: tuple[str, ...] = ()
    is_streamed: bool = False
    with_usage: bool = False
    calls: CallReading = field(default_factory=CallReading)
    ignored: tuple[str, ...] = ()
    n_top: int | None = None  # likeliest tokens to list at each place; None: no log-probabilities
    echoes: tuple[Echo, ...] = ()  # one per answer, or none


class ReadBody(NamedTuple):
    """The fields of a body that are read, and the names of those that are ignored."""

    fields: dict[str, object]
    ignored: tuple[str, ...]


def json_object(raw: bytes) -> dict[str, object]:
    """Decode a body. Raises UsageError unless it is a JSON object."""
    try:
        given = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"the body is not JSON: {error}", code="not-json") from None
    if not isinstance(given, dict):
        raise UsageError("the body is not a JSON object", code="wrong-type")
    return given


def opened(raw: bytes) -> dict[str, object]:
    """Decode a body and check that it names a model. Raises UsageError."""
    given = json_object(raw)
    if not isinstance(given.get("model"), str):
        raise UsageError(
            "`model` is missing: name a served model, see /v1/models", code="missing-key", key="model"
        )
    n_left = MAX_VALUES
    for key, value in given.items():
        n_left -= n_values(value, n_left)
        if n_left < 0:
            raise UsageError(
                f"a body has at most {MAX_VALUES:,} values: messages, parts, calls, and the fields of each",
                key=key[:80],
            )
    return given


def n_values(given: object, most: int, has_tokens: bool = True) -> int:
    """Return the number of values in lists and objects; beyond `most` not all are counted.

    has_tokens: a whole number in a list may be a token, and is not counted.
    """
    waiting, n = [given], 0
    while waiting and n <= most:
        each = waiting.pop()
        if isinstance(each, dict):
            n += len(each)
            waiting += each.values()
        elif isinstance(each, list):
            others = [part for part in each if not isinstance(part, int)] if has_tokens else each
            n += len(others)
            waiting += others
    return n


def select_fields(body: Mapping[str, object], known: Sequence[str], ignores: bool) -> ReadBody:
    """Return the known fields of a body. Raises UsageError for another that would change the answer."""
    fields: dict[str, object] = {}
    ignored: list[str] = []
    for key, value in body.items():
        if value is None or key in _IGNORED:
            continue
        if key in known:
            fields[key] = value
        elif key in _HINTS:
            ignored.append(key)
        elif value not in (neutral := _SETTINGS.get(key) or _FORMS.get(key) or ()):
            if not (ignores and key in _SETTINGS):
                raise _unknown(key, is_known=bool(neutral))
            ignored.append(key)
    return ReadBody(fields, tuple(ignored))


def _unknown(key: str, is_known: bool) -> UsageError:
    key = key[:80]
    if is_known:
        message = f"'{key}' would change the answer and is not supported. Leave it out"
        if key in _SETTINGS:
            message += ", or serve with --ignore-settings"
        return UsageError(message, key=key)
    return UsageError(f"'{key}' is not a known field", code="unknown-key", key=key)


def convert(fields: Mapping[str, object], kind: type[B]) -> B:
    """Return the fields as a typed body. Raises UsageError that names the field."""
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        match = _PLACE.search(str(error))
        place = (match[1] or match[2]) if match else ""
        raise UsageError(str(error), code=code_of(error), key=place) from None


class ReadDecoding(NamedTuple):
    """How an answer is drawn, and the settings of the caller that are ignored."""

    decoding: Decoding
    ignored: tuple[str, ...]


def read_decoding(body: Body, rules: Rules) -> ReadDecoding:
    """Return the decoding of a body under the rules. Raises UsageError."""
    layer = rules.application
    usual = Decoding(LONGEST) if layer is None else layer.decoding
    is_held = layer is not None and not rules.may_draw
    longest = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    given = {"max_tokens": longest, "temperature": body.temperature, "top_p": body.top_p}
    settings = {key: value for key, value in given.items() if value is not None}
    short = _too_short(settings, usual, rules)
    for key in short:
        del settings[key]
    if is_held and "max_tokens" in settings:
        # Fewer tokens only truncate the same answer.
        settings["max_tokens"] = min(settings["max_tokens"], usual.max_tokens)
    changed = [
        key
        for key in ("temperature", "top_p")
        if settings.get(key, getattr(usual, key)) != getattr(usual, key)
    ]
    if is_held and rules.ignores:
        for key in changed:
            del settings[key]
    decoding = msgspec.structs.replace(usual, **settings)
    _check(decoding)
    if layer is None or not is_held or not changed:
        return ReadDecoding(decoding, short)
    if rules.ignores:
        return ReadDecoding(decoding, (*short, *changed))
    held = ", ".join(f"{key} {getattr(usual, key):g}" for key in changed)
    raise UsageError(
        f"the application '{layer.name}' fixes the sampling parameters ({held}). "
        "Leave it out, or serve with --free-decoding or --ignore-settings",
        key=changed[0],
    )


def _too_short(settings: Mapping[str, float], usual: Decoding, rules: Rules) -> tuple[str, ...]:
    """The setting that would end an answer before guards saw all of it. Raises UsageError unless ignored."""
    if not rules.is_guarded or settings.get("max_tokens", usual.max_tokens) >= usual.max_tokens:
        return ()
    if rules.ignores:
        return ("max_tokens",)
    raise UsageError(
        f"guards check whole answers, here of up to {usual.max_tokens} tokens: a shorter one could end "
        "inside what they look for. Leave it out, or serve with --ignore-settings",
        key="max_tokens",
    )


def _check(decoding: Decoding) -> None:
    if decoding.max_tokens >= _MAX_TOKENS:
        raise UsageError(
            f"max_tokens must be below {_MAX_TOKENS}, not {decoding.max_tokens}",
            code="bad-setting",
            key="max_tokens",
        )
    try:
        check_decoding(decoding)
    except BadArgument as error:
        key = error.key.removeprefix("decoding.")
        words = str(error).removeprefix("decoding.")
        raise UsageError(words, code="bad-setting", key=key) from None


def several(body: Body, requests: Sequence[Request]) -> list[Request]:
    """Return `n` requests for each, with seeds that follow each other. Raises UsageError."""
    n = 1 if body.n is None else body.n
    if not 1 <= n * len(requests) <= MAX_ANSWERS:
        raise UsageError(
            f"a request asks for 1 to {MAX_ANSWERS} answers, not {n * len(requests)}",
            code="bad-setting",
            key="n",
        )
    if not 0 <= (body.seed or 0) <= _MAX_SEED - n:
        raise UsageError(
            f"seed must be at least 0 and below {_MAX_SEED}, not {body.seed}", code="bad-setting", key="seed"
        )
    return [msgspec.structs.replace(each, seed=each.seed + i) for each in requests for i in range(n)]


def stop_texts(body: Body) -> tuple[str, ...]:
    """Return the texts that end an answer. Raises UsageError."""
    stops = tuple(filter(None, [body.stop] if isinstance(body.stop, str) else body.stop or []))
    if len(stops) > MAX_STOPS or sum(map(len, stops)) > LONGEST_STOPS:
        raise UsageError(
            f"stop takes up to {MAX_STOPS} texts, {LONGEST_STOPS:,} characters in all", key="stop"
        )
    return stops


def check_logs(n_top: int | None, rules: Rules) -> None:
    """Raise UsageError if these log-probabilities cannot be given under these rules."""
    if n_top is None:
        return
    if rules.scorer is None:
        raise UsageError("this model's engine gives no log-probabilities", key="logprobs")
    if not 0 <= n_top <= MAX_LOGS:
        raise UsageError(
            f"0 to {MAX_LOGS} likeliest tokens can be listed, not {n_top}",
            code="bad-setting",
            key="top_logprobs",
        )


def with_usage(body: Body) -> bool:
    """Return whether the last event of a stream counts the tokens."""
    return body.stream_options is not None and body.stream_options.include_usage


def reason(reply: Reply, has_calls: bool = False, is_cut: bool = False) -> str:
    """Return the finish reason of an answer. is_cut: a stop text of the caller cut it."""
    return "tool_calls" if has_calls else "stop" if is_cut else _REASONS[reply.stop]


def cited(request: Request) -> dict[str, list[str]]:
    """Return the field with the places of the passages of a request; empty if none were retrieved."""
    passages = request.retrieved
    return {} if passages is None else {"citations": [each.citation for each in passages]}


def usage(replies: Sequence[Reply]) -> dict[str, int]:
    """Count prompt and completion tokens. Answers to the same prompt count it once.

    An answer that guards changed counts none: its length would tell something of what was withheld.
    """
    prompts = {reply.prompt: reply.n_prompt_tokens for reply in replies}
    sent = (reply for reply in replies if reply.withheld is None)
    written = sum(each.n_answer_tokens for each in sent)
    read = sum(prompts.values())
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
