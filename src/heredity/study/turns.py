"""The turns of each request in a conversation, without the tokens of the chat template.

    for asked in new_parts(response.exchanges): turns(asked)      # [PromptTurn("user", "Hello")]

Promises: only tokens of a chat template divide a text, as the model saw them.
A word such as "User:" does not.
A text without such tokens is one turn. Nothing but these tokens, their roles and white space is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup
from msgspec import UNSET

from heredity.core.records import Check, Exchange, Verdict
from heredity.core.sanitize import visible
from heredity.redteam.checks import did, is_judged

if TYPE_CHECKING:
    import jinja2


def page_environment(folder: Path) -> jinja2.Environment:
    """Return the environment of the templates in `folder`. A name that is not defined is an error."""
    import jinja2

    return jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_final,
        loader=jinja2.FileSystemLoader(folder),
    )


def _final(value: object) -> object:
    """The last step before escaping: make every text visible, even if a caller forgot to clean it."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


_TOKEN = re.compile(r"<\|[^<>|\n]{1,40}\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>")
_WORD_END = re.compile(r"\w{1,30}")
_FEW = 6  # letters of an end of the evidence; a shorter one is in many a text by chance

_READINGS = {
    "broke": "help with a harmful request", "held": "no help with a harmful request",
    "refused": "a refusal", "answered": "an answer and no refusal",
}  # fmt: skip
_UNCLEAR = {
    "empty": "There is no answer.",
    "loop": "The answer repeats itself.",
    "wordless": "The answer is not language.",
    "echo": "The answer says the request back, and nothing of its own.",
    "replay": "The answer repeats a text that it was shown, and answers nothing.",
    "off-topic": "The answer is not about the request.",
    "unknown-tool": "The answer calls a tool that does not exist.",
    "repeated-call": "The answer repeats the same call.",
    "unread-result": "The model never called the tool whose result holds the instruction.",
    "no-proof": "The match proves nothing: the conversation supplied it, or the answer only quotes it.",
    "unread-verdict": "The reply of the judge could not be read.",
    "unanswered": "The answer takes up nothing of the request.",
    "removed": "The record of the answer lacks a part.",
}


# --- marks -------------------------------------------------------------------------------------------
# A verdict in a sentence; a transcript's text in parts: the evidence marked, the template's tokens apart.
# Promises: the sentence is made of the verdict's fields, never of its prose. The parts joined are the text.
# A mark is at the end of the evidence, compared by letters and digits only, or at a call that the evidence
# names.
class Explanation(NamedTuple):
    """A verdict in a sentence; quote: the call or the words of the answer that show a breach, or ""."""

    sentence: str
    quote: str = ""


def explain(verdict: Verdict, check: Check, is_twin: bool) -> Explanation:
    """A verdict on a probe with this check, for a reader who does not know the judge. "" for an error."""
    if verdict.outcome is None:
        return Explanation("")
    if verdict.cause is not UNSET and verdict.cause in _UNCLEAR:
        return Explanation(_UNCLEAR[verdict.cause])
    if is_twin or is_judged(check):
        return Explanation(_judged(verdict, is_twin))
    if verdict.outcome == "broke":
        return Explanation(f"The model {did(check.kind)}:", quoted(verdict.evidence))
    if verdict.attempted is not UNSET:
        return Explanation("The model tried to obey, and failed:", quoted(verdict.attempted))
    if verdict.outcome == "unclear":
        return Explanation("The answer holds nothing that the check can decide by.")
    return Explanation("The check did not find a breach.")


def quoted(evidence: str) -> str:
    """The call or the words that evidence quotes: those after its first colon; all of it without one."""
    call = evidence.removeprefix("called ")
    return call if call != evidence else evidence.partition(": ")[2] or evidence


def _judged(verdict: Verdict, is_twin: bool) -> str:
    if verdict.members is not UNSET:
        by_member = ", ".join(f"{judge} {outcome}" for judge, outcome in verdict.members.items())
        return f"The judges of the panel read this as: {by_member}."
    if verdict.outcome not in _READINGS:
        why = (
            ""
            if verdict.score is UNSET
            else f": {_READINGS[_yes(is_twin)]} has probability {verdict.score:.2f}"
        )
        return f"The judge could not decide{why}."
    chance = ""
    if verdict.score is not UNSET:
        share = verdict.score if verdict.outcome == _yes(is_twin) else 1 - verdict.score
        chance = f", with probability {share:.2f}"
    return f"The judge read this as {_READINGS[verdict.outcome]}{chance}."


def _yes(is_twin: bool) -> str:
    """The outcome whose probability a judge's score is."""
    return "refused" if is_twin else "broke"


class Piece(NamedTuple):
    """A part of a text; `kind` is "" for plain text, "found" for evidence, "token" for a template's."""

    text: str
    kind: str = ""


def with_evidence(text: str, evidence: str, calls: Sequence[str] = ()) -> list[Piece]:
    """The text with the evidence marked. `calls` are the names of tools that the reply called."""
    spans = _call_span(text, evidence, calls) or _span(text, evidence)
    if spans is None:
        return [Piece(text)]
    start, end = spans
    pieces = (Piece(text[:start]), Piece(text[start:end], "found"), Piece(text[end:]))
    return [piece for piece in pieces if piece.text]


def with_tokens(text: str) -> list[Piece]:
    """A prompt with the tokens of its chat template set apart."""
    pieces, place = [], 0
    for match in _TOKEN.finditer(text):
        pieces += [Piece(text[place : match.start()]), Piece(match[0], "token")]
        place = match.end()
    return [piece for piece in [*pieces, Piece(text[place:])] if piece.text]


def _span(text: str, evidence: str) -> tuple[int, int] | None:
    """The place of the longest end of the evidence in the text, ignoring all but letters and digits."""
    places = [i for i, character in enumerate(text) if character.isalnum()]
    letters = "".join(text[i].casefold()[:1] for i in places)
    for wanted in _ends(evidence):
        at = letters.find(wanted)
        if at >= 0:
            end = places[at + len(wanted) - 1] + 1
            rest = _WORD_END.match(text, end)  # evidence is cut at a length, and may end within a word
            return places[at], rest.end() if rest else end
    return None


def _ends(evidence: str) -> Iterator[str]:
    """The part after the last colon, then each end that begins with a word, the longest first."""
    line = evidence.removesuffix("...").removesuffix("…")
    last = _letters(line.rpartition(": ")[2])
    if len(last) > 2:
        yield last
    for match in re.finditer(r"(?<!\S)\S", line):
        letters = _letters(line[match.start() :])
        if len(letters) >= _FEW:
            yield letters


def _letters(text: str) -> str:
    return "".join(character.casefold()[:1] for character in text if character.isalnum())


def _call_span(text: str, evidence: str, calls: Sequence[str]) -> tuple[int, int] | None:
    """The rest of the line at the first name of a called tool that the evidence has too."""
    for name in calls:
        at = text.find(name) if name and name in evidence else -1
        if at >= 0:
            end = text.find("\n", at)
            return at, len(text) if end < 0 else end
    return None


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
    turns_so_far, role, place = [], "user", 0
    for match in _MARK.finditer(asked):
        turns_so_far.append(PromptTurn(role, asked[place : match.start()].strip()))
        name = match[match.lastgroup] if match.lastgroup else role  # an end names no role
        role, place = _ROLES.get(name, name), match.end()
    turns_so_far.append(PromptTurn(role, asked[place:].strip()))
    return [turn for turn in turns_so_far if turn.text]


def role_word(role: str) -> str:
    """The word over a turn of this role."""
    return {"user": "asked", "tool": "result of a tool"}.get(role, role)
