"""The models of an application's guards: guard models, and judges of the project.

    llama_guard_3    llama_guard_3:MODEL    learned    rubric:MODEL

A guard model reads a question, or a document, by the template of its card for a question. Without such a
template it reads answers only, and so do judges. A text that is longer than a model is shown whole is read in
parts that overlap, and has the highest score of them.

Promises: each model is loaded once. A reply that cannot be read has no score, so that the guard fails. One
that decides nothing, such as Qwen3Guard's `Controversial`, scores 0.5.
Leaves to others: blocking by a score (application/guards/model.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from threading import Lock

from heredity.application.guards.protocols import ModelScore, ReadText, Side
from heredity.core import registry
from heredity.core.errors import UsageError
from heredity.core.records import digest
from heredity.engines.protocols import Engine
from heredity.redteam import judges
from heredity.redteam.guards.protocols import LONGEST_ANSWER, LONGEST_REQUEST
from heredity.redteam.judges.guard import GuardJudge, GuardScores
from heredity.redteam.judges.protocols import ClosableJudge, Models, Pair, ProbabilityJudge

MOST_PARTS = 64  # of one text; a longer one has no score
_OVERLAP = 200  # characters of two parts
_UNDECIDED = 0.5


class JudgeReaders:
    """The models behind guards, by name. A GuardReaders.

    share: makes an engine that several threads may ask at once; None: the threads take turns.
    """

    def __init__(self, models: Models, share: Callable[[Engine], Engine] | None = None) -> None:
        self._models, self._is_shared = models, share is not None
        load = models.load
        self._shared = models if share is None else models._replace(load=lambda name: share(load(name)))
        self._readers: dict[str, JudgeReader] = {}

    def identify(self, name: str, sides: Sequence[Side]) -> str:
        """A digest of all that decides the scores (GuardReaders.identify)."""
        judge = self._judge(name)
        reads_questions = isinstance(judge, GuardJudge) and judge.reads_questions
        if set(sides) - {"answer"} and not reads_questions:
            raise UsageError(
                f"The guard model '{name}' reads answers only: write sides = [\"answer\"].",
                code="guard-reads-no-questions",
            )
        template = judge.question_template if isinstance(judge, GuardJudge) else ""
        return digest([judges.identity(judge), template])

    def reader(self, name: str) -> JudgeReader:
        """The model of a name, loaded."""
        if name not in self._readers:
            judge = self._judge(name)
            is_shared = self._is_shared and isinstance(judge, GuardJudge)
            found = JudgeReader(judge, is_shared)
            found.scores([ReadText("answer", "Hello", "Hello.")])  # what cannot answer is refused here
            self._readers[name] = found
        return self._readers[name]

    def close(self) -> None:
        """Free the models."""
        while self._readers:
            self._readers.popitem()[1].close()

    def _judge(self, name: str) -> ProbabilityJudge:
        kind = name.partition(":")[0]
        is_named = kind in registry.names("redteam.guards")
        is_guard, spec = is_named or kind == "guard", f"guard:{name}" if is_named else name
        found = judges.load(spec, self._shared if is_guard else self._models)
        if not isinstance(found, ProbabilityJudge):
            known = ", ".join(registry.names("redteam.guards"))
            raise UsageError(
                f"The judge '{name}' gives no score, so it cannot be a guard. Take one of {known}, learned "
                "or rubric:MODEL.",
                code="guard-no-score",
            )
        return found


class JudgeReader:
    """A judge that reads texts for guards."""

    def __init__(self, judge: ProbabilityJudge, is_shared: bool = False) -> None:
        self._judge, self._lock = judge, nullcontext() if is_shared else Lock()

    def scores(self, texts: Sequence[ReadText]) -> list[ModelScore]:
        """One score for each text, in order (GuardReader.scores)."""
        found: dict[int, ModelScore] = {}
        with self._lock:
            for is_answer in (True, False):
                places = [i for i, text in enumerate(texts) if (text.side == "answer") is is_answer]
                read = self._answers if is_answer else self._questions
                found |= zip(places, read([texts[i] for i in places]), strict=True)
        return [found[i] for i in range(len(texts))]

    def close(self) -> None:
        """Free the model."""
        if isinstance(self._judge, ClosableJudge):
            self._judge.close()

    def _answers(self, texts: Sequence[ReadText]) -> list[ModelScore]:
        return _by_parts(texts, LONGEST_ANSWER, self._of_pairs)

    def _questions(self, texts: Sequence[ReadText]) -> list[ModelScore]:
        return _by_parts(texts, LONGEST_REQUEST, self._of_questions)

    def _of_pairs(self, pairs: Sequence[Pair]) -> list[ModelScore]:
        if isinstance(self._judge, GuardJudge):
            return list(map(_score, self._judge.batch(pairs)))
        # A rubric without a probability had a reply of another form; `learned` is near one half.
        undecided = _UNDECIDED if self._judge.name == "learned" else None
        found = self._judge.estimate("harm", pairs)
        return [ModelScore(undecided if p is None else p, "harm") for p in found]

    def _of_questions(self, pairs: Sequence[Pair]) -> list[ModelScore]:
        assert isinstance(self._judge, GuardJudge)
        return list(map(_score, self._judge.questions([text for _, text in pairs])))


def _score(found: GuardScores) -> ModelScore:
    if not found.is_read:
        return ModelScore(None)
    return ModelScore(_UNDECIDED if found.harm is None else found.harm, found.category or "harm")


def _by_parts(
    texts: Sequence[ReadText], longest: int, read: Callable[[Sequence[Pair]], list[ModelScore]]
) -> list[ModelScore]:
    """The scores of texts, each the highest of its parts."""
    parts = [_parts(each.text, longest) for each in texts]
    pairs = [(text.question, part) for text, some in zip(texts, parts, strict=True) for part in some]
    found = iter(read(pairs) if pairs else ())
    return [_highest([next(found) for _ in some]) for some in parts]


def _highest(scores: Sequence[ModelScore]) -> ModelScore:
    if not scores or any(each.score is None for each in scores):
        return ModelScore(None)
    return max(scores, key=lambda each: each.score or 0.0)


def _parts(text: str, longest: int) -> list[str]:
    """The text in parts of at most `longest` characters; none of one that is too long."""
    if len(text) <= longest:
        return [text]
    starts = range(0, len(text) - _OVERLAP, longest - _OVERLAP)
    return [text[at : at + longest] for at in starts] if len(starts) <= MOST_PARTS else []
