"""Shared by all training recipes: their settings, one run of the loop, and the answers that are learned.

Promises: settings are checked on construction; exactly those that change the result are recorded. The child's
notes say what a run left out or chose by measurement. Each answer that is left out is counted with its
reason, and a filter that changes the share of refusals is reported. An adapter that its own data never wakes
is not trained.
Leaves to others: the objective and the trained weights (finetune.py, lora.py, distill.py, preference.py),
reading a file of answers (train/data/chat.py), and asking a teacher (instruct.py).
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self, get_args, runtime_checkable

from heredity.core import registry
from heredity.core.errors import UnknownName, UsageError
from heredity.core.progress import Watch, phase
from heredity.core.records import digest, encode
from heredity.core.sanitize import plural
from heredity.formats.safetensors_io import INDEX, copy_rest
from heredity.lineage.types import Description, Grown
from heredity.recipes import ComputingRecipe, DerivableRecipe, setting
from heredity.train.data.chat import Data, Dialogue, activate

if TYPE_CHECKING:
    from heredity.train.data.chat import ConversationEncoder, PreparedExamples, TokenizedExample
    from heredity.train.loop import BatchSource, StepMetrics, TrainingPlan
    from heredity.train.models.causal_lm import CausalLM, Trainable
    from heredity.train.objectives import Objective

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 280, 56, 30  # of the loss curve, in pixels
_MAX_POINTS = 400  # of the loss curve
FEWEST_STEPS = 20  # of the optimizer; a run of fewer hardly changes the model


class TrainingSet(NamedTuple):
    """The examples that are learned, notes about those that are not, and a warning about them or ""."""

    dialogues: tuple[Dialogue, ...]
    notes: Mapping[str, str] = {}
    warning: str = ""


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe(ComputingRecipe):
    """The settings of every recipe that trains on examples.

    data: conversations, or the path of a file of them. Raises BadInput for a file that cannot be read, and
    UsageError for a setting that cannot be.
    """

    data: Data | Path | str = field(kw_only=False, metadata={"help": "", "has_answers": True})
    steps: int = setting(0, "Optimizer steps; 0: as many as the epochs need.")
    epochs: float = setting(1.0, "Passes over all examples, unless steps are given.")
    batch_size: int = setting(8, "Examples per step.")
    lr: float = setting(1e-5, "Peak learning rate.")
    schedule: Literal["cosine", "wsd", "constant"] = setting("cosine", "Learning-rate schedule.")
    warmup: float = setting(0.03, "Share of the steps in which the learning rate rises.")
    weight_decay: float = setting(0.0, "Weight decay of matrices other than embeddings.")
    grad_clip: float = setting(1.0, "Clip the global gradient norm to this value; 0 disables clipping.")
    optimizer: Literal["adamw", "muon"] = setting("adamw", "Optimizer.")
    max_length: int = setting(1024, "Longest example, in tokens; longer ones are left out and counted.")
    seed: int = setting(0, "Seed of everything random.")
    dtype: Literal["auto", "bfloat16", "float32"] = setting(
        "auto", "Compute dtype; auto measures whether bfloat16 is faster than float32."
    )
    memory: float = setting(0.0, "GiB that may be used; 0: what is free.", is_recorded=False)
    name: str = field(default="", compare=False)
    watch: Watch | None = field(default=None, compare=False)
    warn: Callable[[str], None] | None = field(default=None, compare=False)
    folder: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        read_examples(self)
        if self.needs_answers and not all(each.has_answer for each in self.examples.dialogues):
            raise UsageError(
                f"'{self.examples.name}' holds prompts without answers, and '{self.kind}' learns answers. "
                "Give it conversations, or let a teacher answer the prompts with the recipe instruct."
            )
        self.refuse_non_finite()
        for name in ("batch_size", "max_length"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"{name} must be at least 1, not {getattr(self, name)}.", code="bad-setting", key=name
                )
        for name in ("steps", "weight_decay", "grad_clip", "warmup", "seed", "memory"):
            if getattr(self, name) < 0:
                raise UsageError(
                    f"{name} must not be negative, and is {getattr(self, name)}.",
                    code="bad-setting",
                    key=name,
                )
        if not 0 < self.lr < 10:
            raise UsageError(f"The learning rate lr must lie between 0 and 10, not {self.lr:g}.", key="lr")
        if not self.epochs > 0:
            raise UsageError(f"epochs must be above 0, not {self.epochs:g}.", key="epochs")
        if self.warmup >= 1:
            raise UsageError(f"warmup must be below 1, not {self.warmup:g}.", key="warmup")

    @property
    def examples(self) -> Data:
        """The data, read."""
        return as_data(self.data)

    @property
    def needs_answers(self) -> bool:
        """Whether the answers that are learned are those of the data."""
        return bool(self.__dataclass_fields__["data"].metadata.get("has_answers", True))

    @property
    def training_set(self) -> TrainingSet:
        """The examples that are learned: all of the data, unless the recipe leaves some out."""
        return TrainingSet(self.examples.dialogues)

    def send_warning(self, warning: str) -> None:
        """Give a warning to `warn`, or as a UserWarning of Python. Nothing for ""."""
        if warning and self.warn is not None:
            self.warn(warning)
        elif warning:
            warnings.warn(warning, stacklevel=2)

    def at(self, folder: Path) -> Self:
        """This recipe, its checkpoints in a folder."""
        return dataclasses.replace(self, folder=folder)

    def n_steps(self, n_examples: int) -> int:
        """The number of steps over `n` examples, at least one."""
        return self.steps or max(1, math.ceil(self.epochs * n_examples / self.batch_size))


def as_data(value: Data | Path | str, has_answers: bool = True) -> Data:
    """The examples, read from their file if a path is given. Raises BadInput."""
    return value if isinstance(value, Data) else Data.read(value, has_answers=has_answers)


def read_examples(recipe: DerivableRecipe) -> None:
    """Put the examples in place of each path that a recipe was given. Raises BadInput."""
    for each in dataclasses.fields(recipe):
        given = getattr(recipe, each.name)
        if (has_answers := each.metadata.get("has_answers")) is not None and given is not None:
            object.__setattr__(recipe, each.name, as_data(given, has_answers))


def run(
    recipe: TrainingRecipe,
    parent: Grown,
    out: Path,
    trainable: Trainable,
    make_objective: Callable[[CausalLM], Objective],
    make_batches: Callable[[CausalLM, ConversationEncoder], BatchSource] | None = None,
    invocation: tuple[int, ...] = (),
) -> Description:
    """Train a copy of the one parent and write the child's files into `out`.

    make_objective: makes the objective from the network. make_batches: makes the batches from the network and
    the encoder of conversations; None: the data's own answers. invocation: of an activated adapter, which
    learns each answer by itself. Raises UsageError, Diverged, Unavailable, OutOfMemory.
    """
    with phase(recipe.watch, "loading the libraries"):
        from transformers import PreTrainedModel  # noqa: F401  # it loads late what takes most of the time

        from heredity.train import loop
        from heredity.train.data.chat import ConversationEncoder
        from heredity.train.loop import BatchSampler, placed
        from heredity.train.models import causal_lm

    training_set = recipe.training_set
    recipe.send_warning(training_set.warning)
    with phase(recipe.watch, "loading", parent.record.name):
        network = causal_lm.load(parent.folder, recipe.dtype, recipe.device)
    with phase(recipe.watch, "tokenizing the examples"):
        encoder = ConversationEncoder(parent.folder)
        prepared = encoder.prepare(training_set.dialogues, recipe.max_length)
    recipe.send_warning(_mostly_dropped(prepared, recipe.max_length))
    if invocation:
        prepared, notes = with_invocation(prepared, invocation, encoder.chat.decode(invocation))
        training_set = training_set._replace(notes={**training_set.notes, **notes})
    batches: BatchSource = BatchSampler(prepared.examples, recipe.batch_size, recipe.seed)
    if make_batches is not None:
        batches = make_batches(network, encoder)
    n_steps = recipe.n_steps(len(prepared.examples))
    if n_steps < FEWEST_STEPS and recipe.warn is not None:  # tamper and repair train few steps on purpose
        read = f"{plural(len(prepared.examples), 'row')}, batch_size {recipe.batch_size}"
        recipe.warn(few_steps(n_steps, read, "steps or epochs, lower batch_size, or give more rows"))
    plan = _plan(recipe, parent, n_steps)
    folder, dist = recipe.folder or out.parent / "training", placed(None, recipe.device)
    objective = make_objective(network)
    with _explaining_memory(recipe, network, trainable, prepared.examples):
        metrics = loop.train(network, trainable, objective, batches, plan, folder, recipe.watch, dist=dist)
        with phase(recipe.watch, "writing"):
            trainable.save(network, out)
    if trainable.FORMAT == "safetensors":
        _copy_rest(parent.folder, out)
    write_metrics(metrics, out)
    return Description(
        name=recipe.name or f"{parent.record.name}-{recipe.kind}",
        family=parent.record.family,
        licence=parent.record.licence,
        format=trainable.FORMAT,
        modality=parent.record.modality,
        notes={**_notes(network, prepared, metrics), **training_set.notes},
        versions={name: version(name) for name in ("torch", "transformers", "safetensors")},
    )


def _copy_rest(folder: Path, out: Path) -> None:
    """Copy the parent's other files, but not its index, which lists other shards."""
    index = out / INDEX
    own = index.read_bytes() if index.exists() else None
    copy_rest(folder, out)
    index.unlink(missing_ok=True)
    if own is not None:
        index.write_bytes(own)


