"""Retrieved passages in a message of the user: put in front of a question, recognized, and taken out.

Promises: a message without passages that were put in is the message from before.
Leaves to others: finding them (index.py), and the other messages (../conversation.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from heredity.core.records import Message, Retrieved

_BEFORE, _BEHIND = "Retrieved document:\n", "\n\n"  # a passage that is shown with a turn
_ASKS = "Question: "  # before the user's text, where passages precede it


def user_message(
    text: str, retrieved: Sequence[Retrieved] = (), passage: str = "", left: Message | None = None
) -> Message:
    """A turn of the user: its text behind the passages that are shown with it.

    passage: that of a probe, which comes before those that were retrieved. left: the turn before, if it got
    no answer.
    """
    passages = [passage.strip()] if passage else []
    passages += map(shown_passage, retrieved)
    shown, data = "", list[tuple[int, int]]()
    for each in passages:
        shown += _BEFORE
        data.append((len(shown), len(shown) + len(each)))
        shown += f"{each}{_BEHIND}"
    made = Message("user", f"{shown}{_ASKS}{text}", data=tuple(data)) if shown else Message("user", text)
    return _joined(left, made)


def shown_passage(retrieved: Retrieved) -> str:
    """A retrieved passage as the model sees it."""
    return f"[{retrieved.citation}]\n{retrieved.text}"


def without_passages(message: Message, is_left_out: Callable[[str], bool]) -> Message:
    """A message of the user without some of the passages shown with it, as if they had not been found."""
    content, text, data, at = message.content, "", list[tuple[int, int]](), 0
    for spans in _turns(message):
        are_passages = _is_passage(message, spans[0][0])
        kept = [span for span in spans if not (are_passages and is_left_out(content[slice(*span)]))]
        text += content[at : spans[0][0]].removesuffix(_BEFORE)
        at = spans[-1][1] + len(_BEHIND) if are_passages else spans[-1][1]
        for low, high in kept:
            text += _BEFORE if are_passages else ""
            data.append((len(text), len(text) + high - low))
            text += content[low:high] + (_BEHIND if are_passages else "")
        if not kept:
            at += len(_ASKS)
    return msgspec.structs.replace(message, content=text + content[at:], data=tuple(data) or UNSET)


def with_passages(message: Message, retrieved: Sequence[Retrieved]) -> Message:
    """A message of the user with these passages in front, as if they had been retrieved for it."""
    if not retrieved:
        return message
    front = user_message("", retrieved)
    assert not isinstance(front.data, UnsetType)
    own = () if isinstance(message.data, UnsetType) else message.data
    before = front.content.removesuffix(_ASKS) if message.content.startswith(_BEFORE) else front.content
    moved = ((low + len(before), high + len(before)) for low, high in own)
    return msgspec.structs.replace(message, content=before + message.content, data=(*front.data, *moved))


def own_words(message: Message) -> str:
    """The words of the user in a message, without passages; "" for results of tools and other roles."""
    if message.role != "user" or isinstance(message.data, UnsetType):
        return message.content if message.role == "user" else ""
    bare = without_passages(message, lambda _: True)
    return bare.content if isinstance(bare.data, UnsetType) else ""


def _turns(message: Message) -> list[list[tuple[int, int]]]:
    """The data of a message: the passages of one turn together, and each result of a tool by itself."""
    turns: list[list[tuple[int, int]]] = []
    for low, high in () if isinstance(message.data, UnsetType) else message.data:
        between = message.content[turns[-1][-1][1] : low] if turns else ""
        if between == _BEHIND + _BEFORE and _is_passage(message, turns[-1][0][0]):
            turns[-1].append((low, high))
        else:
            turns.append([(low, high)])
    return turns


def _is_passage(message: Message, start: int) -> bool:
    return message.content[:start].endswith(_BEFORE)


def _joined(first: Message | None, second: Message) -> Message:
    """Two messages of the user as one."""
    if first is None:
        return second
    text = f"{first.content}\n\n"
    earlier = () if isinstance(first.data, UnsetType) else first.data
    later = () if isinstance(second.data, UnsetType) else second.data
    data = (*earlier, *((low + len(text), high + len(text)) for low, high in later))
    return Message("user", text + second.content, data=data or UNSET)
