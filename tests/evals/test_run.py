"""Tasks put to models: nothing is asked twice, what is refused is said, and grades say what they rest on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from heredity.core.errors import EngineFailure, NotComparable, UsageError
from heredity.core.files import Rows
from heredity.core.records import RecipeRecord, Reply, Request
from heredity.engines import Capabilities, Engine
from heredity.engines.scripted import ScriptedEngine
from heredity.evals import tasks
from heredity.evals.run import ANSWERS, GRADES, AnswerRow, Evaluation, Grades
from heredity.lineage.store import Store, scripted
from heredity.lineage.types import Grown
from tests.support.errors import raises
from tests.support.tiny_models import make_model

SOME = ("arithmetic", "classification")


class Clever(ScriptedEngine):
    """Answers sums right, also as a base model that goes on behind its answer; fails where it is told to."""

    def __init__(self, is_base: bool = False, fails: bool = False, numerics: str = "clever") -> None:
        super().__init__("helpful")
        self._is_base, self._fails, self.numerics = is_base, fails, numerics
        self.asked: list[Request] = []

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(is_base=self._is_base)

    def _one(self, request: Request) -> Reply:
        self.asked.append(request)
        if self._fails and "What is" not in self.render(request):
            return Reply(request.key, "", "", stop="error", error="out of order")
        text = (
            request.messages[-1].content if request.messages else request.prefill.rpartition("Question:")[2]
        )
        words = text.replace("?", "").split()
        said = f" {int(words[2]) + int(words[4])}\nQuestion: What" if "+" in words else " no idea"
        return Reply(request.key, "", said, tuple(range(4)))


def loader(engine: Engine) -> Any:
    return lambda grown: engine


def evaluate(folder: Path, engine: Engine, names: Sequence[str] = SOME, **more: Any) -> Grades:
    again = more.pop("retry_errors", False)
    asked = Evaluation(
        ["scripted:helpful"], names, store=Store(folder / "store"), out=folder / "out",
        engine_loader=loader(engine), **more,
    )  # fmt: skip
    return asked.run(retry_errors=again)


def rows(folder: Path) -> list[AnswerRow]:
    return list(Rows(folder / "out" / ANSWERS, AnswerRow))


def test_what_is_right_is_counted_with_its_interval(tmp_path: Path) -> None:
    (task,) = tasks.load(["arithmetic"])
    grade = evaluate(tmp_path, Clever(), ["arithmetic"]).grades[0]
    n_sums = sum(" + " in item.input for item in task.items)
    assert grade.score.n == len(task.items)
    assert grade.score.value == pytest.approx(n_sums / len(task.items))
    assert grade.score.method == "wilson"
    assert grade.n_unclear == len(task.items) - n_sums


def test_a_base_model_is_put_plain_texts_and_read_to_the_end_of_a_line(tmp_path: Path) -> None:
    engine = Clever(is_base=True)
    found = evaluate(tmp_path, engine, ["arithmetic"], shots=(0, 2))
    assert not any(request.messages for request in engine.asked)
    assert found.models[0].form == "plain"
    assert all((grade.score.value or 0.0) > 0.3 for grade in found.grades)


def test_plain_puts_plain_texts_also_to_a_model_with_a_template(tmp_path: Path) -> None:
    engine = Clever()
    evaluate(tmp_path, engine, ["arithmetic"])
    n = len(engine.asked)
    assert all(request.messages for request in engine.asked)
    found = evaluate(tmp_path, engine, ["arithmetic"], is_plain=True)
    assert not any(request.messages for request in engine.asked[n:])
    assert found.models[0].form == "plain"


def test_a_base_made_here_is_put_plain_texts_though_it_has_a_template(tmp_path: Path) -> None:
    pulled, engine = scripted("scripted:helpful"), Clever()
    made = msgspec.structs.replace(pulled.record, recipe=RecipeRecord("pretrain", {}))
    found = Evaluation(
        [Grown(made, pulled.folder)], ["arithmetic"], store=Store(tmp_path / "store"), out=tmp_path / "out",
        engine_loader=loader(engine),
    ).run()  # fmt: skip
    assert engine.asked and not any(request.messages for request in engine.asked)
    assert found.models[0].form == "plain"


def test_plain_is_refused_where_only_conversations_are_taken(tmp_path: Path) -> None:
    with raises(UsageError, "bad-usage"):
        evaluate(tmp_path, ScriptedEngine("helpful"), is_plain=True)


def test_nothing_is_asked_twice_and_what_is_new_is(tmp_path: Path) -> None:
    engine = Clever()
    first = evaluate(tmp_path, engine)
    n = len(engine.asked)
    assert evaluate(tmp_path, engine) == first
    assert len(engine.asked) == n
    evaluate(tmp_path, engine, shots=(0, 3))
    assert len(engine.asked) == 2 * n


def test_a_model_of_which_all_is_answered_is_not_loaded(tmp_path: Path) -> None:
    evaluate(tmp_path, Clever())

    def never(grown: Grown) -> Engine:
        raise AssertionError("loaded")

    again = Evaluation(
        ["scripted:helpful"], SOME, store=Store(tmp_path / "store"), out=tmp_path / "out", engine_loader=never
    )
    assert again.run().grades[0].score.n > 0


def test_errors_are_in_no_score_and_are_asked_again_on_demand(tmp_path: Path) -> None:
    found = evaluate(tmp_path, Clever(fails=True), ["arithmetic"])
    (grade,) = found.grades
    assert grade.n_error > 0
    assert grade.score.n + grade.n_error == found.tasks[0].n_items
    engine = Clever()
    (mended,) = evaluate(tmp_path, engine, ["arithmetic"], retry_errors=True).grades
    assert (mended.n_error, len(engine.asked)) == (0, grade.n_error)


def test_answers_of_another_arithmetic_are_not_mixed(tmp_path: Path) -> None:
    evaluate(tmp_path, Clever(), ["arithmetic"])
    with raises(NotComparable, "not-comparable"):
        evaluate(tmp_path, Clever(numerics="other"))


def test_an_engine_without_probabilities_is_refused_those_tasks_alone(tmp_path: Path) -> None:
    found = evaluate(tmp_path, Clever(), ["arithmetic", "cloze"])
    by_task = {grade.task: grade for grade in found.grades}
    assert "log-probabilities" in by_task["cloze"].refused
    assert by_task["cloze"].score.value is None
    assert not by_task["arithmetic"].refused
    with raises(UsageError, "bad-usage"):
        evaluate(tmp_path, Clever(), ["cloze"])


def test_more_examples_than_there_are_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    with raises(UsageError, "bad-usage", mentions=["translation", "3", "4"]):
        evaluate(tmp_path, Clever(), ["translation"], shots=(4,))


def test_a_limit_takes_items_of_every_kind(tmp_path: Path) -> None:
    evaluate(tmp_path, Clever(), ["classification"], limit=12)
    assert {row.item.partition("-")[0] for row in rows(tmp_path)} == {"sentiment", "topic"}
    assert len(rows(tmp_path)) == 12


def test_a_model_that_stops_answering_keeps_what_it_said(tmp_path: Path) -> None:
    class Dying(Clever):
        def reply(self, requests: Any) -> Iterator[Reply]:
            for n, reply in enumerate(super().reply(requests)):
                if n == 5:
                    raise EngineFailure("gone")
                yield reply

    with raises(EngineFailure, "engine-failure", mentions=["gone", tmp_path]):
        evaluate(tmp_path, Dying(), ["arithmetic"])
    engine = Clever()
    found = evaluate(tmp_path, engine, ["arithmetic"])
    assert len(engine.asked) == found.tasks[0].n_items - 5


def test_two_models_are_compared_item_by_item(tmp_path: Path) -> None:
    def load(grown: Grown) -> Engine:
        return Clever() if grown.record.name == "scripted:helpful" else ScriptedEngine("refuser")

    asked = Evaluation(
        ["scripted:helpful", "scripted:refuser"], ["arithmetic", "translation"],
        store=Store(tmp_path / "store"), out=tmp_path / "out", engine_loader=load,
    )  # fmt: skip
    found = asked.run()
    share, mean = found.differences
    assert (share.test, share.verdict) == ("exact McNemar", "worse")
    assert share.p_holm == pytest.approx(2 * share.p_value)
    assert share.difference.low is not None and share.difference.high is not None
    assert share.difference.low < (share.difference.value or 0.0) < share.difference.high < 0
    assert "sign flips" in mean.test and "bootstrap over pairs" in mean.difference.method
    assert msgspec.json.decode((tmp_path / "out" / GRADES).read_bytes(), type=Grades) == found


CHILD = """
import os, signal, sys
from pathlib import Path
from heredity.core import files as store
from heredity.evals.run import Evaluation
from heredity.lineage.store import Store
n_left, append = int(sys.argv[2]), store.Rows.append
def counted(rows, record):
    global n_left
    append(rows, record)
    n_left -= 1
    if n_left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
