"""Distil a teacher into a student: it learns the teacher's whole distribution over each answer token.

The first parent is what the student starts from (such as a pruned copy), the second the teacher. Both must
read the same tokens; where they do not, a distribution over one's tokens means nothing to the other, and it
is refused: let the teacher write answers instead.

With --top-k the teacher reads the data once, and its likeliest tokens are kept in the store: the training
does without it, and so do other students of the same teacher and data.

With --on-policy the student writes and the teacher scores what it wrote: it learns where it goes itself.

Source: Hinton et al. 2015 (1503.02531); divergences and on-policy as in GKD (2306.13649).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from heredity.core.errors import UsageError
from heredity.core.files import hash_file
from heredity.core.progress import Watch
from heredity.core.records import digest
from heredity.lineage.types import Description, Grown
from heredity.recipes._tokenizers import refuse_other_tokens
from heredity.recipes._training_run import Training, run, setting, settings_of
from heredity.train.data.chat import Data

PARENTS = "STUDENT TEACHER"
EXAMPLE = "heredity derive distill smollm2-135m-instruct-pruned smollm2-135m-instruct --data tickets.jsonl"


@dataclass(frozen=True)
class Distill:
    """All weights of the student, on the teacher's distributions over the answers of `data`."""

    data: Data
    training: Training = field(default_factory=lambda: Training(rate=5e-5))
    divergence: Literal["forward", "reverse", "js"] = setting(
        "forward", "From which side the student's distribution is held to the teacher's (Kullback-Leibler)."
    )
    temperature: float = setting(1.0, "Both distributions are flattened by it.")
    share: float = setting(1.0, "Share of the divergence; the rest is cross-entropy on the data's answers.")
    beta: float = setting(0.5, "Weight of the teacher in js.")
    top_k: int = setting(
        0,
        "Keep so many of the teacher's likeliest tokens of each place; 0: ask it anew, for all, each step.",
        is_new=True,
    )
    is_on_policy: bool = setting(False, "Learn from what the student writes, not from the data's answers.")
    longest: int = setting(64, "Tokens that the student may write.")
    warmth: float = setting(1.0, "The temperature at which it writes.")
    name: str = field(default="", compare=False)
    watch: Watch | None = field(default=None, compare=False)
    folder: Path | None = field(default=None, compare=False)

    kind = "distill"

    def __post_init__(self) -> None:
        if not self.temperature > 0 or not 0 < self.share <= 1 or not 0 < self.beta < 1:
            raise UsageError(
                f"temperature must be above 0 ({self.temperature:g}), share in (0, 1] ({self.share:g}) and "
                f"beta in (0, 1) ({self.beta:g})."
            )
        if self.top_k < 0:
            raise UsageError(f"top_k must not be negative, and is {self.top_k}.", code="bad-setting")
        if self.top_k and self.is_on_policy:
            raise UsageError(
                "Where the student writes, what it will say cannot be scored before: no top_k.",
                code="scores-not-ahead",
            )
        if self.longest < 1 or self.warmth < 0 or (self.is_on_policy and self.share < 1):
            raise UsageError(
                f"longest must be at least 1 ({self.longest}), warmth at least 0 ({self.warmth:g}), share 1 "
                f"where the student writes ({self.share:g}): its own answers are no truth to learn.",
                code="bad-setting",
            )

    def settings(self) -> dict[str, Any]:
        """Every setting, and the digest of the data."""
        return settings_of(self)

    def at(self, folder: Path) -> Distill:
        """This recipe, its checkpoints in a folder."""
        return dataclasses.replace(self, folder=folder)

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Tune the student, whole safetensors. Raises UsageError for parents of two tokenizers."""
        from heredity.train.models import causal_lm
        from heredity.train.models.lora import Everything
        from heredity.train.objectives.distill import Distilled

        if len(parents) != 2:
            raise UsageError(
                f"A distillation has two parents, the student and its teacher, not {len(parents)}."
            )
        student, teacher = parents
        refuse_other_tokens(student, teacher)

        notes: dict[str, str] = {}

        def objective(net: Any) -> Distilled:
            dtype = str(net.model.dtype).removeprefix("torch.")
            if self.top_k:
                source = self._scores(student, teacher, dtype, len(net.head), out)
                notes["teacher's scores"] = f"{len(source):,} places, {source.covered:.2%} of its probability"
            else:
                source = causal_lm.load(teacher.folder, dtype)
                source.model.requires_grad_(False)
            return Distilled(source, self.divergence, self.temperature, self.share, self.beta)

        own = self._own if self.is_on_policy else None
        said = run(self, student, out, Everything(), objective, "safetensors", own)
        return dataclasses.replace(said, notes={**said.notes, **notes})

    def _scores(self, student: Grown, teacher: Grown, dtype: str, n_words: int, out: Path) -> Any:
        """The teacher's scores of the data: from the store, or read now and kept there."""
        from heredity.train.data import teacher_logprobs
        from heredity.train.data.documents import ConversationEncoder
        from heredity.train.models import causal_lm

        examples = (
            ConversationEncoder(student.folder)
            .prepare(self.data.dialogues, self.training.max_tokens)
            .examples
        )
        shown = hashlib.sha256(repr([e.document for e in examples]).encode()).hexdigest()
        tokenizer = hash_file(teacher.folder / "tokenizer.json")
        stamp = digest([teacher.record.id, tokenizer, shown, dtype, self.temperature, n_words])
        folder = self.folder or out.parent / "training"
        home = folder.parent.parent if self.folder is not None else out.parent
        path = teacher_logprobs.place(home / "scores", stamp, self.top_k)
        if not path.exists():
            loaded = causal_lm.load(teacher.folder, dtype)
            n_common = min(n_words, len(loaded.head))
            if self.top_k >= n_common:
                raise UsageError(
                    f"top_k must be below the {n_common:,} tokens there are; 0 means all.", code="bad-setting"
                )
            reading = teacher_logprobs.TeacherConfig(
                self.top_k, self.temperature, folder, n_common, self.watch
            )
            teacher_logprobs.write(path, stamp, loaded, examples, reading)
        return teacher_logprobs.read(path, stamp, self.top_k)

    def _own(self, net: Any, writer: Any) -> Any:
        from heredity.train.data.on_policy import OnPolicyBatches, prompts

        training = self.training
        longest = training.max_tokens - self.longest
        asked = prompts(writer, self.data.dialogues, training.batch, training.seed, longest)
        return OnPolicyBatches(net, asked, writer.stops, self.longest, self.warmth)


DERIVES = Distill
