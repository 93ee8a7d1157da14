"""Train a student on answers that its teacher writes.

This is sequence-level distillation. The first parent is the student's start, the second the teacher. Their
tokenizers may differ. Answers that are empty, or not finished within `max_new_tokens`, are counted and not
learned.

Source: Taori et al. 2023 (Alpaca); sequence-level distillation, Kim and Rush 2016 (1606.07947).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from heredity.core.errors import UsageError
from heredity.core.files import Rows
from heredity.core.records import Decoding, Message, Record, Request
from heredity.lineage.types import Description, Grown
from heredity.recipes import setting
from heredity.recipes._training_run import TrainingRecipe, run
from heredity.train.data.chat import Data, Dialogue, make_data

ANSWERS = "answers.jsonl"


class TeacherAnswer(Record, frozen=True):
    """A row of answers.jsonl: the teacher's answer to prompt `index`, and why it stopped."""

    index: int
    text: str
    stop: str
    schema: int = 1


@dataclass(frozen=True, kw_only=True)
class Instruct(TrainingRecipe):
    """Tune all weights of the student on the teacher's answers to the prompts of `data`."""

    data: Data | Path | str = field(
        kw_only=False,
        metadata={"help": "Prompts (a column `prompt`); answers in it are not read.", "has_answers": False},
    )
    lr: float = setting(2e-5, "Peak learning rate.")
    system: str = setting("", "A system message for the teacher; the student never sees it.")
    max_new_tokens: int = setting(256, "Tokens of an answer; an answer not finished by then is left out.")
    temperature: float = setting(0.0, "Sampling temperature of the teacher; 0: greedy.")

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

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Let the teacher answer the prompts that it has not answered yet, then tune the student."""
        from heredity.train.models.lora import FullFinetune
        from heredity.train.objectives.causal import Causal

        if len(parents) != 2:
            raise UsageError(
                f"instruct has two parents, the student and its teacher, not {len(parents)}.",
                code="wrong-parents",
            )
        student, teacher = parents
        answers = self._answers(teacher, self.folder or out.parent / "training")
        taught = dataclasses.replace(self, data=make_data(self.examples.name, self._examples(answers)))
        description = run(taught, student, out, FullFinetune(), lambda _: Causal())
        n_learned = len(taught.examples.dialogues)
        notes = {
            "teacher": f"{teacher.record.name} {teacher.record.id[:12]}",
            "answers": f"{n_learned} learned of {len(answers)}; others empty or unfinished",
        }
        return dataclasses.replace(description, notes={**description.notes, **notes})

    def _answers(self, teacher: Grown, folder: Path) -> list[TeacherAnswer]:
        """The teacher's answers; a prompt whose answer is in the folder is not asked again."""
        from heredity.engines.torch.engine import open_folder

        folder.mkdir(parents=True, exist_ok=True)
        rows = Rows(folder / ANSWERS, TeacherAnswer)
        with rows:
            there = {row.index for row in rows}
            left = [i for i in range(len(self.examples.dialogues)) if i not in there]
            if left:
                engine = open_folder(teacher.folder, _tuning(teacher))
                for reply in engine.reply(self._request(i) for i in left):
                    rows.append(TeacherAnswer(reply.key, reply.text, reply.stop))
                    rows.write()
                engine.close()
            rows.flush()
            return sorted(rows, key=lambda row: row.index)

    def _request(self, index: int) -> Request:
        system = (Message("system", self.system),) if self.system else ()
        decoding = Decoding(self.max_new_tokens, self.temperature)
        messages = (*system, *self.examples.dialogues[index].messages)
        return Request(index, messages, decoding, self.seed + index, n_shared=len(system))

    def _examples(self, answers: Sequence[TeacherAnswer]) -> list[Dialogue]:
        found = [
            Dialogue((*asked.messages, Message("assistant", row.text.strip())), asked.where)
            for row in answers
            if row.stop == "end" and row.text.strip()
            for asked in (self.examples.dialogues[row.index],)
        ]
        if not found:
            raise UsageError(
                f"The teacher finished none of {len(answers)} answers in {self.max_new_tokens} tokens. "
                "Raise max_new_tokens.",
                code="no-answer-finished",
            )
        return found


def _tuning(model: Grown) -> Path | None:
    """The folder in which the store keeps the engine's measurements of this model."""
    home = model.folder.parents
    return home[2] / "tuning" / model.record.id if home[1].name == "models" else None


DERIVES = Instruct
