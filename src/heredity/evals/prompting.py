"""The forms in which a task's items are sent to an engine. A metric names the one that it needs (`ASKS`).

reply   the model answers in its own words, greedily
score   the log-probability of each option after the same prompt
match   the similarity of each option, between an image and a caption

An encoder for masked positions scores options as well. A dual encoder of images and texts is asked by
`match`.

Promises: a form that a model does not support is refused before the model is loaded. A failed item is an
answer with an error.
Leaves to others: the items, and storing their answers (run.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

from heredity import engines
from heredity.core.errors import ContextOverflow, UsageError
from heredity.core.records import Decoding, Message, Model, Record, Request, Stop, digest, why_not_generative
from heredity.core.sanitize import clean_text
from heredity.engines.protocols import Engine, Matcher, Scorer
from heredity.evals.metrics import LETTERS
from heredity.evals.metrics import load as metric_of
from heredity.evals.tasks import EvalTask, TaskItem, images

Form = Literal["chat", "plain"]


class RenderedItem(Record, frozen=True):
    """A rendered item. `key` is a digest over all of it; the model is not part of it."""

    key: str
    request: Request
    continuations: tuple[str, ...]  # the options to score: each continues the prompt, or is a text of its own


def put(task: EvalTask, item: TaskItem, n_shots: int, form: Form) -> RenderedItem:
    """The item after its first `n_shots` examples, to be decoded greedily."""
    shots = [shot for shot in task.shots if shot.group == item.group][:n_shots]
    decoding = Decoding(max_tokens=task.max_tokens)
    if form == "plain":
        blocks = [
            _filled(task.plain, task, shot) + _gap(task.plain) + _answer(task, shot) + "\n\n"
            for shot in shots
        ]
        text = "".join(blocks) + _filled(task.plain, task, item)
        request = Request(0, (), decoding, prefill=text)
    else:
        said = [message for shot in shots for message in _turns(task, shot)]
        asked, begin = Message("user", _filled(task.prompt, task, item)), _filled(task.begin, task, item)
        request = Request(0, (*said, asked), decoding, prefill=begin, n_shared=len(said))
    way, gap = metric_of(task.metric).ASKS, _gap(task.plain if form == "plain" else task.begin)
    gap = "" if way == "match" else gap
    continuations = () if way == "reply" else tuple(gap + option for option in item.options)
    return RenderedItem(digest([request, continuations]), request, continuations)


def said(text: str, form: Form) -> str:
    """The answer in a model's output; in a plain continuation, the first line with a word."""
    if form == "chat":
        return text.strip()
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _turns(task: EvalTask, shot: TaskItem) -> tuple[Message, Message]:
    answer = _filled(task.begin, task, shot) + _gap(task.begin) + _answer(task, shot)
    return Message("user", _filled(task.prompt, task, shot)), Message("assistant", answer)


def _gap(before: str) -> str:
    """The space between a template and the answer after it; "" if a turn or a line begins there."""
    return "" if not before or before.endswith("\n") else " "


def _answer(task: EvalTask, item: TaskItem) -> str:
    """The right answer in the form that the metric asks for."""
    if metric_of(task.metric).SHOWS_LETTERS:
        return LETTERS[item.options.index(item.references[0])]
    return item.references[0]


def _filled(template: str, task: EvalTask, item: TaskItem) -> str:
    """The template with its slots filled, in one pass: braces in an item stay text."""
    values = {**task.groups.get(item.group, {}), "input": item.input, "options": _options(item)}
    parts = template.split("{")
    filled = parts[0]
    for part in parts[1:]:
        name, closed, rest = part.partition("}")
        filled += values[name] + rest if closed and name in values else "{" + part
    return filled


def _options(item: TaskItem) -> str:
    return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, item.options, strict=False))


class ItemResponse(NamedTuple):
    """The response to the item at `place`."""

    place: int
    text: str = ""
    logs: tuple[float, ...] = ()  # natural-log probability of each option, over all of its tokens
    n_prompt_tokens: int = 0
    n_tokens: int = 0
    stop: Stop = "end"
    error: str | None = None


class PromptForm(Protocol):
    """One way of asking."""

    def why_not(self, model: Model) -> str:
        """Why this model cannot be asked so, in words that say what could; "" where it can."""

    def answers(self, engine: Engine, asked: Sequence[RenderedItem]) -> Iterator[ItemResponse]:
        """An answer to each, in any order. Raises EngineFailure if the engine fails as a whole."""


class _Reply:
    def why_not(self, model: Model) -> str:
        return why_not_generative(model)

    def answers(self, engine: Engine, asked: Sequence[RenderedItem]) -> Iterator[ItemResponse]:
        requests = (msgspec.structs.replace(one.request, key=i) for i, one in enumerate(asked))
        for reply in engine.reply(requests):
            error = None if reply.error is None else clean_text(reply.error)
            yield ItemResponse(
                reply.key,
                clean_text(reply.text),
                (),
                reply.n_prompt_tokens,
                reply.n_answer_tokens,
                reply.stop,
                error,
            )


class _Score:
    def why_not(self, model: Model) -> str:
        engine = engines.choose(model)
        if engine in ("torch", "encoder", engines.GENERAL):
            return ""
        if why := why_not_generative(model):
            return why
        return f"the engine '{engine}' tells no log-probabilities of given texts; torch does"

    def answers(self, engine: Engine, asked: Sequence[RenderedItem]) -> Iterator[ItemResponse]:
        if not isinstance(engine, Scorer):
            raise UsageError(f"'{engine.name}' tells no log-probabilities of given texts; torch does.")
        for place, one in enumerate(asked):
            try:
                found = engine.score(one.request, one.continuations)
            except ContextOverflow as error:
                yield ItemResponse(place, stop="error", error=f"context overflow: {error}")
                continue
            yield ItemResponse(place, logs=tuple(map(sum, found)), n_tokens=sum(map(len, found)))


class _Match:
    def why_not(self, model: Model) -> str:
        return "" if engines.choose(model) == "dual" else "it matches no pictures with texts"

    def answers(self, engine: Engine, asked: Sequence[RenderedItem]) -> Iterator[ItemResponse]:
        if not isinstance(engine, Matcher):
            raise UsageError(f"'{engine.name}' matches no pictures with texts; the dual engine does.")
        for place, one in enumerate(asked):
            try:
                yield ItemResponse(
                    place, logs=tuple(_similar(engine, one.request.prefill, one.continuations))
                )
            except UsageError as error:
                yield ItemResponse(place, stop="error", error=str(error))


def _similar(engine: Matcher, shown: str, options: Sequence[str]) -> list[float]:
    """Similarities of an image to each caption, or of a caption to each image."""
    if (picture := images.bytes_of(shown)) is not None:
        return engine.match([picture], options)[0]
    pictures = [found for option in options if (found := images.bytes_of(option)) is not None]
    return [row[0] for row in engine.match(pictures, [shown])]


WAYS: dict[str, PromptForm] = {"reply": _Reply(), "score": _Score(), "match": _Match()}
