"""Whether what was written says what the model says: one fixed text, read by every reader.

Promises: the reference is the torch engine in float32 over the model's own weights; a reader that is not
installed is named, not passed over.
Leaves to others: how a reader reads (hf.py, gguf.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from heredity.lineage import Grown, Store
from heredity.recipes.dequantize import Dequantize
from heredity.records import Message, Request
from heredity.train.documents import Writer

if TYPE_CHECKING:
    from heredity.engines.torch import Torch

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


@dataclass(frozen=True)
class Source:
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
class Reading:
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


class Parity(NamedTuple):
    """How a reader agreed: the largest difference of log-probabilities, in nats, over `n` tokens."""

    reader: str
    n: int
    largest: float
    tolerance: float
    problem: str = ""
    left_out: str = ""


def reference(source: Source) -> Reading:
    """What the torch engine says, in float32."""
    return read_folder(source.reference, "heredity's torch engine", 0.0)


def read_folder(folder: Path, reader: str, tolerance: float) -> Reading:
    """A folder of safetensors as the torch engine reads it, in float32."""
    with exact_engine(folder) as engine:
        (logs,) = engine.score(Request(0, (Message("user", ASKED),)), [TEXT])
    writer = Writer(folder)
    chat = writer.chat
    rendered = None if chat.is_base else chat.render(Request(0, TALK))
    tokens = (*(chat.encode(rendered) if rendered else ()), *chat.continuation(TEXT))
    return Reading(reader, tolerance, logs, tokens, rendered, writer.stops, writer.end, chat.start)


@contextmanager
def exact_engine(folder: Path) -> Iterator[Torch]:
    """The torch engine over a folder, in float32."""
    from heredity.engines import torch as engines

    engine = engines.open_folder(folder, dtype="float32", is_probed=False)
    try:
        yield engine
    finally:
        engine.close()


def _scores(folder: Path, picked: dict[int, int]) -> list[float]:
    request = Request(0, (Message("user", ASKED),))
    with exact_engine(folder) as engine:
        return engine.log_probability(request, engine.tokens_behind(request, TEXT)[1], picked)


def compare(source: Source, expected: Reading, found: Reading) -> Parity:
    """Both, side by side."""
    if found.logs is None:
        return Parity(found.reader, 0, 0.0, found.tolerance, left_out=found.left_out)
    wanted = (_scores(source.reference, found.picked) if found.picked else expected.logs) or []
    problem, largest = "", 0.0
    if found.rendered != expected.rendered:
        problem = "renders a conversation otherwise"
    elif found.tokens != expected.tokens or len(found.logs) != len(wanted):
        problem = "reads a text as other tokens"
    elif not found.ends <= expected.ends or (expected.end is not None and expected.end not in found.ends):
        problem = "ends an answer with another token"
    elif found.bos != expected.bos:
        problem = "begins a text with another token"
    elif not wanted or not all(math.isfinite(each) for each in (*found.logs, *wanted)):
        problem = "gives log-probabilities that are no numbers"
    else:
        largest = max(abs(a - b) for a, b in zip(found.logs, wanted, strict=True))
        if largest > found.tolerance:
            problem = (
                f"gives log-probabilities that differ by up to {largest:.3g} nats, more than the"
                f" {found.tolerance:g} that are allowed"
            )
    return Parity(found.reader, len(wanted), largest, found.tolerance, problem)
