"""Prove, before a study, that each model of a server answers under its own name.

A server that holds several models or adapters may answer with another one (llama.cpp issue 26207, vLLM issue
30931). Its reply does not show it. Each model is asked the same neutral prompts greedily: first one
model after the other, then all at once. An adapter without another model at its server is compared with its
base. Each prompt has a planted label, which only its own answer may have.

Refused are two models that give the same answers to all prompts. So is a model that gives the answer of
another one under load, and an answer with the label of another prompt.

Promises: nothing of it enters the study's rows. Models of different servers are not compared.
Leaves to others: whether a server that holds one model has the right weights.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from itertools import combinations, permutations

from heredity.core.errors import EngineFailure, Refused
from heredity.core.records import Decoding, Message, Model, Request
from heredity.engines import shared_address
from heredity.engines.protocols import Engine, SharedServer

TOPICS = (
    "a lighthouse", "an old bicycle", "the first snow", "a lost key", "a market in spring", "a long bridge",
    "a quiet library", "a garden at night",
)  # fmt: skip
_DECODING = Decoding(max_tokens=48, temperature=0.0, top_p=1.0)
_LEAST_CHARACTERS = 12  # of an answer by which a model can be known

Answers = tuple[str, ...]  # to the prompts, in order; "" for a failed one


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
    labels = [_label(address, n) for n in range(len(TOPICS))]
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
        Request(n, (Message("user", _prompt(topic, label)),), _DECODING, seed=n)
        for n, (topic, label) in enumerate(zip(TOPICS, labels, strict=True))
    ]
    found = {reply.key: reply for reply in engine.reply(requests)}
    failed = [reply.error for reply in found.values() if reply.error is not None]
    if len(failed) == len(labels):
        raise EngineFailure(f"'{engine.name}' answers none of {len(labels)} short prompts: {failed[0]}")
    return tuple(found[n].text if n in found and found[n].error is None else "" for n in range(len(labels)))


def _prompt(topic: str, label: str) -> str:
    return f"Note {label}. Write two sentences about {topic}, and end with the number of the note."


def _label(address: str, n: int) -> str:
    """A label that no other text has."""
    return "n" + hashlib.blake2b(f"{address}\0{n}".encode(), digest_size=4).hexdigest()
