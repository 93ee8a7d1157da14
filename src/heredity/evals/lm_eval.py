"""A model of heredity's as one of lm-evaluation-harness, so that its standard tasks go through our engines.

    import lm_eval
    from heredity.evals import lm_eval as harness
    with harness.model("smollm2-135m-instruct") as lm:
        lm_eval.simple_evaluate(lm, tasks=["arc_easy"])

lm-evaluation-harness is the extra `harness` and is loaded here, when a model is asked for. Its tasks bring
their own data, from the model hub, under their own licences.

Promises: decoding is greedy; a text of the harness reaches the model unchanged. A request longer than the
context is an error and is never truncated.
Its tasks that run model output stay refused unless its own `confirm_run_unsafe_code` is given; heredity never
gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from heredity.core.errors import EngineFailure, Unavailable, UsageError, how_to_install
from heredity.core.records import Decoding, Message, Request
from heredity.engines import Engine, capabilities
from heredity.lineage.store import Store, load_engine
from heredity.lineage.types import Grown

_MAX_TOKENS = 256  # of an answer for which the task names no bound


@contextmanager
def model(name: str | Grown, store: Store | None = None) -> Iterator[Any]:
    """An `lm_eval.api.model.LM` of a model, loaded as long as the block runs.

    Raises Unavailable if lm-evaluation-harness is not installed, UsageError if the engine gives no
    log-probabilities.
    """
    store = store if store is not None else Store()
    grown = name if isinstance(name, Grown) else store.get(name)
    made = _class()
    engine = load_engine(grown, store)
    try:
        yield made(engine, grown.record.name)
    finally:
        engine.close()


def over(engine: Engine, name: str = "") -> Any:
    """The same over an engine that is loaded already, and is closed by its owner."""
    return _class()(engine, name or engine.name)


def _class() -> Callable[[Any, str], Any]:
    """The subclass; made when it is asked for, for its base is an extra."""
    try:
        from lm_eval.api.model import LM
    except ImportError as error:
        raise Unavailable(
            f"lm-evaluation-harness is not installed ({error}). {how_to_install('harness')}",
            code="package-missing",
        ) from error

    class Answering(LM):  # type: ignore[misc,unused-ignore]
        """A loaded engine behind the harness's three questions."""

        def __init__(self, engine: Any, name: str) -> None:
            super().__init__()
            if (scorer := capabilities(engine).scorer) is None:
                raise UsageError(f"'{name}' tells no log-probabilities; the torch engine does.")
            self._engine, self._scorer, self._name = engine, scorer, name

        @property
        def tokenizer_name(self) -> str:
            return self._name

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            return [self._scored(*one.args) for one in requests]

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            return [self._scored("", one.args[0])[0] for one in requests]

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            asked = [
                _generating(i, self._request(one.args[0]), one.args[1]) for i, one in enumerate(requests)
            ]
            texts = [""] * len(asked)
            for reply in self._engine.reply(iter(asked)):
                if reply.error is not None:
                    raise EngineFailure(reply.error)
                text, marks = reply.text, requests[reply.key].args[1].get("until") or []
                for mark in [marks] if isinstance(marks, str) else marks:
                    text = text.split(mark, 1)[0] if mark else text
                texts[reply.key] = text
            return texts

        def apply_chat_template(
            self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            messages = [
                Message(one["role"], one["content"])  # type: ignore[arg-type]
                for one in chat_history
            ]
            begun = (
                "" if add_generation_prompt or messages[-1].role != "assistant" else messages.pop().content
            )
            return str(self._engine.render(Request(0, tuple(messages), prefill=begun)))

        def _scored(self, context: str, continuation: str) -> tuple[float, bool]:
            (scored,) = self._scorer.score(self._request(context), [continuation])
            return sum(scored.logs), scored.is_greedy

        def _request(self, context: str) -> Request:
            """A plain text. A template may have added the engine's own prefix already."""
            opening = self._engine.render(Request(0, ()))
            return Request(0, (), prefill=context.removeprefix(opening) or self._scorer.boundary)

    return Answering


def _generating(key: int, request: Request, given: dict[str, Any]) -> Request:
    if given.get("do_sample") or float(given.get("temperature") or 0.0) > 0:
        raise UsageError("The harness's task samples its answers; heredity decodes greedily here.")
    most = int(given.get("max_gen_toks") or _MAX_TOKENS)
    return Request(key, (), Decoding(max_tokens=most), prefill=request.prefill)