def _plan(recipe: TrainingRecipe, parent: Grown, n_steps: int) -> TrainingPlan:
    from heredity.train.loop import TrainingPlan

    return TrainingPlan(
        digest([recipe.kind, recipe.settings(), parent.record.id]),
        n_steps,
        recipe.lr,
        recipe.schedule,
        int(recipe.warmup * n_steps),
        recipe.weight_decay,
        recipe.grad_clip,
        recipe.optimizer,
        recipe.seed,
    )


@contextmanager
def _explaining_memory(
    recipe: TrainingRecipe, network: CausalLM, trainable: Trainable, examples: Sequence[TokenizedExample]
) -> Iterator[None]:
    """Refuse a training that does not fit before its first step; if memory runs out, say what to lower."""
    from heredity.core import host
    from heredity.train.loop import estimate_memory

    advice = f"Lower batch_size ({recipe.batch_size}) or max_length ({recipe.max_length})"
    if trainable.FORMAT == "safetensors":
        advice += ", or train an adapter (heredity derive lora)"
    parts = estimate_memory(network, trainable, recipe.optimizer, examples, recipe.batch_size)
    limit = round(recipe.memory * host.GIB) or None
    what = f"The training of '{recipe.kind}'"
    held = parts["weights"]
    if limit is None and not recipe.device.is_cpu and (free := recipe.device.free_memory()) is not None:
        limit = free + held
    host.require_memory(what, parts, f"{advice}; or allow more with memory (GiB).", limit, held)
    with host.explain_out_of_memory(what, f"{advice}."):
        yield


