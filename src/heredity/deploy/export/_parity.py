"""Whether what was written says what the model says: one fixed text, read by every reader.

Promises: the reference is the torch engine in float32 over the model's own weights, one layer of them in
memory at a time; no two readers hold weights together; a reader that is not installed is named, not passed
over.
Leaves to others: how a reader reads (hf.py, gguf.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from heredity.core.records import Message, Request
from heredity.engines.chat.codec import ChatCodec
from heredity.lineage.store import Store
from heredity.lineage.types import Grown
from heredity.recipes.dequantize import Dequantize
from heredity.train.data.chat import ConversationEncoder

ASKED = "Write down what you know about the number 1024, in one paragraph."
# English, another script, digits, code and odd spacing: each is split into tokens in its own way.
TEXT = (
    "1024 is 2 to the 10th power: 2**10 == 1_024. In bytes that is one KiB - don't mix it up with 1,000!\n\n"
    "\tfor i in range(1024):\n\t\tprint(f'{i:04d}')\n\nZwölf Boxkämpfer jagen Eva über den Deich; 你好, мир."
)
TALK = (
    Message("system", "You are the assistant of a bakery."),
    Message("user", "Good morning!\nWhat is  fresh?"),
    Message("assistant", "Rye bread."),
    Message("user", ASKED),
)
_REQUEST = Request(0, (Message("user", ASKED),))


@dataclass(frozen=True)
class ExportSource:
    """What is handed out: the model as it is recorded, and as whole safetensors; a folder to work in."""

    store: Store
    model: Grown
    whole: Grown
    bench: Path
    to: str

    @property
    def reference(self) -> Path:
        """What is handed out, to the last bit, as safetensors: of a GGUF what its blocks stand for."""
        if self.model.record.format != "gguf" or self.to == "hf":
            return self.whole.folder
        exact = self.bench / "exact"
        if not exact.exists():
            exact.mkdir()
            Dequantize("float32").apply([self.model], exact)
        return exact


@dataclass(frozen=True)
class ParityReading:
    """What one reader makes of the files. `logs`: log-probability of each token of TEXT behind ASKED, nats;
    None, with the reason in `left_out`, where the reader was not there to ask."""

    reader: str
    tolerance: float = 0.0
    logs: list[float] | None = None
    tokens: tuple[int, ...] = ()
    rendered: str | None = None  # TALK, by the chat template that was written; None: there is none
    ends: frozenset[int] = frozenset()
    end: int | None = None  # of the reference: the token that the template puts behind an answer
    bos: int | None = None
    left_out: str = ""
    picked: dict[int, int] | None = None  # where `logs` are of other tokens: place in TEXT -> token
    others: Mapping[tuple[int, int], float] = field(default_factory=dict)  # (place, token) -> its log


class Parity(NamedTuple):
    """How a reader agreed: the largest difference of log-probabilities, in nats, over `n` tokens."""

    reader: str
    n: int
    largest: float
    tolerance: float
    problem: str = ""
    code: str = ""  # of the problem
    left_out: str = ""


def reference(source: ExportSource, picked: Iterable[tuple[int, int]] = ()) -> ParityReading:
    """What the torch engine says, in float32, and of each (place in TEXT, token) in `picked` besides."""
    return read_folder(source.reference, "heredity's torch engine", 0.0, picked)


def read_folder(
    folder: Path, reader: str, tolerance: float, picked: Iterable[tuple[int, int]] = ()
) -> ParityReading:
    """A folder of safetensors as the torch engine reads it, in float32."""
    from heredity.engines.torch import engine as engines

    writer = ConversationEncoder(folder)
    chat = writer.chat
    said = chat.continuation(TEXT)
    places = [*enumerate(said), *picked]
    engine = engines.open_folder(folder, dtype="float32", is_probed=False, is_streamed=True)
    try:
        logs = engine.log_probability(_REQUEST, said[:-1], places)
    finally:
        engine.close()  # and gives back what it held
    rendered = None if chat.is_base else chat.render(Request(0, TALK))
    tokens = (*(chat.encode(rendered) if rendered else ()), *said)
    others = dict(zip(places[len(said) :], logs[len(said) :], strict=True))
    return ParityReading(
        reader, tolerance, logs[: len(said)], tokens, rendered, writer.stops, writer.end, chat.start,
        others=others,
    )  # fmt: skip


def tokens_behind(folder: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens of what is asked, and those of TEXT behind it."""
    chat = ChatCodec(folder)
    return chat.encode(chat.render(_REQUEST)), chat.continuation(TEXT)


def compare(expected: ParityReading, found: ParityReading) -> Parity:
    """Both, side by side; `expected` knows of what `found` has picked."""
    if found.logs is None:
        return Parity(found.reader, 0, 0.0, found.tolerance, left_out=found.left_out)
    wanted = expected.logs or []
    if found.picked:
        wanted = [expected.others[each] for each in found.picked.items()]
    problem, code, largest = "", "", 0.0
    if found.rendered != expected.rendered:
        problem, code = "renders a conversation otherwise", "export-renders-otherwise"
    elif found.tokens != expected.tokens or len(found.logs) != len(wanted):
        problem, code = "reads a text as other tokens", "export-tokens-differ"
    elif not found.ends <= expected.ends or (expected.end is not None and expected.end not in found.ends):
        problem, code = "ends an answer with another token", "export-ends-otherwise"
    elif found.bos != expected.bos:
        problem, code = "begins a text with another token", "export-begins-otherwise"
    elif not wanted or not all(math.isfinite(each) for each in (*found.logs, *wanted)):
        problem, code = "gives log-probabilities that are no numbers", "export-not-finite"
    else:
        largest = max(abs(a - b) for a, b in zip(found.logs, wanted, strict=True))
        if largest > found.tolerance:
            code = "export-differs"
            problem = (
                f"gives log-probabilities that differ by up to {largest:.3g} nats, more than the"
                f" {found.tolerance:g} that are allowed"
            )
    return Parity(found.reader, len(wanted), largest, found.tolerance, problem, code)
