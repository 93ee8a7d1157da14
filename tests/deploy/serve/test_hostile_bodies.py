"""Bodies of any shape: each endpoint refuses what it cannot read, and fails at none."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("starlette")

from heredity.application.spec import Application
from heredity.core.errors import UsageError
from heredity.core.records import Tool
from heredity.deploy.serve import chat, completions, embeddings, messages, responses
from heredity.deploy.serve.schema import Rules

DESK = Application("desk", "You help.", tools=(Tool("pay", "Pays."),))
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
WORDS = [
    "type",
    "text",
    "content",
    "role",
    "user",
    "assistant",
    "tool",
    "function",
    "name",
    "arguments",
    "parameters",
    "id",
    "call_id",
    "tool_use_id",
    "input",
    "output",
    "tool_calls",
    "tool_call_id",
    "message",
    "function_call",
    "function_call_output",
    "tool_use",
    "tool_result",
    "custom",
    "auto",
]
KEYS = st.sampled_from(WORDS)
VALUES = st.recursive(
    LEAVES | KEYS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5)
)
BODIES = (
    chat.ChatBody,
    completions.TextBody,
    responses.ResponsesBody,
    messages.MessagesBody,
    embeddings.EmbeddingsBody,
)
OTHERS = ("logit_bias", "top_k", "response_format", "reasoning_effort", "previous_response_id")
FIELDS = sorted({*OTHERS, *(field for body in BODIES for field in body.__struct_fields__)})


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=6),
    st.lists(st.dictionaries(KEYS, VALUES, max_size=5), max_size=4),
    st.sampled_from([Rules(), Rules(DESK), Rules(DESK, ignores=True)]),
)
def test_a_body_of_any_shape_is_read_or_refused(body: dict[str, Any], turns: list[Any], rules: Rules) -> None:
    given_ = {"model": "m", "max_tokens": 5, "messages": turns, "input": turns} | body
    for parse in (chat.parse, completions.parse, responses.parse, messages.parse):
        with suppress(UsageError):
            assert parse(given_, rules).requests
    with suppress(UsageError):
        assert embeddings.parse(given_).texts