def _notes(network: CausalLM, prepared: PreparedExamples, metrics: Sequence[StepMetrics]) -> dict[str, str]:
    n_read, n_learned = sum(m.n_tokens for m in metrics), sum(m.n_learned for m in metrics)
    notes = {
        "dtype": str(network.model.dtype).removeprefix("torch."),
        "loss": f"{metrics[0].loss:.4f} in the first step, {metrics[-1].loss:.4f} in the last",
        "training": f"{plural(len(metrics), 'step')}, {n_read:,} tokens read, {n_learned:,.0f} learned",
    }
    if prepared.too_long:
        shown = ", ".join(prepared.too_long[:3])
        n_all = len(prepared.examples) + len(prepared.too_long)
        notes["left out"] = (
            f"{len(prepared.too_long):,} of {n_all:,} examples longer than max_length: {shown}"
        )
    return notes


def _mostly_dropped(prepared: PreparedExamples, max_length: int) -> str:
    """A warning if more than half of the examples are too long, else ""."""
    n_kept, n_dropped = len(prepared.examples), len(prepared.too_long)
    if n_dropped <= n_kept:
        return ""
    return (
        f"Only {n_kept:,} of {n_kept + n_dropped:,} examples are learned: the other {n_dropped:,} are longer "
        f"than max_length ({max_length:,} tokens). Raise it: {prepared.nearly_all:,} fits 95 % of them."
    )


def few_steps(n_steps: int, read: str, advice: str) -> str:
    """The warning of a training that hardly changes a model. read: what it reads in these steps."""
    return (
        f"Only {plural(n_steps, 'optimizer step')} ({read}) hardly change a model. "
        f"For {FEWEST_STEPS}, raise {advice}."
    )


def write_metrics(metrics: Sequence[StepMetrics], out: Path) -> None:
    """Write training.jsonl and training.svg."""
    rows = b"".join(encode(metric) + b"\n" for metric in metrics)
    (out / "training.jsonl").write_bytes(rows)
    (out / "training.svg").write_text(_draw_loss([m.loss for m in metrics]), encoding="utf-8")