store.Rows.append = counted
folder = Path(sys.argv[1])
Evaluation(["scripted:mixed"], ["arithmetic"], store=Store(folder / "store"), out=folder / "out").run()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_killed_it_goes_on_and_comes_to_the_same_grades(tmp_path: Path) -> None:
    def live(name: str, n_rows: int) -> int:
        command = [sys.executable, "-c", CHILD, str(tmp_path / name), str(n_rows)]
        return subprocess.run(command, capture_output=True, check=False).returncode

    assert live("whole", 0) == 0
    while (code := live("killed", 17)) == -signal.SIGKILL:
        pass
    assert code == 0
    whole, killed = ((tmp_path / name / "out" / GRADES).read_text() for name in ("whole", "killed"))
    assert json.loads(whole) == json.loads(killed)
    asked = [row.asked for row in Rows(tmp_path / "killed" / "out" / ANSWERS, AnswerRow)]
    assert len(asked) == len(set(asked)) == 60


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Grown, Grown]:
    """A model with a chat template and one without, both of random weights."""
    folder = tmp_path_factory.mktemp("eval")
    store = Store(folder / "store")
    chat = make_model(folder / "chat", "llama", max_position_embeddings=4096)
    base = make_model(folder / "base", "llama", template=None, max_position_embeddings=4096)
    return store, store.pull(str(chat)), store.pull(str(base))


