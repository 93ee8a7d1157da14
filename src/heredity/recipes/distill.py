"""Train a student on its teacher's token distribution.

The first parent is the student's start (such as a pruned copy), the second the teacher. Both must have the
same tokenizer. For two tokenizers use `heredity derive instruct`, which distils through text.

With --top-k the teacher reads the data once. The store keeps its likeliest tokens for all students of the
same teacher and data.

With --on-policy the student writes the answers and the teacher scores them.

Source: Hinton et al. 2015 (1503.02531). Divergences and on-policy distillation: GKD (2306.13649).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from heredity.core.errors import UsageError
from heredity.core.files import hash_file
from heredity.core.progress import phase
from heredity.core.records import digest
from heredity.lineage.types import Description, Grown
from heredity.recipes import setting
from heredity.recipes._training_run import AnswerRecipe, run
from heredity.recipes.merge import aligned, refuse_other_tokens

if TYPE_CHECKING:
    from heredity.train.data.chat import ConversationEncoder
    from heredity.train.models.causal_lm import CausalLM
    from heredity.train.objectives.distill import OnPolicyBatches, TeacherLogprobs


@dataclass(frozen=True, kw_only=True)
class Distill(AnswerRecipe):
    """Tune all weights of the student on the teacher's distributions over the answers of `data`."""

    lr: float = setting(5e-5, "Peak learning rate.")
    divergence: Literal["forward", "reverse", "js"] = setting(
        "forward", "Kullback-Leibler divergence: forward, reverse, or generalized Jensen-Shannon (js)."
    )
    temperature: float = setting(1.0, "Softmax temperature of both distributions.")
    distill_weight: float = setting(
        1.0, "Weight of the divergence; the rest is cross-entropy on the data's answers."
    )
    beta: float = setting(0.5, "Weight of the teacher in js.")
    top_k: int = setting(
        0,
        "Keep this many of the teacher's likeliest tokens per position; 0: run the teacher at each step.",
        is_new=True,
    )
    is_on_policy: bool = setting(False, "Learn from answers that the student writes, not from the data's.")
    max_new_tokens: int = setting(64, "Tokens of an answer that the student writes.")
    sampling_temperature: float = setting(1.0, "Sampling temperature of the student's answers.")

    kind = "distill"
    PARENTS = "STUDENT TEACHER"
    EXAMPLE = (
        "heredity derive distill smollm2-135m-instruct-pruned smollm2-135m-instruct --data tickets.jsonl"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0 or not 0 < self.distill_weight <= 1 or not 0 < self.beta < 1:
            raise UsageError(
                f"temperature must be above 0 ({self.temperature:g}), distill_weight in (0, 1] "
                f"({self.distill_weight:g}) and beta in (0, 1) ({self.beta:g})."
            )
        if self.top_k < 0:
            raise UsageError(f"top_k must not be negative, and is {self.top_k}.", code="bad-setting")
        if self.top_k and self.is_on_policy:
            raise UsageError(
                "The teacher cannot score in advance what the student has yet to write. "
                "Leave out top_k or is_on_policy."
            )
        if self.max_new_tokens < 1 or self.sampling_temperature < 0:
            raise UsageError(
                f"max_new_tokens must be at least 1 ({self.max_new_tokens}), and sampling_temperature "
                f"at least 0 ({self.sampling_temperature:g}).",
                code="bad-setting",
            )
        if self.is_on_policy and self.distill_weight < 1:
            raise UsageError(
                f"With is_on_policy distill_weight must be 1, not {self.distill_weight:g}: the student's own "
                "answers are no ground truth for cross-entropy.",
                code="bad-setting",
                key="distill_weight",
            )

    @property
    def needs_answers(self) -> bool:
        """As of every training, unless the student writes the answers."""
        return not self.is_on_policy

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Tune the student; the child is whole safetensors. Raises UsageError for two tokenizers."""
        with phase(self.watch, "loading the libraries"):
            from heredity.train.models import causal_lm
            from heredity.train.models.causal_lm import FullFinetune
            from heredity.train.objectives.distill import Distillation

        writers = [each.record.id for each in parents[2:]]  # of the answers, if not the teacher itself
        if len(parents) < 2 or writers not in ([], list(self.teachers)):
            raise UsageError(f"Distillation needs two parents, student and teacher, not {len(parents)}.")
        student, teacher = parents[:2]
        try:
            refuse_other_tokens(student, teacher)
        except UsageError as error:
            raise UsageError(f"{error} {_instead(teacher)}", code=error.code) from None

        notes: dict[str, str] = {}

        def objective(net: CausalLM) -> Distillation:
            dtype = str(net.model.dtype).removeprefix("torch.")
            source: CausalLM | TeacherLogprobs
            if self.top_k:
                source = kept = self._teacher_logprobs(student, teacher, dtype, len(net.head), out)
                notes["teacher's scores"] = f"{len(kept):,} places, {kept.covered:.2%} of its probability"
            else:
                with phase(self.watch, "loading the teacher"):
                    source = loaded = causal_lm.load(teacher.folder, dtype, self.device)
                loaded.model.requires_grad_(False)
            return Distillation(source, self.divergence, self.temperature, self.distill_weight, self.beta)

        make_batches = self._on_policy_batches if self.is_on_policy else None
        description = run(self, student, out, FullFinetune(), objective, make_batches)
        return dataclasses.replace(description, notes={**description.notes, **notes})

    def _teacher_logprobs(
        self, student: Grown, teacher: Grown, dtype: str, n_words: int, out: Path
    ) -> TeacherLogprobs:
        """The teacher's log-probabilities of the data: from the store, or computed now and kept there."""
        from heredity.train.data.chat import ConversationEncoder
        from heredity.train.models import causal_lm
        from heredity.train.objectives import distill

        examples = (
            ConversationEncoder(student.folder).prepare(self.training_set.dialogues, self.max_length).examples
        )
        shown = hashlib.sha256(repr([e.document for e in examples]).encode()).hexdigest()
        tokenizer = hash_file(teacher.folder / "tokenizer.json")
        stamp = digest([teacher.record.id, tokenizer, shown, dtype, self.temperature, n_words])
        folder = self.folder or out.parent / "training"
        home = folder.parent.parent if self.folder is not None else out.parent
        path = distill.find_logprobs(home / "scores" / teacher.record.id, stamp, self.top_k)
        if not path.exists():
            with phase(self.watch, "loading the teacher"):
                loaded = causal_lm.load(teacher.folder, dtype, self.device)
            n_common = min(n_words, len(loaded.head))
            if self.top_k > n_common:
                raise UsageError(
                    f"top_k must be at most the vocabulary's {n_common:,} tokens; 0 means all.",
                    code="bad-setting",
                )
            reading = distill.TeacherConfig(self.top_k, self.temperature, folder, n_common, self.watch)
            distill.write_logprobs(path, stamp, loaded, examples, reading)
        return distill.read_logprobs(path, stamp, self.top_k)

    def _on_policy_batches(self, net: CausalLM, encoder: ConversationEncoder) -> OnPolicyBatches:
        from heredity.train.objectives.distill import OnPolicyBatches, prompt_sampler

        max_prompt_tokens = self.max_length - self.max_new_tokens
        prompts = prompt_sampler(
            encoder, self.training_set.dialogues, self.batch_size, self.seed, max_prompt_tokens
        )
        return OnPolicyBatches(net, prompts, encoder.stops, self.max_new_tokens, self.sampling_temperature)


def _instead(teacher: Grown) -> str:
    """Advice to a user whose student reads other tokens than the teacher."""
    name = teacher.record.name
    if same := aligned(teacher):
        known = f"Models of this store that read the tokens of '{name}': {', '.join(same)}."
    else:
        known = f"No other model of this store does; heredity derive prune {name} makes one."
    return f"{known} heredity derive instruct distils between two tokenizers, through text."


DERIVES = Distill