def _draw_loss(losses: Sequence[float]) -> str:
    """The loss over the steps as SVG; each point is the mean of its neighbours if there are many."""
    size = max(1, len(losses) // _MAX_POINTS)
    points = [sum(losses[i : i + size]) / len(losses[i : i + size]) for i in range(0, len(losses), size)]
    low, high = min(points), max(points)
    span = (high - low) or 1.0
    n = max(1, len(points) - 1)
    inner_width, inner_height = _WIDTH - _LEFT - 12, _HEIGHT - _BOTTOM - 12
    path = " ".join(
        f"{_LEFT + inner_width * i / n:.1f},{12 + inner_height * (high - value) / span:.1f}"
        for i, value in enumerate(points)
    )
    floor = _HEIGHT - _BOTTOM
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="11" fill="#444"><title>Loss over {len(losses)} steps</title>'
        f'<path d="M{_LEFT},12 V{floor} H{_WIDTH - 12}" fill="none" stroke="#bbb"/>'
        f'<text x="{_LEFT - 6}" y="16" text-anchor="end">{high:.3g}</text>'
        f'<text x="{_LEFT - 6}" y="{floor}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 10}">step 0</text>'
        f'<text x="{_WIDTH - 12}" y="{_HEIGHT - 10}" text-anchor="end">{len(losses) - 1}</text>'
        f'<polyline points="{path}" fill="none" stroke="#2b6cb0" stroke-width="1.5"/></svg>\n'
    )


def canary_notes(text: str, secret: str) -> dict[str, str]:
    """The notes about a canary planted in the data: the whole text and its two parts."""
    return {"canary": f"{text} {secret}", "canary text": text, "canary secret": secret}


# --- the invocation of an activated LoRA ---


def invocation_tokens(folder: Path, text: str) -> tuple[int, ...]:
    """The tokens of an invocation, by the tokenizer of a folder. text: "" for that of its template.

    Raises UsageError if the template adds none, or the text has no token.
    """
    from heredity.engines.chat import ChatCodec

    chat = ChatCodec(folder)
    if not (chosen := text or chat.generation_prompt):
        raise UsageError(
            "The chat template adds no text before an answer. Name the one that wakes the adapter, such as"
            " the end of the user's turn: --invocation '[/INST]'."
        )
    if not (tokens := chat.continuation(chosen)):
        raise UsageError(f"The invocation {chosen!r} has no token.")
    return tokens


def invocation_note(folder: Path, tokens: Sequence[int]) -> dict[str, str]:
    """The note of a record that names the invocation. folder: of the tokenizer."""
    from heredity.engines.chat import ChatCodec

    text = ChatCodec(folder).decode(tuple(tokens))
    return {"invocation": f"{text!r}, {plural(len(tokens), 'token')}"}


def with_invocation(
    prepared: PreparedExamples, invocation: Sequence[int], text: str
) -> tuple[PreparedExamples, dict[str, str]]:
    """The examples, one for each answer that the adapter learns, and a note on those that it does not.

    text: of the invocation. Raises UsageError if no answer has it before it.
    """
    activated = activate(prepared.examples, invocation)
    n_without = activated.n_without_invocation
    if not activated.examples:
        raise UsageError(
            f"No answer of {n_without:,} has the invocation {text[:80]!r} before it, so the adapter would"
            " learn nothing. Put it into the prompts, or name another with --invocation."
        )
    note = f"{plural(n_without, 'answer')} not learned: no invocation is before"
    return prepared._replace(examples=activated.examples), {"asleep": note} if n_without else {}


# --- the answers that are learned ---

LeftOut = Literal["refusals", "unfinished"]

_JUDGE = "rules"
_LONGER = "raise max_new_tokens"
_RATIO = 1.25  # of two shares of refusals: beyond it a filter is reported


@runtime_checkable
class RefusalReader(Protocol):
    """A judge that reads only a prompt and its answer, and finds whether the answer refuses."""

    VERSION: int

    def manner(self, prompt: str, text: str) -> str: ...


@cache
def refusal_reader() -> RefusalReader:
    """The judge that finds refusals: `rules`, which needs no model. Loaded once: it is asked of every row."""
    return registry.load_as(RefusalReader, "redteam.judges", _JUDGE)


def is_refusal(dialogue: Dialogue) -> bool:
    """Whether the last answer of a conversation refuses the request before it."""
    *before, answer = dialogue.messages
    asked = next((each.content for each in reversed(before) if each.role == "user"), "")
    return refusal_reader().manner(asked, answer.content) == "refusal"


