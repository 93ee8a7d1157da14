"""Models that a file of a study or its user names: scripted ones, those of the store, those of the study.

Promises: a target such as `call:` is not resolved. A study's folder may come from anyone.
Leaves to others: the names that a user gives to a new study (study.py), and loading.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from itertools import combinations, permutations
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec
from msgspec.structs import replace

from heredity.application import guards
from heredity.application.guarded import KnownAnswers, guarded
from heredity.application.guards import GuardReaders, GuardSpec
from heredity.application.spec import Application
from heredity.core.errors import Damaged, EngineFailure, Refused, UnknownName, UsageError
from heredity.core.records import Decoding, Message, Model, RecipeRecord, Request, digest
from heredity.core.sanitize import label
from heredity.engines import scripted, shared_address
from heredity.engines.protocols import Engine, SharedServer
from heredity.lineage.references import spellings
from heredity.lineage.store import Store
from heredity.lineage.store import scripted as scripted_model
from heredity.lineage.types import Grown
from heredity.study.plan import Plan, PlannedModel

TOPICS = (
    "a lighthouse", "an old bicycle", "the first snow", "a lost key", "a market in spring", "a long bridge",
    "a quiet library", "a garden at night",
)  # fmt: skip
_DECODING = Decoding(max_tokens=48, temperature=0.0, top_p=1.0)
_LEAST_CHARACTERS = 12  # of an answer by which a model can be known

Answers = tuple[str, ...]  # to the prompts, in order; "" for a failed one


# --- who answered ------------------------------------------------------------------------------------
# Prove, before a study, that each model of a server answers under its own name. A server that holds several
# models or adapters may answer with another one (llama.cpp issue 26207, vLLM issue 30931). Its reply does
# not show it. Each model is asked the same neutral prompts greedily: first one model after the other, then
# all at once. An adapter without another model at its server is compared with its base. Each prompt has a
# planted label, which only its own answer may have. Promises: nothing of it enters the study's rows. Models
# of different servers are not compared.
def require_own_answers(
    records: Sequence[Model], open_model: Callable[[Model], AbstractContextManager[Engine]]
) -> None:
    """Raise Refused if a server that holds several of these models answers for the wrong one."""
    by_server: dict[str, list[Model]] = defaultdict(list)
    for record in records:
        if address := shared_address(record):
            by_server[address].append(record)
    for address, models in by_server.items():
        if len(models) > 1:
            with ExitStack() as stack:
                engines = {_called(each, models): stack.enter_context(open_model(each)) for each in models}
                check_server(address, engines)
        elif models[0].format == "adapter":  # a server that lost an adapter answers with its base
            with open_model(models[0]) as engine:
                base = engine.base_at_server() if isinstance(engine, SharedServer) else None
                if base is not None:
                    check_server(address, {models[0].name: engine, f"the base of {models[0].name}": base})


def _called(model: Model, models: Sequence[Model]) -> str:
    """The name of a model, with its id if another has the name: a server may take both for one."""
    is_only = sum(each.name == model.name for each in models) == 1
    return model.name if is_only else f"{model.name} ({model.id[:8]})"


def check_server(address: str, engines: Mapping[str, Engine]) -> None:
    """Ask the models of one server. Raises Refused as the module describes, EngineFailure if none answers."""
    labels = [
        ("n" + hashlib.blake2b(f"{address}\0{n}".encode(), digest_size=4).hexdigest())
        for n in range(len(TOPICS))
    ]
    apart = {name: _ask(engine, labels) for name, engine in engines.items()}
    with ThreadPoolExecutor(len(engines)) as threads:
        asked = {name: threads.submit(_ask, engine, labels) for name, engine in engines.items()}
        together = {name: each.result() for name, each in asked.items()}
    for answers in (apart, together):
        for name, texts in answers.items():
            _refuse_foreign_labels(address, name, texts, labels)
    for one, other in permutations(engines, 2):
        for n, text in enumerate(together[one]):
            is_own = text == apart[one][n] or len(text) < _LEAST_CHARACTERS
            if not is_own and text == apart[other][n]:
                raise Refused(
                    f"The server at {address} answers for '{one}' with '{other}' if both are asked at once. "
                    "Serve each model by a server of its own, or update the server."
                )
    for one, other in combinations(engines, 2):
        if _are_alike(apart[one], apart[other]):
            raise Refused(
                f"'{one}' and '{other}' give the same {len(TOPICS)} answers at {address}, so one model may "
                "answer under both names. Check the names and adapters of the server. If the models are "
                "meant to be that similar, serve each by a server of its own."
            )


def _are_alike(one: Answers, other: Answers) -> bool:
    """Whether all answers that both gave are equal."""
    both = [(a, b) for a, b in zip(one, other, strict=True) if a and b]
    return bool(both) and all(a == b for a, b in both)


def _refuse_foreign_labels(address: str, name: str, texts: Answers, labels: Sequence[str]) -> None:
    for n, text in enumerate(texts):
        if found := next((label for label in labels if label != labels[n] and label in text), ""):
            raise Refused(
                f"An answer of '{name}' at {address} has the label '{found}', which is in another prompt "
                "only: the server mixes its requests. Use another server, or another version of it."
            )


def _ask(engine: Engine, labels: Sequence[str]) -> Answers:
    requests = [
        Request(
            n,
            (
                Message(
                    "user",
                    f"Note {label}. Write two sentences about {topic}, and end with the number of the note.",
                ),
            ),
            _DECODING,
            seed=n,
        )
        for n, (topic, label) in enumerate(zip(TOPICS, labels, strict=True))
    ]
    found = {reply.key: reply for reply in engine.reply(requests)}
    failed = [reply.error for reply in found.values() if reply.error is not None]
    if len(failed) == len(labels):
        raise EngineFailure(f"'{engine.name}' answers none of {len(labels)} short prompts: {failed[0]}")
    return tuple(found[n].text if n in found and found[n].error is None else "" for n in range(len(labels)))


if TYPE_CHECKING:
    from heredity.core.cache import ResponseCache
    from heredity.engines.protocols import Engine

BEHIND_GUARDS = "behind_guards"


# --- behind guards -----------------------------------------------------------------------------------
# Models behind guards as models of a study: each is compared with itself without them, trial by trial.
# Promises: a guarded model is not in the store. Its id covers the model and every setting of its guards.
def with_guards(models: Sequence[Grown], named: Sequence[str], application: Application) -> list[Grown]:
    """The models, each followed by itself behind each of the guards.

    named: guards that a study switches on together, as "links" or "links+secrets". Raises UnknownName, and
    UsageError for one that holds for all models anyway.
    """
    chosen = [guards.chosen(names, application.all_guards) for names in named]
    standing = {spec.label for spec in application.standing_guards}
    if twice := next((s.label for some in chosen for s in some if s.label in standing), None):
        raise UsageError(
            f"The guard '{twice}' of application '{application.name}' is always on. Write is_on = false there"
            " to compare a model with it and without."
        )
    found: list[Grown] = []
    for model in models:
        found.append(model)
        found += [guarded_model(model, some) for some in chosen]
    return found


def planned(model: Model) -> PlannedModel:
    """A model as a plan holds it."""
    planned_model = PlannedModel(model.id, model.name, model.family, model.licence, model.format)
    if model.recipe.kind != BEHIND_GUARDS:
        return planned_model
    specs = msgspec.convert(model.recipe.settings["guards"], tuple[GuardSpec, ...])
    return replace(planned_model, of=model.parents[0], guards=specs)


def loaded(plan: Plan, model: PlannedModel) -> PlannedModel:
    """The model of a plan that is loaded for one of its models. Raises Damaged if the plan lacks it."""
    if (model.of or model.guards) and model.id != _id(model.of or "", model.guards or ()):
        raise Damaged(f"The id of '{model.name}' in the plan is not that of a model behind these guards.")
    attacker = [plan.attacker] if isinstance(plan.attacker, PlannedModel) else []
    for each in (*plan.models, *attacker):
        if each.id == (model.of or model.id) and not each.of:
            return each
    raise Damaged(f"The plan has '{model.name}', but not the model behind its guards.")


def is_guarded(model: Model) -> bool:
    """Whether a record is that of a model behind guards."""
    return model.recipe.kind == BEHIND_GUARDS


def behind_guards(
    engine: Engine,
    model: PlannedModel,
    application: Application,
    cache: ResponseCache | None,
    readers: GuardReaders | None,
) -> Engine:
    """The engine of a planned model: behind the application's guards and its own.

    readers: the models of guards.
    """
    own = () if model.guards is None else model.guards
    if not (own or application.standing_guards):
        return engine
    known = None if cache is None else KnownAnswers(cache, model.of or model.id)
    return guarded(engine, application, own, known, readers)


def guarded_model(model: Grown, specs: tuple[GuardSpec, ...]) -> Grown:
    """A model behind these guards, as a model of a study."""
    record, labels = model.record, "+".join(spec.label for spec in specs)
    settings: dict[str, object] = {"guards": msgspec.to_builtins(specs)}
    made = replace(
        record,
        id=_id(record.id, specs),
        name=f"{record.name}+{labels}",
        parents=(record.id,),
        recipe=RecipeRecord(BEHIND_GUARDS, settings),
    )
    return Grown(made, model.folder)


def _id(of: str, specs: tuple[GuardSpec, ...]) -> str:
    return digest([BEHIND_GUARDS, of, {"guards": msgspec.to_builtins(guards.content(specs))}])


_SHORTEST_ID = 4  # characters of an id that name a model


class NamedModel(Protocol):
    """A model with an id and a name, such as a planned one or the card of a model in a result."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...


