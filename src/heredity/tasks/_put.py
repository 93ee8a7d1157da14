"""How an item is put to a model: as a conversation, or as a text to go on from.

chat   each example a turn of the user and one of the assistant, then the item as the user's last turn; the
       assistant's turns begin with the task's `begin`
plain  each example a block of text with its answer, then the item's own, up to where the answer begins

Promises: the same item, examples and form give the same request; an answer in a plain text is its first line.
Leaves to others: the model's chat template (engines/).
"""

from __future__ import annotations

from typing import Literal

from heredity.metrics import LETTERS
from heredity.metrics import load as metric_of
from heredity.records import Decoding, Message, Record, Request, digest
from heredity.tasks import Item, Task

Form = Literal["chat", "plain"]


class Asked(Record, frozen=True):
    """An item as it is put: `key` names it whole, the model aside."""

    key: str
    request: Request
    continuations: tuple[str, ...]  # where the options are scored, each as it would go on, or as it is


def put(task: Task, item: Item, n_shots: int, form: Form) -> Asked:
    """The item behind its first `n_shots` examples, greedily decoded."""
    shots = [shot for shot in task.shots if shot.group == item.group][:n_shots]
    decoding = Decoding(max_tokens=task.max_tokens)
    if form == "plain":
        blocks = [
            _filled(task.plain, task, shot) + _gap(task.plain) + _answer(task, shot) + "\n\n"
            for shot in shots
        ]
        text = "".join(blocks) + _filled(task.plain, task, item)
        request = Request(0, (), decoding, prefill=text)
    else:
        said = [message for shot in shots for message in _turns(task, shot)]
        asked, begin = Message("user", _filled(task.prompt, task, item)), _filled(task.begin, task, item)
        request = Request(0, (*said, asked), decoding, prefill=begin, n_shared=len(said))
    way, gap = metric_of(task.metric).ASKS, _gap(task.plain if form == "plain" else task.begin)
    gap = "" if way == "match" else gap
    continuations = () if way == "reply" else tuple(gap + option for option in item.options)
    return Asked(digest([request, continuations]), request, continuations)


def said(text: str, form: Form) -> str:
    """The answer in what a model said; in a plain text, which goes on, its first line that holds a word."""
    if form == "chat":
        return text.strip()
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _turns(task: Task, shot: Item) -> tuple[Message, Message]:
    answer = _filled(task.begin, task, shot) + _gap(task.begin) + _answer(task, shot)
    return Message("user", _filled(task.prompt, task, shot)), Message("assistant", answer)


def _gap(before: str) -> str:
    """A space between a template and the answer behind it, unless a turn or a line begins there."""
    return "" if not before or before.endswith("\n") else " "


def _answer(task: Task, item: Item) -> str:
    """The right answer in the form that is asked for."""
    if metric_of(task.metric).SHOWS_LETTERS:
        return LETTERS[item.options.index(item.references[0])]
    return item.references[0]


def _filled(template: str, task: Task, item: Item) -> str:
    """Slots by plain replacement, in one pass: braces in an item are text."""
    values = {**task.groups.get(item.group, {}), "input": item.input, "options": _options(item)}
    parts = template.split("{")
    filled = parts[0]
    for part in parts[1:]:
        name, closed, rest = part.partition("}")
        filled += values[name] + rest if closed and name in values else "{" + part
    return filled


def _options(item: Item) -> str:
    return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, item.options, strict=False))
