"""The turns of each request in a conversation, without the tokens of the chat template.

    for asked in new_parts(response.exchanges): turns(asked)      # [PromptTurn("user", "Hello")]

Promises: only tokens of a chat template divide a text, as the model saw them.
A word such as "User:" does not.
A text without such tokens is one turn. Nothing but these tokens, their roles and white space is left out.
Leaves to others: cutting long texts, and showing the text with its tokens on demand (report/, view/).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from heredity.core.records import Exchange

# The start of a turn, with its role, or the end of one: ChatML, Llama, Gemma, Phi and Zephyr, Mistral.
_MARK = re.compile(
    r"<\|im_start\|>[ ]?(?P<chatml>\w+)\n?"
    r"|<\|start_header_id\|>(?P<llama>\w+)<\|end_header_id\|>\s*"
    r"|<start_of_turn>(?P<gemma>\w+)\n?"
    r"|<\|(?P<named>system|developer|user|assistant|tool|tools|calls|observation)\|>\n?"
    r"|(?P<mistral>\[/?INST\])"
    r"|</?s>|<bos>|<eos>|<end_of_turn>"
    r"|<\|(?:im_end|eot_id|eom_id|end|begin_of_text|end_of_text|endoftext)\|>"
)
_ROLES = {
    "model": "assistant", "ipython": "tool", "observation": "tool", "[INST]": "user", "[/INST]": "assistant",
}  # fmt: skip


class PromptTurn(NamedTuple):
    """A turn. `role`: "user", "assistant", "tool", "system" or another word of the template."""

    role: str
    text: str


def new_parts(exchanges: Sequence[Exchange]) -> Iterator[str]:
    """The new part of each request, because a later prompt repeats the conversation so far.

    A prefill is left out: engines may render it as the end of the prompt.
    """
    prefix, before = "", ""
    for exchange in exchanges:
        prompt = exchange.prompt.removesuffix(exchange.prefill)
        is_longer = exchange.prefix == prefix and before and prompt.startswith(before)
        yield prompt[len(before) :] if is_longer else prompt
        prefix, before = exchange.prefix, prompt + exchange.prefill + exchange.text


def turns(asked: str) -> list[PromptTurn]:
    """The turns of a part of a prompt. A text before the first role is the user's.

    The start of the answer at its end has no text, and is left out.
    """
    found, role, place = [], "user", 0
    for match in _MARK.finditer(asked):
        found.append(PromptTurn(role, asked[place : match.start()].strip()))
        name = match[match.lastgroup] if match.lastgroup else role  # an end names no role
        role, place = _ROLES.get(name, name), match.end()
    found.append(PromptTurn(role, asked[place:].strip()))
    return [turn for turn in found if turn.text]


def role_word(role: str) -> str:
    """The word over a turn of this role."""
    return {"user": "asked", "tool": "result of a tool"}.get(role, role)
