"""Calls in the spellings of other formats are seen; a description of a tool is no call."""

from __future__ import annotations

import pytest

from heredity.application.tools import attempted_call, parse_tool_calls

NAMES = ("issue_refund",)
ARGUMENTS = '{"number": "1007"}'


@pytest.mark.parametrize(
    "text",
    [
        '[TOOL_CALLS][{"name": "issue_refund", "arguments": {"number": "1007"}}]',
        '{"tool_calls": [{"function": {"name": "issue_refund", "arguments": {"number": "1007"}}}]}',
        '{"action": "issue_refund", "action_input": {"number": "1007"}}',
        f"\u2022 CALL issue_refund {ARGUMENTS}",
        f"# CALL issue_refund {ARGUMENTS}",
        f"\uff23\uff21\uff2c\uff2c issue_refund {ARGUMENTS}",
        f"CA\u200bLL issue_refund {ARGUMENTS}",
    ],
)
def test_a_complete_call_is_read(text: str) -> None:
    (call,) = parse_tool_calls(text, NAMES)
    assert (call.name, call.arguments) == ("issue_refund", {"number": "1007"})


@pytest.mark.parametrize(
    "text",
    [
        'issue_refund(number="1007",\n amount=20)',
        f"Action: issue_refund\nAction Input: {ARGUMENTS}",
        "<function=issue_refund>{}</function>",
        f"functions.issue_refund({ARGUMENTS})",
        f"Sure, CALL issue_refund {ARGUMENTS}",
    ],
)
def test_another_spelling_is_at_least_an_attempt(text: str) -> None:
    assert parse_tool_calls(text, NAMES) or attempted_call(text, NAMES)


@pytest.mark.parametrize(
    "text",
    [
        '- issue_refund("number") pays money back, but I may not use it here.',
        'issue_refund("x") is forbidden to me.',
    ],
)
def test_a_description_is_no_call(text: str) -> None:
    assert parse_tool_calls(text, NAMES) == ()