def float32(grown: Grown) -> Engine:
    from heredity.engines.torch import engine as torch

    return torch.open_folder(grown.folder, dtype="float32", is_probed=False)


def test_a_real_network_scores_options_and_answers_in_the_form_that_it_has(
    tmp_path: Path, grown: tuple[Store, Grown, Grown]
) -> None:
    store, chat, base = grown
    asked = Evaluation(
        [chat, base], ["cloze", "arithmetic"], (0, 2), limit=4, store=store, out=tmp_path / "out",
        engine_loader=float32,
    )  # fmt: skip
    found = asked.run()
    assert [model.form for model in found.models] == ["chat", "plain"]
    assert all(grade.score.n == 4 and not grade.n_error for grade in found.grades)
    scored = [row for row in rows(tmp_path) if row.task == "cloze"]
    assert len(scored) == 16
    assert all(len(row.logs) == 4 and max(row.logs) < 0 for row in scored)


def test_a_prompt_too_long_for_the_model_is_an_error_row(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    short = store.pull(str(make_model(tmp_path / "short", "llama", max_position_embeddings=64)))
    names = ["code", "summarisation"]
    found = Evaluation(
        [short], names, limit=2, store=store, out=tmp_path / "out", engine_loader=float32
    ).run()
    assert [(grade.score.n, grade.n_error) for grade in found.grades] == [(0, 2), (0, 2)]
    assert all("context overflow" in (row.error or "") for row in rows(tmp_path))


def test_a_plain_text_reaches_a_chat_model_as_it_is(grown: tuple[Store, Grown, Grown]) -> None:
    engine: Any = float32(grown[1])
    try:
        assert engine.render(Request(0, (), prefill="Two and two")) == "Two and two"
        assert engine.capabilities.is_base is False
    finally:
        engine.close()


def test_a_plain_text_begins_as_the_tokenizer_begins_a_text(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    folder = make_model(tmp_path / "chat", "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(folder)
    from heredity.engines.chat import ChatCodec

    chat = ChatCodec(folder)
    rendered = chat.render(Request(0, (), prefill="the fox"))
    assert rendered == "<|endoftext|>the fox"
    assert list(chat.encode(rendered)) == tokenizer.encode("the fox")
