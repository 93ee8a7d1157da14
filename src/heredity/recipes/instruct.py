"""The teacher answers prompts, the student learns the answers: distillation by text, whatever the tokenizers.

The first parent is what the student starts from, the second the teacher. What the teacher could not finish
within `longest` tokens, and what it left empty, is not learned and is counted.

Source: Taori et al. 2023 (Alpaca); sequence-level distillation, Kim and Rush 2016 (1606.07947).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heredity.core.errors import UsageError
from heredity.core.progress import Watch
from heredity.core.records import Decoding, Message, Record, Request
from heredity.core.rows import Rows
from heredity.lineage.types import Description, Grown
from heredity.recipes._training_run import Training, run, setting, settings_of
from heredity.train.data.chat import Data, Dialogue, of

PARENTS = "STUDENT TEACHER"
EXAMPLE = "heredity derive instruct smollm2-135m-instruct qwen2.5-coder-0.5b-instruct --data prompts.jsonl"
ANSWERS = "answers.jsonl"


class TeacherAnswer(Record, frozen=True):
    """A row of answers.jsonl: what the teacher said to prompt `index`, and why it stopped."""

    index: int
    text: str
    stop: str
    schema: int = 1


@dataclass(frozen=True)
class Instruct:
    """All weights of the student, on what the teacher answers to the prompts of `data`."""

    data: Data = field(metadata={"help": "Prompts (a column `prompt`); answers in it are not read.",
                                 "has_answers": False})  # fmt: skip
    training: Training = field(default_factory=lambda: Training(rate=2e-5))
    system: str = setting("", "A system message for the teacher; the student never sees it.")
    longest: int = setting(256, "Tokens that the teacher may say; what is not finished then is left out.")
    temperature: float = setting(0.0, "Of the teacher; 0: its likeliest tokens.")
    name: str = field(default="", compare=False)
    watch: Watch | None = field(default=None, compare=False)
    folder: Path | None = field(default=None, compare=False)

    kind = "instruct"

    def __post_init__(self) -> None:
        if self.longest < 1 or self.temperature < 0:
            raise UsageError(
                f"longest must be at least 1 ({self.longest}), temperature at least 0 ({self.temperature:g})."
            )

    def settings(self) -> dict[str, Any]:
        """Every setting, and the digest of the prompts."""
        return settings_of(self)

    def at(self, folder: Path) -> Instruct:
        """This recipe, answers and checkpoints in a folder."""
        return dataclasses.replace(self, folder=folder)

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Ask the teacher what was not asked yet, then tune the student, whole safetensors."""
        from heredity.train.models.lora import Everything
        from heredity.train.objectives.causal import Causal

        if len(parents) != 2:
            raise UsageError(
                f"instruct has two parents, the student and its teacher, not {len(parents)}.",
                code="wrong-parents",
            )
        student, teacher = parents
        answers = self._answers(teacher, self.folder or out.parent / "training")
        taught = dataclasses.replace(self, data=of(self.data.name, self._examples(answers)))
        said = run(taught, student, out, Everything(), lambda _: Causal(), "safetensors")
        notes = {
            "teacher": f"{teacher.record.name} {teacher.record.id[:12]}",
            "answers": f"{len(taught.data.dialogues)} learned of {len(answers)}; others empty or unfinished",
        }
        return dataclasses.replace(said, notes={**said.notes, **notes})

    def _answers(self, teacher: Grown, folder: Path) -> list[TeacherAnswer]:
        """What the teacher says to each prompt; answers that are in the folder are not asked for again."""
        from heredity.engines.torch.engine import open_folder

        folder.mkdir(parents=True, exist_ok=True)
        rows = Rows(folder / ANSWERS, TeacherAnswer)
        with rows:
            there = {row.index for row in rows}
            left = [i for i in range(len(self.data.dialogues)) if i not in there]
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
        decoding = Decoding(self.longest, self.temperature)
        messages = (*system, *self.data.dialogues[index].messages)
        return Request(index, messages, decoding, self.training.seed + index, n_shared=len(system))

    def _examples(self, answers: Sequence[TeacherAnswer]) -> list[Dialogue]:
        found = [
            Dialogue((*asked.messages, Message("assistant", row.text.strip())), asked.where)
            for row in answers
            if row.stop == "end" and row.text.strip()
            for asked in (self.data.dialogues[row.index],)
        ]
        if not found:
            raise UsageError(
                f"The teacher finished none of {len(answers)} answers in {self.longest} tokens: raise it.",
                code="no-answer-finished",
            )
        return found


def _tuning(model: Grown) -> Path | None:
    """Where the store keeps what its engine measured of this model, so that it is measured once."""
    home = model.folder.parents
    return home[2] / "tuning" / model.record.id if home[1].name == "models" else None


DERIVES = Instruct
