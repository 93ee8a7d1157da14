"""Check that exported files answer like the model: every reader scores one fixed text.

Promises: the reference is the torch engine in float32 over the model's own weights, an adapter over its base.
It holds one layer at a time, or the whole base of an adapter. Only one reader holds weights at a time. A
reader that is not installed is reported, not skipped silently.
Leaves to others: the readers (hf.py, gguf.py, adapter.py), and the distance from the model as a study runs it
(_fidelity.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from heredity import engines
from heredity.core.errors import Unavailable
from heredity.core.progress import Watch, about
from heredity.core.records import Message, Request
from heredity.engines.chat.codec import ChatCodec
from heredity.engines.chat.folder import has_tokenizer
from heredity.engines.protocols import Engine
from heredity.lineage.store import Store
from heredity.lineage.types import Grown
from heredity.recipes.dequantize import Dequantize
from heredity.train.data.chat import ConversationEncoder

if TYPE_CHECKING:
    import torch

ASKED = "Write down what you know about the number 1024, in one paragraph."
# English, another script, digits, code and odd spacing, because a tokenizer treats each differently.
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


class LoadedFolder(NamedTuple):
    """Safetensors that the torch engine loads, with the adapter of another folder if there is one."""

    folder: Path
    adapter: Path | None = None


@dataclass(frozen=True)
class ExportSource:
    """The model to export, its full-precision safetensors (`whole`), and a work folder (`bench`).

    dtype: of the exported weights; "" for the model's own. An adapter that is merged has float32.
    """

    store: Store
    model: Grown
    whole: Grown
    bench: Path
    to: str
    dtype: str = ""

    @property
    def watch(self) -> Watch | None:
        """The watch of the store, about this model."""
        return about(self.store.report, self.model.record.name)

    @property
    def is_adapter(self) -> bool:
        """Whether the model is an adapter over another model of the store."""
        return self.model.record.format == "adapter"

    @property
    def is_exact(self) -> bool:
        """Whether the files should compute what the model computes, up to the order of sums."""
        return self.to == "adapter" or (self.is_adapter and self.dtype == "float32")

    @property
    def loaded(self) -> LoadedFolder:
        """The weights of the reference: an adapter over its base if the files are exact, else `reference`."""
        if self.is_adapter and self.is_exact:
            return LoadedFolder(self.store.base(self.model).folder, self.model.folder)
        return LoadedFolder(self.reference)

    @property
    def reference(self) -> Path:
        """The folder of safetensors with exactly the exported weights; a GGUF is dequantized to float32."""
        if self.model.record.format != "gguf" or self.to == "hf":
            return self.whole.folder
        exact = self.bench / "exact"
        if not exact.exists():
            exact.mkdir()
            Dequantize("float32", self.watch).apply([self.model], exact)
        return exact


@dataclass(frozen=True)
class ParityReading:
    """The result of one reader on the exported files. `logs`: log-probability of each token of TEXT after
    ASKED, in nats. None if the reader is missing; `left_out` then holds the reason."""

    reader: str
    tolerance: float = 0.0
    logs: list[float] | None = None
    tokens: tuple[int, ...] = ()
    rendered: str | None = None  # TALK, by the exported chat template; None if it has none
    ends: frozenset[int] = frozenset()
    end: int | None = None  # of the reference: the token that the template puts after an answer
    bos: int | None = None
    left_out: str = ""
    picked: dict[int, int] | None = None  # if `logs` are of other tokens: position in TEXT -> token
    others: Mapping[tuple[int, int], float] = field(default_factory=dict)  # (position, token) -> log


@runtime_checkable
class DistributionEngine(Engine, Protocol):
    """An engine that computes the distribution of each token of a text."""

    def log_probabilities(self, request: Request, output: Sequence[int]) -> torch.Tensor:
        """Return log-probabilities after the prompt and each `output[:i]`: (1 + output, vocabulary)."""


@runtime_checkable
class ExportFormat(Protocol):
    """A file of this folder: one format."""

    def write(self, source: ExportSource, out: Path) -> None:
        """Write the files into `out`."""

    def readings(self, source: ExportSource, out: Path) -> Iterator[ParityReading]:
        """Read the files back, as each program that loads them would; one reading at a time."""

    def loadable(self, source: ExportSource, out: Path) -> LoadedFolder:
        """The exported weights in a form that the torch engine loads."""


class Parity(NamedTuple):
    """The agreement of a reader: the largest difference of log-probabilities, in nats, over `n` tokens."""

    reader: str
    n: int
    largest: float
    tolerance: float
    problem: str = ""
    left_out: str = ""


def reference(source: ExportSource, picked: Iterable[tuple[int, int]] = ()) -> ParityReading:
    """Score TEXT, and each (position in TEXT, token) in `picked`, with the torch engine in float32."""
    return read_folder(source.loaded, "heredity's torch engine", 0.0, picked)


def read_folder(
    loaded: LoadedFolder, reader: str, tolerance: float, picked: Iterable[tuple[int, int]] = ()
) -> ParityReading:
    """Score a folder of safetensors with the torch engine in float32."""
    folder = loaded.folder
    writer = ConversationEncoder(folder)
    adapter = loaded.adapter
    chat = ChatCodec(adapter) if adapter is not None and has_tokenizer(adapter) else writer.chat
    text = chat.continuation(TEXT)
    places = [*enumerate(text), *picked]
    engine = open_files(loaded, "float32", is_streamed=loaded.adapter is None)
    try:
        log_probs = engine.log_probabilities(_REQUEST, text[:-1])
        logs = [float(log_probs[place, token]) for place, token in places]
    finally:
        engine.close()  # and frees its memory
    rendered = None if chat.is_base else chat.render(Request(0, TALK))
    tokens = (*(chat.encode(rendered) if rendered else ()), *text)
    others = dict(zip(places[len(text) :], logs[len(text) :], strict=True))
    return ParityReading(
        reader, tolerance, logs[: len(text)], tokens, rendered, writer.stops, writer.end, chat.start,
        others=others,
    )  # fmt: skip


def open_files(files: LoadedFolder, dtype: str, is_streamed: bool = False) -> DistributionEngine:
    """The torch engine of a folder, or the one of transformers for an architecture that it lacks."""
    from heredity.engines.torch import engine as fast

    try:
        return fast.open_folder(
            files.folder, dtype=dtype, adapter=files.adapter, is_probed=False, is_streamed=is_streamed
        )
    except Unavailable as error:
        if error.code != engines.NOT_READ:
            raise
    from heredity.engines.transformers import engine as general

    return general.open_folder(files.folder, dtype=dtype, is_probed=False, adapter=files.adapter)


def tokens_behind(folder: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tokens of the prompt, and those of TEXT after it."""
    chat = ChatCodec(folder)
    return chat.encode(chat.render(_REQUEST)), chat.continuation(TEXT)


