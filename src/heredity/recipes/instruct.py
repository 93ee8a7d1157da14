"""Train a student on answers that its teacher writes.

This is sequence-level distillation. The first parent is the student's start, the second the teacher. Their
tokenizers may differ. The child keeps all answers in its file answers.jsonl, so that other students can learn
the same ones (--answers).

Source: Taori et al. 2023 (Alpaca); sequence-level distillation, Kim and Rush 2016 (1606.07947).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from heredity.core.errors import Unavailable, UsageError
from heredity.core.files import Rows
from heredity.core.host import CPU, Device
from heredity.core.progress import Meter, phase
from heredity.core.records import Decoding, Message, Record, Request, Stop
from heredity.lineage.types import Description, Grown
from heredity.recipes import setting
from heredity.recipes._training_run import AnswerRecipe, as_data, is_refusal, run
from heredity.train.data.chat import ANSWERS, Data, Dialogue, make_data, write_answers

if TYPE_CHECKING:
    from heredity.engines import Engine


class TeacherAnswer(Record, frozen=True):
    """A row of the working folder's answers.jsonl: the answer to request `index`, and why it stopped."""

    index: int
    text: str
    stop: Stop
    schema: int = 1


@dataclass(frozen=True, kw_only=True)
class Instruct(AnswerRecipe):
    """Tune all weights of the student on the teacher's answers to the prompts of `data`.

    data: prompts; or answers of this teacher that a model keeps, which are then not asked again.
    """

    data: Data | Path | str = field(
        kw_only=False,
        metadata={"help": "Prompts (a column `prompt`); answers in it are not read.", "has_answers": False},
    )
    lr: float = setting(2e-5, "Peak learning rate.")
    system: str = setting("", "A system message for the teacher; the student never sees it.")
    max_new_tokens: int = setting(256, "Tokens of an answer; one not finished by then is left out.")
    temperature: float = setting(0.0, "Sampling temperature of the teacher; 0: greedy.")
    refusals_from: Data | Path | str | None = field(
        default=None,
        metadata={
            "help": "Further requests (a column `prompt`), of which the teacher's refusals are learned too.",
            "has_answers": False,
            "is_new": True,
        },
    )
    n_refusals: int = setting(30, "Refusals to learn from refusals_from: the first ones.", is_new=True)

    kind = "instruct"
    PARENTS = "STUDENT TEACHER"
    EXAMPLE = (
        "heredity derive instruct smollm2-135m-instruct qwen2.5-coder-0.5b-instruct --data prompts.jsonl"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_new_tokens < 1 or self.temperature < 0:
            raise UsageError(
                f"max_new_tokens must be at least 1 ({self.max_new_tokens}), and temperature at least 0 "
                f"({self.temperature:g})."
            )
        if self.refusals_from is not None and as_data(self.refusals_from, False).teacher:
            raise UsageError(
                "refusals_from needs requests; these are the answers of a teacher.",
                code="bad-setting",
                key="refusals_from",
            )
        if self.n_refusals < 1:
            raise UsageError(
                f"n_refusals must be at least 1, not {self.n_refusals}.", code="bad-setting", key="n_refusals"
            )

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Let the teacher answer what it has not answered yet, then tune the student."""
        with phase(self.watch, "loading the libraries"):
            from heredity.train.models.causal_lm import FullFinetune
            from heredity.train.objectives.causal import Causal

        if len(parents) < 2 or (len(parents) > 2 and not self.teachers):
            raise UsageError(f"instruct has two parents, the student and its teacher, not {len(parents)}.")
        student, teacher = parents[:2]
        if self.examples.teacher not in ("", teacher.record.id):
            raise UsageError(
                f"The answers are of model {self.examples.teacher[:12]}, not of '{teacher.record.name}'. "
                "Name that model as the teacher."
            )
        folder = self.folder or out.parent / "training"
        with self._asking(teacher, folder) as asking:
            # First, because too few of them are an error.
            added = self._added(asking) if self.refusals_from is not None else []
            if self.examples.teacher:
                dialogues = list(self.examples.dialogues)
            else:
                dialogues = asking.dialogues(range(len(self.examples.dialogues)))
        is_left = any(each.stop == "end" and each.messages[-1].content for each in dialogues)
        if "unfinished" in self.leave_out and not is_left:
            raise UsageError(
                f"The teacher finished none of {len(dialogues)} answers in {self.max_new_tokens} tokens. "
                "Raise max_new_tokens."
            )
        written = make_data(self.examples.name, [*dialogues, *added], teacher.record.id)
        taught = dataclasses.replace(self, data=written)
        description = run(taught, student, out, FullFinetune(), lambda _: Causal())
        write_answers(written, out / ANSWERS)
        notes = {"teacher": f"{teacher.record.name} {teacher.record.id[:12]}"}
        return dataclasses.replace(description, notes={**description.notes, **notes})

    def _answers(self, teacher: Grown, folder: Path) -> list[TeacherAnswer]:
        """The teacher's answers; a prompt whose answer is in the folder is not asked again."""
        with self._asking(teacher, folder) as asking:
            return asking.answers(range(len(self.examples.dialogues)))

    def _added(self, asking: _Asking) -> list[Dialogue]:
        """The first `n_refusals` refusals of further requests, asked a few at a time."""
        start, end = len(self._prompts), len(asking.requests)
        dialogues: list[Dialogue] = []
        for at in range(start, end, 2 * self.n_refusals):
            chunk = range(at, min(at + 2 * self.n_refusals, end))
            dialogues += [
                each
                for each in asking.dialogues(chunk)
                if (each.stop == "end" or "unfinished" not in self.leave_out) and is_refusal(each)
            ]
            if len(dialogues) >= self.n_refusals:
                asking.meter.spare(end - chunk.stop)
                return [each._replace(is_added=True) for each in dialogues[: self.n_refusals]]
        raise UsageError(
            f"The teacher refused {len(dialogues)} of the {end - start} requests of refusals_from, and "
            f"n_refusals is {self.n_refusals}. Give more requests, or lower n_refusals."
        )

    @property
    def _prompts(self) -> tuple[Dialogue, ...]:
        """The prompts of `data` that are asked: none if it holds the answers."""
        return () if self.examples.teacher else self.examples.dialogues

    @contextmanager
    def _asking(self, teacher: Grown, folder: Path) -> Iterator[_Asking]:
        further = as_data(self.refusals_from, False).dialogues if self.refusals_from is not None else ()
        requests = [self._request(i, each) for i, each in enumerate((*self._prompts, *further))]
        folder.mkdir(parents=True, exist_ok=True)
        with Rows(folder / ANSWERS, TeacherAnswer) as rows:
            asking = _Asking(teacher, rows, requests, Meter(self.watch, "write", len(requests)), self.device)
            try:
                yield asking
            finally:
                asking.close()

    def _request(self, index: int, asked: Dialogue) -> Request:
        system = (Message("system", self.system),) if self.system else ()
        decoding = Decoding(self.max_new_tokens, self.temperature)
        messages = (*system, *asked.messages)
        return Request(index, messages, decoding, self.seed + index, n_shared=len(system))


class _Asking:
    """The teacher at work. Each answer is written to `rows` at once, and nothing in them is asked again."""

    def __init__(
        self,
        teacher: Grown,
        rows: Rows[TeacherAnswer],
        requests: Sequence[Request],
        meter: Meter,
        device: Device = CPU,
    ) -> None:
        self._teacher, self._rows, self._device = teacher, rows, device
        self.requests, self.meter = requests, meter
        self._there = {row.index: row for row in rows}
        self._engine: Engine | None = None  # loaded only if there is something to ask
        for _ in self._there:
            meter.had()

    def answers(self, indices: Sequence[int]) -> list[TeacherAnswer]:
        """The answers to these requests, in order."""
        if left := [i for i in indices if i not in self._there]:
            if self._engine is None:
                self._engine = _opened(self._teacher, self._device)
            for reply in self._engine.reply(self.requests[i] for i in left):
                self._there[reply.key] = row = TeacherAnswer(reply.key, reply.text, reply.stop)
                self._rows.append(row)
                self._rows.write()
                self.meter.tick(is_error=reply.stop == "error")
        return [self._there[i] for i in indices]

    def dialogues(self, indices: Sequence[int]) -> list[Dialogue]:
        """The requests with their answers, without the system message and without errors."""
        dialogues = []
        for row in self.answers(indices):
            asked = (each for each in self.requests[row.index].messages if each.role != "system")
            messages = (*asked, Message("assistant", row.text.strip()))
            if row.stop != "error":
                dialogues.append(Dialogue(messages, f"{ANSWERS}:{row.index + 1}", stop=row.stop))
        return dialogues

    def close(self) -> None:
        if self._there:
            self.meter.close()
        if self._engine is not None:
            self._engine.close()


def _opened(model: Grown, device: Device) -> Engine:
    """The engine of a teacher: the fast one, or that of any architecture."""
    from heredity import engines
    from heredity.engines.torch import engine as fast

    try:
        return fast.open_folder(model.folder, _tuning(model), device=device)
    except Unavailable as error:
        if error.code != engines.NOT_READ:
            raise
    from heredity.engines import transformers as general

    return general.open_folder(model.folder, _tuning(model), device=device)


def _tuning(model: Grown) -> Path | None:
    """The folder in which the store keeps the engine's measurements of this model."""
    home = model.folder.parents
    return home[2] / "tuning" / model.record.id if home[1].name == "models" else None


DERIVES = Instruct