_Model = TypeVar("_Model", bound=NamedModel)


def rule_model(name: str) -> Grown:
    """A scripted model. Raises UnknownName with the nearest rule."""
    scripted.parse_rule(name)
    return scripted_model(name)


def stored_model(store: Callable[[], Store], name: str) -> Grown:
    """A scripted model, or one of the store. Raises UnknownName."""
    return rule_model(name) if name.startswith(scripted.PREFIX) else store().named(name)


def model_of_study(models: Sequence[_Model], name: str) -> _Model:
    """The model of a study with this name, the name that it is short for, or this start of its id.

    `leaky` names `scripted:leaky`, if no other ends so.

    No store is opened. Raises UnknownName with the models of the study, and UsageError if two have the name.
    """
    found = [model for model in models if name in (model.name, model.id)]
    found = found or [model for model in models if model.name in spellings(name)]
    if not found and len(ending := [m for m in models if m.name.endswith(f":{name}")]) == 1:
        found = ending
    if not found and len(name) >= _SHORTEST_ID:
        found = [model for model in models if model.id.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"'{label(name)}' is {len(found)} models of this study: give the id.")
    raise unknown_model(models, name)


def unknown_model(models: Sequence[NamedModel], name: str) -> UnknownName:
    """The error for a name that no model of a study has; it lists those that there are."""
    known = [label(model.name) for model in models]
    kind, listed = "model of this study", ", ".join(known)
    return UnknownName(kind, label(name), known, listed)


def with_families(models: Sequence[Grown], tops: Sequence[Grown], store: Callable[[], Store]) -> list[Grown]:
    """The models, and every family below `tops` that the store can ask, each model once."""
    found = {each.record.id: each for each in models}
    for top in tops:
        for each in store().family(top.record).asked:
            grown = top if each.id == top.record.id else Grown(each, store().folder(each))
            found.setdefault(each.id, grown)
    return list(found.values()) if tops else list(models)