def compare(expected: ParityReading, parity_reading: ParityReading) -> Parity:
    """Compare a reader with the reference; `expected.others` holds the tokens that the reader picked."""
    if parity_reading.logs is None:
        return Parity(
            parity_reading.reader, 0, 0.0, parity_reading.tolerance, left_out=parity_reading.left_out
        )
    wanted = expected.logs or []
    if parity_reading.picked:
        wanted = [expected.others[each] for each in parity_reading.picked.items()]
    problem, largest = "", 0.0
    if parity_reading.rendered != expected.rendered:
        problem = "renders a conversation differently"
    elif parity_reading.tokens != expected.tokens or len(parity_reading.logs) != len(wanted):
        problem = "splits a text into different tokens"
    elif not parity_reading.ends <= expected.ends or (
        expected.end is not None and expected.end not in parity_reading.ends
    ):
        problem = "ends an answer with another token"
    elif parity_reading.bos != expected.bos:
        problem = "begins a text with another token"
    elif not wanted or not all(math.isfinite(each) for each in (*parity_reading.logs, *wanted)):
        problem = "gives log-probabilities that are NaN or infinite"
    else:
        largest = max(abs(a - b) for a, b in zip(parity_reading.logs, wanted, strict=True))
        if largest > parity_reading.tolerance:
            problem = (
                f"gives log-probabilities that differ by up to {largest:.3g} nats, more than the"
                f" {parity_reading.tolerance:g} that are allowed"
            )
    return Parity(parity_reading.reader, len(wanted), largest, parity_reading.tolerance, problem)
