"""Check that exported files answer like the model, and measure their distance from what a study runs.

Parity: every reader scores one fixed text. Fidelity: a study may ask a model in bfloat16, an adapter over its
base, or a GGUF through its dequantized form. Files with other numbers may answer differently. So the studied
model answers 32 fixed prompts greedily, and the files read the same prompts and answers in their own dtype.

Promises: the reference is the torch engine in float32 over the model's own weights, an adapter over its base.
It holds one layer at a time, or the whole base of an adapter. Only one engine holds weights at a time. A
reader that is not installed, or a comparison that does not fit into memory, is reported and not skipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from heredity import engines
from heredity.core import host
from heredity.core.errors import Unavailable
from heredity.core.progress import Watch, about, phase
from heredity.core.records import Decoding, Message, Request
from heredity.engines import Engine
from heredity.engines.chat import ChatCodec, has_tokenizer
from heredity.formats.safetensors_io import read_safetensors
from heredity.lineage.store import Store, load_engine
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
    from heredity.engines import transformers as general

    return general.open_folder(files.folder, dtype=dtype, is_probed=False, adapter=files.adapter)


def tokens_behind(folder: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tokens of the prompt, and those of TEXT after it."""
    chat = ChatCodec(folder)
    return chat.encode(chat.render(_REQUEST)), chat.continuation(TEXT)


def compare(expected: ParityReading, reading: ParityReading) -> Parity:
    """Compare a reader with the reference; `expected.others` holds the tokens that the reader picked."""
    if reading.logs is None:
        return Parity(reading.reader, 0, 0.0, reading.tolerance, left_out=reading.left_out)
    wanted = expected.logs or []
    if reading.picked:
        wanted = [expected.others[each] for each in reading.picked.items()]
    problem, largest = "", 0.0
    if reading.rendered != expected.rendered:
        problem = "renders a conversation differently"
    elif reading.tokens != expected.tokens or len(reading.logs) != len(wanted):
        problem = "splits a text into different tokens"
    elif not reading.ends <= expected.ends or (expected.end is not None and expected.end not in reading.ends):
        problem = "ends an answer with another token"
    elif reading.bos != expected.bos:
        problem = "begins a text with another token"
    elif not wanted or not all(math.isfinite(each) for each in (*reading.logs, *wanted)):
        problem = "gives log-probabilities that are NaN or infinite"
    else:
        largest = max(abs(a - b) for a, b in zip(reading.logs, wanted, strict=True))
        if largest > reading.tolerance:
            problem = (
                f"gives log-probabilities that differ by up to {largest:.3g} nats, more than the"
                f" {reading.tolerance:g} that are allowed"
            )
    return Parity(reading.reader, len(wanted), largest, reading.tolerance, problem)


# --- fidelity --------------------------------------------------------------------------------------

N_NEW = 32  # tokens of an answer, at most
_TASKS = (
    "Explain {} in one sentence.",
    "List three facts about {}.",
    "Write two lines of verse about {}.",
    "What do many people get wrong about {}?",
)
_SUBJECTS = (
    "rain", "bread", "prime numbers", "the Roman calendar", "bicycles", "honey", "glass", "sleep",
)  # fmt: skip
PROMPTS = tuple(
    Request(key, (Message("user", task.format(subject)),), Decoding(max_tokens=N_NEW))
    for key, (subject, task) in enumerate(product(_SUBJECTS, _TASKS))
)


class Fidelity(NamedTuple):
    """The distance of exported files from the model as a study runs it, over `n` tokens of answers.

    engine: the name of the engine that answered. mean, worst: Kullback-Leibler divergence of a token's
    distribution from the studied one, in nats. shared: greedy tokens of an answer before the first that
    differs, on average; `length` is their mean number. left_out: why nothing was measured, or "".
    """

    engine: str = ""
    dtype: str = ""  # in which the files computed
    n_prompts: int = 0
    n: int = 0
    mean: float = 0.0
    worst: float = 0.0
    shared: float = 0.0
    length: float = 0.0
    left_out: str = ""