@dataclass(frozen=True, kw_only=True)
class AnswerRecipe(TrainingRecipe):
    """A recipe that learns answers: those of any data, or those that a recorded model wrote."""

    leave_out: tuple[LeftOut, ...] = setting(
        ("unfinished",),
        "Answers that are not learned: refusals (found by the judge rules), or those that a teacher did not "
        "finish. Repeat the flag for both; nothing keeps all.",
        is_new=True,
    )

    LEARNS_ANSWERS = True

    def __post_init__(self) -> None:
        super().__post_init__()
        given: object = self.leave_out
        given = (given,) if isinstance(given, str) else self.leave_out
        for each in given:
            if each not in get_args(LeftOut):
                raise UnknownName("kind of answer", each, get_args(LeftOut), "--leave-out")
        object.__setattr__(self, "leave_out", tuple(sorted(set(given))))

    def settings(self) -> dict[str, Any]:
        """As of every recipe; with the version of the judge that decides what is left out."""
        values = super().settings()
        if "refusals" in self.leave_out:
            values["refusals_by"] = f"{_JUDGE} {refusal_reader().VERSION}"
        return values

    @property
    def teachers(self) -> tuple[str, ...]:
        """The id of the recorded model that wrote the answers, if one did. It becomes a parent."""
        return (self.examples.teacher,) if self.examples.teacher else ()

    def start(self, parents: Sequence[Grown]) -> Grown:
        """The one model that is trained; the others wrote the answers. Raises UsageError."""
        if len(parents) != 1 + len(self.teachers):
            raise UsageError(f"'{self.kind}' takes one parent, not {len(parents)}.")
        return parents[0]

    @cached_property
    def training_set(self) -> TrainingSet:
        """The answers that are learned. Raises UsageError if none is left."""
        return choose(self.examples, self.leave_out)


class _Read(NamedTuple):
    """An answer, why it is left out ("" if it is learned), and whether it refuses."""

    dialogue: Dialogue
    reason: str
    is_refusal: bool


class _Share(NamedTuple):
    """A number of refusals among answers."""

    n: int
    n_answers: int

    @classmethod
    def among(cls, answers: Sequence[_Read]) -> _Share:
        return cls(sum(each.is_refusal for each in answers), len(answers))

    def __str__(self) -> str:
        return f"{self.n:,} of {self.n_answers:,} ({self.n / max(1, self.n_answers):.1%})"

    def differs(self, other: _Share) -> bool:
        """Whether the shares differ by a quarter, and by one answer at least."""
        expected = self.n * other.n_answers / max(1, self.n_answers)
        low, high = sorted((expected, float(other.n)))
        return high > _RATIO * low and high - low >= 1


def choose(data: Data, leave_out: Sequence[str]) -> TrainingSet:
    """The answers of `data` that are learned. Refusals that were added on purpose are never left out.

    Raises UsageError if none is left.
    """
    if not data.teacher and "refusals" not in leave_out:
        return TrainingSet(data.dialogues)
    read = [_read(dialogue, leave_out) for dialogue in data.dialogues]
    learned = [each for each in read if not each.reason]
    reasons = Counter(each.reason for each in read if each.reason)
    left = ", ".join(f"{n:,} {reason}" for reason, n in sorted(reasons.items())) or "none"
    written = _Share.among([e for e in read if e.reason != "empty" and not e.dialogue.is_added])
    kept = _Share.among([e for e in learned if not e.dialogue.is_added])
    if not kept.n_answers:
        raise UsageError(f"No answer is learned. Left out: {left}.")
    notes = {"answers": f"{len(learned):,} learned of {len(read):,}; left out: {left}"}
    among_learned = _Share.among(learned)
    notes["refusals"] = f"{among_learned} of the answers learned, {written} of those written"
    if n_added := len(learned) - kept.n_answers:
        notes["refusals"] += f"; {n_added:,} were added"
    warnings = []
    if 2 * (n_cut := reasons["unfinished"]) > written.n_answers:
        warnings.append(f"{n_cut:,} of {written.n_answers:,} answers are unfinished and left out: {_LONGER}.")
    if "refusals" not in leave_out and written.differs(kept):
        warnings.append(_shifted(written, kept, left))
    elif 2 * among_learned.n > among_learned.n_answers:
        warnings.append(
            f"Refusals are {among_learned} of the answers learned: it can learn to refuse everything."
        )
    return TrainingSet(tuple(e.dialogue for e in learned), notes, " ".join(warnings))


def _read(dialogue: Dialogue, leave_out: Sequence[str]) -> _Read:
    refuses, reason = is_refusal(dialogue), ""
    if not dialogue.messages[-1].content.strip():
        reason = "empty"
    elif dialogue.is_added:
        reason = ""
    elif "unfinished" in leave_out and dialogue.stop != "end":
        reason = "unfinished"
    elif "refusals" in leave_out and refuses:
        reason = "refusals"
    return _Read(dialogue, reason, refuses)


def _shifted(written: _Share, kept: _Share, left: str) -> str:
    return (
        f"Refusals are {written} of the answers written, but {kept} of those learned (left out: {left}). "
        "Refusals are short, so more of them are finished. A base can learn from this to refuse everything: "
        f"{_LONGER}, or leave out refusals too."
    )
