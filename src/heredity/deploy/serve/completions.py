"""POST /v1/completions: the body, and the format of its answers.

Promises: a text is continued as it is, without a chat template. With `echo` the prompt comes back with the
answer, and with `logprobs` every token of both has its log-probability, as lm-eval needs it.
Leaves to others: the shared fields (schema.py), and sending (answers.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec

from heredity.core.errors import ContextOverflow, UsageError
from heredity.core.records import Request
from heredity.deploy.serve import schema
from heredity.deploy.serve.answers import FinishedAnswer
from heredity.deploy.serve.chat import ChatFormat
from heredity.deploy.serve.schema import Echo, ParsedRequest, Rules
from heredity.engines.protocols import TokenLog


class TextBody(schema.Body, kw_only=True):
    """The body of POST /v1/completions. A prompt is a text or its tokens."""

    prompt: str | list[str | int | list[int]]
    echo: bool = False
    logprobs: int | None = None


def parse(given: Mapping[str, object], rules: Rules) -> ParsedRequest:
    """Parse a body of /v1/completions. Raises UsageError."""
    fields, ignored = schema.select_fields(given, TextBody.__struct_fields__, rules.ignores)
    if fields.get("logprobs") is False:
        del fields["logprobs"]
    body = schema.convert(fields, TextBody)
    if rules.application is not None:
        raise UsageError("an application takes conversations, not plain texts: use /v1/chat/completions")
    schema.check_logs(body.logprobs, rules)
    n_new = body.max_tokens
    if body.echo and n_new == 0:  # lm-eval reads only the prompt's scores
        body = msgspec.structs.replace(body, max_tokens=1)
    decoding, _ = schema.read_decoding(body, rules)
    is_scored = (
        body.echo and rules.scorer is not None and (decoding.max_tokens, decoding.temperature) == (1, 0)
    )
    if n_new == 0 and not is_scored:
        raise UsageError(
            "max_tokens 0 needs echo, temperature 0 and an engine that scores tokens",
            code="bad-setting",
            key="max_tokens",
        )
    prompts = [_prompt(each, rules, is_scored) for each in _prompts(body.prompt)]
    requests = [Request(0, (), decoding, body.seed or 0, prompt.text) for prompt in prompts]
    asked = schema.several(body, requests)
    echoes = [replace(each, n_new=n_new if is_scored else None) for each in prompts] if body.echo else []
    return ParsedRequest(
        asked,
        schema.stop_texts(body),
        body.stream,
        schema.with_usage(body),
        ignored=ignored,
        n_top=body.logprobs,
        echoes=tuple(each for each in echoes for _ in range(len(asked) // len(prompts))),
    )


def _prompts(given: str | Sequence[str | int | list[int]]) -> list[str | list[int]]:
    """Return the prompts, each as text or tokens."""
    if isinstance(given, str):
        return [given]
    tokens = [each for each in given if isinstance(each, int)]
    if tokens:
        if len(tokens) < len(given):
            raise UsageError("prompt mixes tokens with texts", key="prompt")
        return [tokens]
    return [each for each in given if not isinstance(each, int)] or [""]


def _prompt(given: str | list[int], rules: Rules, is_scored: bool) -> Echo:
    """Return a prompt. is_scored: nothing is generated, so that tokens need not be those of a text."""
    if not given:
        raise UsageError("prompt is empty: there is nothing to continue", key="prompt")
    if isinstance(given, str):
        return Echo(given)
    if (scorer := rules.scorer) is None:
        raise UsageError("this model's engine takes texts only", key="prompt")
    if len(given) > scorer.context_length:
        raise UsageError(
            f"This model's maximum context length is {scorer.context_length} tokens. "
            f"However, your prompt has {len(given)} tokens",
            code=ContextOverflow.code,
            key="prompt",
        )
    return Echo(scorer.decode(given) if is_scored else scorer.text_of(given), tuple(given))


class TextFormat(ChatFormat):
    """Formats answers for /v1/completions."""

    kind = chunk = "text_completion"

    def _piece(self, number: int, text: str, is_first: bool) -> dict[str, object]:  # noqa: ARG002
        return {"index": number, "text": text, "logprobs": None, "finish_reason": None}

    def _last(self, number: int, answer: FinishedAnswer) -> dict[str, object]:
        return self._choice(number, answer) | {"text": ""}

    def _choice(self, number: int, answer: FinishedAnswer) -> dict[str, object]:
        logs = _logprobs(answer.logs)
        return {"index": number, "text": answer.text, "logprobs": logs, "finish_reason": answer.reason}


def _logprobs(logs: Sequence[TokenLog] | None) -> dict[str, object] | None:
    """Return the scores in four lists, an entry a token. The token itself is listed with the likeliest."""
    if logs is None:
        return None
    offsets, end = [], 0
    for each in logs:
        offsets.append(end)
        end += len(each.text)
    return {
        "tokens": [each.text for each in logs],
        "token_logprobs": [each.log for each in logs],
        "top_logprobs": [_top(each) for each in logs],
        "text_offset": offsets,
    }


def _top(each: TokenLog) -> dict[str, float] | None:
    if each.log is None:
        return None
    top: dict[str, float] = {}
    for text, log in (*each.top, (each.text, each.log)):
        top[text] = max(log, top.get(text, log))  # different tokens may have one text
    return top