class _Answered(NamedTuple):
    """The studied model's answers: their tokens, and the file that keeps their distributions."""

    tokens: tuple[int, ...]
    kept: Path


def measure(source: ExportSource, files: LoadedFolder, memory: int | None) -> Fidelity:
    """Compare the files with the model as a study runs it. memory: as of `export`."""
    dtype = _dtype(files.folder)
    ready = source.store.ready(source.model)
    studied = source.store.base(ready).folder if source.is_adapter else ready.folder
    needed = max(_n_bytes(files.folder, dtype), _n_bytes(studied, "float32"))
    limit = host.available_memory() if memory is None else memory
    if limit is not None and needed > limit:
        return Fidelity(left_out=f"it needs about {needed / host.GIB:.2f} GiB of memory")
    engine = load_engine(source.model, source.store, is_batched=False)
    try:
        if not isinstance(engine, DistributionEngine):
            return Fidelity(left_out=f"the engine of studies ({engine.name}) gives no distributions")
        answered, of_engine = _answers(engine, source), engine.name
    finally:
        engine.close()
    with phase(source.watch, "comparing with the files", n_total=len(answered), unit="answers") as meter:
        return _compared(
            of_engine, dtype, meter.each(_distributions(files, dtype, answered), lambda each: each)
        )


def _answers(engine: DistributionEngine, source: ExportSource) -> list[_Answered]:
    """Let the studied model answer, and keep its distribution at each token on the disk."""
    from safetensors.torch import save_file

    (folder := source.bench / "studied").mkdir()
    with phase(source.watch, "asking", n_total=len(PROMPTS), unit="answers") as meter:
        replied = meter.each(engine.reply(PROMPTS), lambda reply: (reply.key, reply.tokens))
        replies = dict(replied)

    def read(request: Request) -> _Answered:
        kept, tokens = folder / f"{request.key}.safetensors", replies[request.key]
        save_file({"logs": engine.log_probabilities(request, tokens).cpu()}, kept)
        return _Answered(tokens, kept)

    with phase(source.watch, "reading", n_total=len(PROMPTS), unit="answers") as meter:
        return list(meter.each(PROMPTS, read))


def _compared(
    of_engine: str, dtype: str, distributions: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> Fidelity:
    import torch

    divergences, shared, lengths = [], [], []
    for studied, distribution in distributions:
        divergences.append((studied.exp() * (studied - distribution)).sum(-1))
        same = (studied.argmax(-1) == distribution.argmax(-1)).long()
        shared.append(int(same.cumprod(0).sum()))
        lengths.append(len(same))
    nats = torch.cat(divergences).clamp_min(0)
    n = len(lengths)
    mean, worst = float(nats.mean()), float(nats.max())
    return Fidelity(of_engine, dtype, n, len(nats), mean, worst, sum(shared) / n, sum(lengths) / n)


def _distributions(
    files: LoadedFolder, dtype: str, answered: Sequence[_Answered]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The log-probabilities of the studied model and of the files, of each answer: (tokens, vocabulary)."""
    from safetensors.torch import load_file

    engine = open_files(files, dtype)
    try:
        for request, each in zip(PROMPTS, answered, strict=True):
            yield load_file(each.kept)["logs"], engine.log_probabilities(request, each.tokens).cpu()
    finally:
        engine.close()


def _dtype(folder: Path) -> str:
    """The dtype in which a reader computes by default: that of the file, or float32 for several."""
    kinds = {
        each.dtype for shard in folder.glob("*.safetensors") for each in read_safetensors(shard).values()
    }
    return "bfloat16" if kinds == {"BF16"} else "float32"


def _n_bytes(folder: Path, dtype: str) -> int:
    """Bytes of the loaded weights, at most."""
    n_stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return n_stored * (2 if dtype == "float32" and _dtype(folder) == "bfloat16" else 1)
