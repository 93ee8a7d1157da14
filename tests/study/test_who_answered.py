"""A server that answers for the wrong model is found before a study asks it anything."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import msgspec
import pytest

from heredity.core.errors import EngineFailure, Refused
from heredity.core.records import Model
from heredity.engines import Capabilities, Engine, Provenance
from heredity.engines.scripted import ScriptedEngine
from heredity.lineage.store import Store, scripted
from heredity.study import runner
from heredity.study.spec import StudySpec
from heredity.study.study import Study
from tests.support.errors import raises
from tests.support.fault_server import Asked, FaultServer, last_text
from tests.support.studies import APPLICATION, probes, responses

Say = Callable[[Asked], str]


def own(asked: Asked) -> str:
    """Each model has words of its own."""
    return f"{asked.body['model']} tells of it at length: {last_text(asked)}"


def base(asked: Asked) -> str:
    """The base answers, whatever adapter is named."""
    return f"base tells of it at length: {last_text(asked)}"


class OtherUnderLoad:
    """Answers as `base` while requests for two models are under way, as with adapters that are swapped."""

    def __init__(self) -> None:
        self._lock, self._models = threading.Lock(), set[str]()
        self.n_prompts = 0

    def __call__(self, asked: Asked) -> str:
        with self._lock:
            self._models.add(asked.body["model"])
            self.n_prompts += 1
        # The first pass asks one model, then the other; the second asks both at once.
        return base(asked) if self.n_prompts > 16 else own(asked)


class MixedRequests:
    """Every answer is that to the request before it."""

    def __init__(self) -> None:
        self._last = "nothing yet, dear reader"

    def __call__(self, asked: Asked) -> str:
        last, self._last = self._last, own(asked)
        return last


def study(server: FaultServer, folder: Path) -> Study:
    store = Store(folder / "store")
    models = [store.get(f"remote:openai:{name}@{server.base_url('openai')}") for name in ("base", "tuned")]
    return Study(StudySpec(models, APPLICATION, probes=probes(1), out=folder / "study"), store=store)


def test_a_server_whose_models_answer_as_themselves_is_asked_and_the_check_leaves_no_row(
    tmp_path: Path,
) -> None:
    with FaultServer(say=own) as server:
        made = study(server, tmp_path)
        made.ask()
    assert len(responses(tmp_path / "study")) == made.resolved.n_trials
    assert all("lighthouse" not in str(row) for row in responses(tmp_path / "study"))


@pytest.mark.parametrize(
    "say",
    [
        lambda: base,
        OtherUnderLoad,
        MixedRequests,
    ],
    ids=["the base for every name", "the base under load", "the answer of another request"],
)
def test_a_server_that_answers_for_the_wrong_model_is_refused_before_any_row(
    tmp_path: Path, say: Callable[[], Say]
) -> None:
    with FaultServer(say=say()) as server, raises(Refused, "refused", [server.base_url("openai")]):
        study(server, tmp_path).ask()
    assert not responses(tmp_path / "study")


def test_two_models_of_one_name_are_compared_though_a_server_takes_them_for_one(tmp_path: Path) -> None:
    def model(ident: str) -> Model:
        return msgspec.structs.replace(scripted("scripted:careful").record, id=ident * 32, name="vllm:tuned")

    @contextmanager
    def opened(_: Model) -> Iterator[ScriptedEngine]:
        yield ScriptedEngine("careful")

    with (
        patch.object(runner, "shared_address", lambda _: "http://server"),
        raises(Refused, "refused", ["vllm:tuned (aaaaaaaa)", "vllm:tuned (bbbbbbbb)"]),
    ):
        runner.require_own_answers([model("a"), model("b")], opened)


class WithBase(ScriptedEngine):
    """An adapter's engine, beside another one as its base."""

    def __init__(self, model: str, base: str | None) -> None:
        super().__init__(model)
        self._base = None if base is None else ScriptedEngine(base)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(provenance=Provenance(base_at_server=lambda: self._base))


@pytest.mark.parametrize(
    ("format_", "base", "is_refused"),
    [
        ("adapter", "careful", True),
        ("adapter", "leaky", False),
        ("adapter", None, False),
        ("safetensors", "careful", False),
    ],
)
def test_an_adapter_alone_is_compared_with_its_base(format_: str, base: str | None, is_refused: bool) -> None:
    record = scripted("scripted:careful").record
    model = msgspec.structs.replace(record, name="vllm:tuned", format=format_)

    @contextmanager
    def opened(_: Model) -> Iterator[Engine]:
        yield WithBase("careful", base)

    expected = raises(Refused, "refused", ["the base of vllm:tuned"]) if is_refused else nullcontext()
    with patch.object(runner, "shared_address", lambda _: "http://server"), expected:
        runner.require_own_answers([model], opened)


def test_one_model_of_a_server_needs_no_proof(tmp_path: Path) -> None:
    with FaultServer(say=base) as server:
        store = Store(tmp_path / "store")
        model = store.get(f"remote:openai:base@{server.base_url('openai')}")
        Study(
            StudySpec([model, "scripted:careful"], APPLICATION, probes=probes(1), out=tmp_path / "study"),
            store=store,
        ).ask()
        n_topics = sum("lighthouse" in str(asked.body) for asked in server.asked)
    assert n_topics == 0


def test_a_study_with_all_its_answers_asks_a_server_nothing(tmp_path: Path) -> None:
    with FaultServer(say=own) as server:
        study(server, tmp_path).ask()
        n = len(server.asked)
        study(server, tmp_path).ask()
        assert len(server.asked) == n


def test_a_server_that_refuses_every_prompt_is_an_error(tmp_path: Path) -> None:
    with FaultServer(always="400") as server, raises(EngineFailure, "engine-failure"):
        study(server, tmp_path).ask()
