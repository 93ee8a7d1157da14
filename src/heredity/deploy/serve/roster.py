"""The models that a server answers for, by name. Adapters may come and go while it runs.

Promises: a name that means two models, or none, is refused with the names that there are. A model that comes
later has the guards of its application and the request log, like those of the start.
Leaves to others: loading (adapters.py), and HTTP (app.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from heredity.application.guards import GuardReaders
from heredity.core.errors import did_you_mean
from heredity.core.records import Model
from heredity.deploy.serve.answers import Served
from heredity.deploy.serve.embeddings import EmbeddingService
from heredity.deploy.serve.guarding import ServedGuards
from heredity.deploy.serve.request_log import RequestLog
from heredity.deploy.serve.schema import Refusal


class Roster:
    """The served models. `served` is replaced as a whole, so that a request sees one state of it.

    readers: the models of guards. log: gets each conversation with its answer.
    """

    def __init__(
        self, served: Sequence[Served], embedders: Sequence[EmbeddingService] = (),
        readers: GuardReaders | None = None, log: RequestLog | None = None,
    ) -> None:  # fmt: skip
        self._readers, self._log = readers, log
        self._n_found_before: Counter[str] = Counter()
        self.served, self.embedders = tuple(map(self._guarded, served)), tuple(embedders)

    def _guarded(self, one: Served) -> Served:
        return one._replace(guards=ServedGuards.of(one.application, self._readers), log=self._log)

    @property
    def n_found(self) -> Counter[str]:
        """The answers that guards touched since the start, by the label of the guard."""
        counts = (one.guards.n_found for one in self.served if one.guards is not None)
        return sum(counts, start=self._n_found_before.copy())

    def replace(self, old: Sequence[Served], new: Sequence[Served]) -> None:
        """Answer for other models instead of some. The old ones still end what they have begun."""
        self.served = (*(one for one in self.served if one not in old), *map(self._guarded, new))
        for one in old:
            if one.guards is not None:
                self._n_found_before += one.guards.n_found

    def name_of(self, one: Served) -> str:
        """Return the shortest name that is this model's only."""
        return next((name for name in one.names if self.having(name) == [one]), one.names[-1])

    def having(self, name: str) -> list[Served]:
        """Return the models that have a name."""
        return [one for one in self.served if name in one.names]

    def named(self, name: str) -> Served:
        """Return the one model of a name. Raises Refusal."""
        if len(matches := self.having(name)) == 1:
            return matches[0]
        if self.encoder(name) is not None:
            raise Refusal(400, "a sentence encoder answers at /v1/embeddings", "not_supported", param="model")
        names = [self.name_of(one) for one in matches or self.served]
        if matches:
            message = f"'{name[:200]}' is served more than once here. Name one: {', '.join(names)}"
            raise Refusal(404, message, "model_not_found", param="model")
        hint = did_you_mean(name[:200], names) or f" Available: {', '.join(names)}."
        raise Refusal(404, f"no model is named '{name[:200]}' here.{hint}", "model_not_found", param="model")

    def encoder(self, name: str) -> EmbeddingService | None:
        """Return the sentence encoder of a name; None if it has no such encoder."""
        return next((each for each in self.embedders if name in each.names), None)

    def embedder(self, name: str) -> EmbeddingService:
        """Return the sentence encoder of a name. Raises Refusal."""
        if (encoder := self.encoder(name)) is not None:
            return encoder
        message = f"'{self.named(name).model.name}' is not a sentence encoder, and gives no embeddings"
        raise Refusal(400, message, "not_supported", param="model")

    def about(self, one: Served, name: str = "") -> dict[str, object]:
        """Describe a served model, under the name that is this model's only or another one of it."""
        layer = one.application
        about = {
            "engine": one.service.engine.name,
            "application": None if layer is None else {"name": layer.name, "digest": layer.digest},
        }
        return described(one.model, name or self.name_of(one), **about)

    def about_all(self) -> list[dict[str, object]]:
        """Describe all models. One that was started under a short name is listed under both."""
        models = [self.about(one, name) for one in self.served for name in ("", *self._short_names(one))]
        return [*models, *(described(e.model, name) for e in self.embedders for name in ("", *e.started_as))]

    def _short_names(self, one: Served) -> list[str]:
        """The names that the operator gave to a model, each in the shortest form that means it alone."""
        forms = map(one.with_application, one.started_as)
        short_names = (next((name for name in each if self.having(name) == [one]), "") for each in forms)
        return [name for name in short_names if name]


def described(model: Model, name: str = "", **more: object) -> dict[str, object]:
    """Describe a model as the API lists it."""
    about = {
        "id": model.id,
        "parents": model.parents,
        "recipe": model.recipe.kind,
        "licence": model.licence,
        **more,
    }
    head = {"id": name or model.name, "object": "model", "created": 0, "owned_by": model.family}
    return {**head, "heredity": about}
