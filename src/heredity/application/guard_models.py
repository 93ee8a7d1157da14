"""The models of guards: named in an application by what decides their scores, and asked many texts at once.

Promises: an application with a guard model has no digest until the model is identified, and is refused under
another one. A text is read once, however often it comes. Memory is bounded.
Leaves to others: loading models and reading their replies (redteam/judges/guard.py), and what follows from
a score (guards/model.py, guard_chain.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from threading import Lock

import msgspec

from heredity.application.guards import load_guard
from heredity.application.guards.model import ModelGuard
from heredity.application.guards.protocols import MODEL_KIND, GuardReaders, GuardSpec, ModelScore, ReadText
from heredity.application.spec import Application
from heredity.core.errors import NotComparable, UsageError
from heredity.core.records import digest
from heredity.core.sanitize import clean_text

_KEPT = 4096  # scores of the texts that were read last


def has_guard_models(application: Application) -> bool:
    """Whether any of its guards has a model. Then it needs a GuardReaders."""
    return any(spec.kind == MODEL_KIND for spec in application.all_guards)


def identified(application: Application, readers: GuardReaders) -> Application:
    """The application with the identity of each guard model; itself without any.

    Raises as GuardReaders.identify does, and NotComparable if the application names another identity.
    """
    if not has_guard_models(application):
        return application
    specs = tuple(_identified(spec, readers) for spec in application.all_guards)
    return msgspec.structs.replace(application, guards=specs)


def _identified(spec: GuardSpec, readers: GuardReaders) -> GuardSpec:
    if not isinstance(rule := load_guard(spec), ModelGuard):
        return spec
    return msgspec.structs.replace(spec, settings={**spec.settings, "identity": _identity(rule, readers)})


def _identity(rule: ModelGuard, readers: GuardReaders) -> str:
    found = readers.identify(rule.model, rule.sides)
    if rule.identity not in ("", found):
        raise NotComparable(
            f"The guard model '{rule.model}' is {found} here, and the application has "
            f"{rule.identity[:40]!r}. Restore that model, or start a new study."
        )
    return found


class ModelReads:
    """The scores of the models of some guards. Threads may share it if they may share the models."""

    def __init__(self, rules: Iterable[ModelGuard], readers: GuardReaders | None) -> None:
        """Raises UsageError without readers, and what they raise."""
        self._readers = {}
        for rule in rules:
            if readers is None:
                raise UsageError(f"The guard model '{rule.model}' cannot be loaded here.")
            _identity(rule, readers)
            self._readers[rule.model] = readers.reader(rule.model)
        self._kept: dict[str, ModelScore] = {}
        self._lock = Lock()

    def score(self, rule: ModelGuard, text: ReadText) -> ModelScore:
        """The score of one text."""
        return self.read(rule, [text])[0]

    def read(self, rule: ModelGuard, texts: Sequence[ReadText]) -> list[ModelScore]:
        """The scores of many texts, in order. Those that were not read yet are read together."""
        texts = [ReadText(each.side, clean_text(each.question), clean_text(each.text)) for each in texts]
        keys = [digest([rule.model, *text]) for text in texts]
        with self._lock:
            found = {key: self._kept[key] for key in keys if key in self._kept}
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        if new:
            scores = self._readers[rule.model].scores(list(new.values()))
            fresh = dict(zip(new, scores, strict=True))
            found |= fresh
            self._keep({key: score for key, score in fresh.items() if score.score is not None})
        return [found[key] for key in keys]

    def _keep(self, scores: dict[str, ModelScore]) -> None:
        with self._lock:
            self._kept |= scores
            while len(self._kept) > _KEPT:
                del self._kept[next(iter(self._kept))]
