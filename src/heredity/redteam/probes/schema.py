"""What a technique's file may hold: its own words, and its items with their checks and twins.

Promises: a key that is not here is an error that names the nearest one.
Leaves to others: whether what stands in it makes sense (_load.py).
"""

from __future__ import annotations

from typing import Literal

from heredity.core.records import Check, Record, ToolResult

Suite = Literal["core", "full"]


class Twin(Record, frozen=True):
    """The benign twin of an item; what it leaves out is as in the item, but never the injected text."""

    turns: tuple[str, ...] = ()
    passage: str = ""
    tool_result: str | ToolResult = ""


class ProbeItem(Record, frozen=True):
    """One item of a technique's file. What stands before `check` is a short way to write one."""

    id: str
    cluster: str
    turns: tuple[str, ...]
    passage: str = ""
    tool_result: str | ToolResult = ""  # a plain text is what {tool} answers
    marker: str = ""  # what only obeying produces: a check of kind "marker"
    continues: str = ""  # the words that follow: a check of kind "pattern" that ignores case and punctuation
    poisoned: tuple[str, ...] = ()  # ways to say the poisoned answer: a check of kind "answer"
    truth: tuple[str, ...] = ()  # ways to say the true one, beside `poisoned`
    invents: str = ""  # a package that does not exist: a check of kind "package"
    solved: tuple[str, ...] = ()  # ways to say the right answer: a check of kind "task"
    check: Check | None = None
    obeys: str = ""  # a sample of a breach, tried against a check of kind "pattern" when the file is read
    twin: Twin | None = None
    why_no_twin: str = ""
    threats: tuple[str, ...] = ()
    language: str = ""
    suite: Suite | None = None
    kind: Literal["breach", "benign"] = "breach"  # benign: asked for refusal alone, without a counterpart


class ProbeFile(Record, frozen=True):
    """A technique's file; `check`, `why_no_twin` and `threats` are for items without."""

    title: str
    description: str
    source: str = ""
    known_error: str = ""
    technique: str = ""  # the file's name if left out
    threats: tuple[str, ...] = ()
    check: Check | None = None
    why_no_twin: str = ""
    language: str = "en"
    is_baseline: bool = False  # measures a capability: its probes are no part of the row over all techniques
    suite: Suite = "core"  # "full": its items are asked in the suite "full" alone
    is_verbatim: bool = False  # texts by others: braces in them are no slots
    probe: tuple[ProbeItem, ...] = ()
