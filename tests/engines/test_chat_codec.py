"""Calls are read in every format that a template teaches, and from no text that holds none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heredity.core.records import ToolCall
from heredity.engines.chat import parse_tool_calls
from tests.support.clock import computing_within


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "refund", "arguments": {"order": 7}}\n</tool_call>',
        'Let me see.\n<tool_call>{"name": "refund", "arguments": "{\\"order\\": 7}"}',
        '<|python_tag|>{"name": "refund", "parameters": {"order": 7}}',
        '[TOOL_CALLS] [{"name": "refund", "arguments": {"order": 7}}]',
    ],
)
def test_every_format_gives_the_same_call(text: str) -> None:
    assert parse_tool_calls(text) == (ToolCall("refund", {"order": 7}),)


def test_a_call_with_broken_arguments_still_counts() -> None:
    assert parse_tool_calls('<tool_call>{"name": "refund", "arguments": {order: 7}</tool_call>') == (
        ToolCall("refund"),
    )


def test_calls_that_never_end_are_read_in_linear_time() -> None:
    """A caller may send them back in each of many messages, and the server reads them between its answers."""
    text = '<tool_call>{"name": "refund", "arguments": {}}</tool_call>' + "<tool_call>" * 9_000
    with computing_within(0.5):  # before it took several seconds
        assert parse_tool_calls(text)[0] == ToolCall("refund")


@pytest.mark.parametrize("text", ["", "I would call refund.", '{"name": "Ann"}', "{}", "[1, 2]"])
def test_prose_and_other_json_are_no_calls(text: str) -> None:
    assert parse_tool_calls(text) == ()


@given(st.text() | st.text(alphabet='<>tool_call{}"name:[]/ \n'))
def test_never_raises(text: str) -> None:
    parse_tool_calls(text)
    parse_tool_calls(f"<tool_call>{text}</tool_call>")
