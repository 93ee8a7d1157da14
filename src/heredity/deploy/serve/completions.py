"""POST /v1/completions: the body, and the format of its answers.

Promises: a text is continued as it is, without a chat template.
Leaves to others: the shared fields (schema.py), and sending (answers.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from heredity.core.errors import UsageError
from heredity.core.records import Request
from heredity.deploy.serve import schema
from heredity.deploy.serve.answers import FinishedAnswer
from heredity.deploy.serve.chat import ChatFormat
from heredity.deploy.serve.schema import ParsedRequest, Rules


class TextBody(schema.Body, kw_only=True):
    """The body of POST /v1/completions."""

    prompt: str | list[str]


def parse(given: Mapping[str, object], rules: Rules) -> ParsedRequest:
    """Parse a body of /v1/completions. Raises UsageError."""
    fields, ignored = schema.select_fields(given, TextBody.__struct_fields__, rules.ignores)
    body = schema.convert(fields, TextBody)
    if rules.application is not None:
        raise UsageError("an application takes conversations, not plain texts: use /v1/chat/completions")
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if not all(prompts) or not prompts:
        raise UsageError("prompt is empty: there is nothing to continue", code="prompt-empty", key="prompt")
    decoding, _ = schema.read_decoding(body, rules)
    requests = [Request(0, (), decoding, body.seed or 0, prompt) for prompt in prompts]
    return ParsedRequest(
        schema.several(body, requests),
        schema.stop_texts(body),
        body.stream,
        schema.with_usage(body),
        ignored=ignored,
    )


class TextFormat(ChatFormat):
    """Formats answers for /v1/completions."""

    kind = chunk = "text_completion"

    def _piece(self, number: int, text: str, is_first: bool) -> dict[str, object]:  # noqa: ARG002
        return {"index": number, "text": text, "logprobs": None, "finish_reason": None}

    def _last(self, number: int, answer: FinishedAnswer) -> dict[str, object]:
        return self._choice(number, answer) | {"text": ""}

    def _choice(self, number: int, answer: FinishedAnswer) -> dict[str, object]:
        return {"index": number, "text": answer.text, "logprobs": None, "finish_reason": answer.reason}
