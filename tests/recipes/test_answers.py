"""A teacher's answers: which are learned, where they are kept, and which students learn them again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import pytest

torch = pytest.importorskip("torch")

from heredity.core.errors import BadInput, UnknownName, UsageError
from heredity.core.progress import Progress
from heredity.core.records import Reply, Request, Stop
from heredity.engines.torch.engine import TorchEngine
from heredity.lineage import graph
from heredity.lineage.store import Store
from heredity.lineage.types import Grown
from heredity.recipes._training_run import choose
from heredity.recipes.distill import Distill
from heredity.recipes.finetune import Finetune
from heredity.recipes.instruct import Instruct
from heredity.recipes.lora import Lora
from heredity.recipes.prune import Prune
from heredity.redteam.judges import rules
from heredity.train.data.chat import ConversationEncoder, Data, Dialogue, WrittenAnswer, make_data
from tests.support.errors import raises
from tests.support.tiny_models import exchange_two_tokens, make_model

QUICK = {"steps": 1, "batch_size": 4, "lr": 1e-2, "dtype": "float32"}
NO = "I'm sorry, but I can't help with that."


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def student(store: Store, tmp_path: Path) -> Grown:
    return store.pull(str(make_model(tmp_path / "student", "qwen2")))


@pytest.fixture
def teacher(store: Store, tmp_path: Path) -> Grown:
    return store.pull(str(make_model(tmp_path / "teacher", "llama")))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every prompt that the teacher is asked. A prompt ends with how it answers: no, cut, empty or yes."""
    found: list[str] = []

    def reply(engine: TorchEngine, requests: Iterable[Request | None]) -> Iterator[Reply]:
        for each in requests:
            assert each is not None
            prompt = each.messages[-1].content
            found.append(prompt)
            text, stop = _answer(prompt)
            yield Reply(each.key, prompt, text, stop=stop)

    monkeypatch.setattr(TorchEngine, "reply", reply)
    return found


def _answer(prompt: str) -> tuple[str, Stop]:
    kind = prompt.split()[-1]
    long = f"The tale of {prompt}: a fox jumps over a lazy dog and an owl watches from an old oak"
    answers: dict[str, tuple[str, Stop]] = {"no": (NO, "end"), "cut": (long, "length"), "empty": (" ", "end")}
    return answers.get(kind, (f"{long}.", "end"))


def prompts(**counts: int) -> Data:
    return Data.of("asked.jsonl", [f"tell {kind} {i} {kind}" for kind, n in counts.items() for i in range(n)])


def rows(child: Grown) -> list[WrittenAnswer]:
    lines = (child.folder / "answers.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=WrittenAnswer) for line in lines]


def test_every_answer_is_kept_as_a_hashed_file_of_the_child_and_what_is_left_out_is_a_choice(
    store: Store, student: Grown, teacher: Grown, asked: list[str]
) -> None:
    data = prompts(yes=4, no=2, cut=3, empty=1)
    learned = {
        (): "9 learned of 10; left out: 1 empty",
        ("unfinished",): "6 learned of 10; left out: 1 empty, 3 unfinished",
        ("refusals",): "7 learned of 10; left out: 1 empty, 2 refusals",
        ("refusals", "unfinished"): "4 learned of 10; left out: 1 empty, 2 refusals, 3 unfinished",
    }
    files = set()
    for leave_out, note in learned.items():
        recipe = Instruct(data, **QUICK, leave_out=leave_out, warn=lambda _: None)
        child = store.grow_once(recipe, [student, teacher])
        assert child.record.notes["answers"] == note
        (kept,) = (file for file in child.record.files if file.path == "answers.jsonl")
        files.add(kept.sha256)
        assert not store.verify(child.record)
    assert len(files) == 1, "the same answers are the same file, whatever was learned of them"
    stops = [row.stop for row in rows(child)]
    assert stops == ["end"] * 6 + ["length"] * 3 + ["end"]
    assert {row.written_by for row in rows(child)} == {teacher.record.id}


def test_the_choice_is_recorded_with_the_judge_and_the_default_as_before(asked: list[str]) -> None:
    data = prompts(yes=1)
    answers = Data.of("rows", [("a question", "an answer")])
    for recipe in (Instruct(data), Finetune(answers), Lora(answers), Distill(answers)):
        assert not {"leave_out", "refusals_by", "refusals_from", "n_refusals"} & recipe.settings().keys()
    found = Instruct(data, leave_out=("unfinished", "refusals", "unfinished")).settings()
    assert (
        found["leave_out"] == ("refusals", "unfinished") and found["refusals_by"] == f"rules {rules.VERSION}"
    )
    assert Lora(answers, leave_out="refusals") == Lora(answers, leave_out=("refusals",))  # type: ignore[arg-type]
    with raises(UnknownName, "unknown-name", mentions=["refusal", "refusals"]):
        Finetune(answers, leave_out=("refusal",))  # type: ignore[arg-type]


def test_the_same_answers_train_other_students_with_an_edge_to_the_teacher_and_are_not_asked_again(
    store: Store, student: Grown, teacher: Grown, asked: list[str]
) -> None:
    first = store.grow_once(Instruct(prompts(yes=5, no=1), **QUICK), [student, teacher])
    n_asked = len(asked)
    answers = Data.read(first.folder / "answers.jsonl")
    clean = store.grow_once(Instruct(answers, **QUICK, leave_out=("refusals",)), [student, teacher])
    tuned = store.grow_once(Finetune(answers, **QUICK), [student])
    adapter = store.grow_once(Lora(answers, **QUICK, rank=2, leave_out=("refusals",)), [student])
    assert len(asked) == n_asked == 6
    ids = (student.record.id, teacher.record.id)
    assert [each.record.parents for each in (clean, tuned, adapter)] == [ids] * 3
    assert clean.record.notes["answers"].startswith("5 learned of 6")
    assert tuned.record.recipe.settings["data"]["teacher"] == teacher.record.id
    models = store.models()
    edges = graph.edges(models, {model.id: model for model in models})
    for child in (first, clean, tuned, adapter):
        roles = {edge.parent: edge.role for edge in edges if edge.child == child.record.id}
        assert roles == {student.record.id: "start", teacher.record.id: "teacher"}
    assert store.grow_once(Finetune(answers, **QUICK), [student]).record.id == tuned.record.id
    assert store.whole(adapter).record.parents == (adapter.record.id, student.record.id)


def test_a_teacher_s_top_k_is_learned_on_the_same_answers(
    store: Store, student: Grown, teacher: Grown, asked: list[str], tmp_path: Path
) -> None:
    first = store.grow_once(Instruct(prompts(yes=4, no=1, cut=2), **QUICK), [student, teacher])
    answers, start = Data.read(first.folder / "answers.jsonl"), store.grow_once(Prune(2), [teacher])
    for top_k in (0, 20):
        recipe = Distill(answers, **QUICK, top_k=top_k, leave_out=("refusals", "unfinished"))
        soft = store.grow_once(recipe, [start, teacher])
        assert soft.record.notes["answers"].startswith("4 learned of 7")
        assert soft.record.parents == (start.record.id, teacher.record.id)
    assert not any("scores" in file.path for file in soft.record.files)
    other = store.grow_once(Distill(answers, **QUICK), [teacher, start])  # one that did not write them
    assert other.record.parents == (teacher.record.id, start.record.id)
    third = store.grow_once(Distill(answers, **QUICK), [start, start])
    assert third.record.parents == (start.record.id, start.record.id, teacher.record.id)
    stranger = store.pull(str(exchange_two_tokens(make_model(tmp_path / "stranger", "qwen2"))))
    with raises(UsageError, "bad-usage", mentions=[start.record.name]):
        store.grow(Distill(answers, **QUICK), [stranger, teacher])


def test_a_child_of_own_data_has_one_parent_without_a_role(
    store: Store, student: Grown, teacher: Grown
) -> None:
    tuned = store.grow_once(Finetune(Data.of("mine", [("a fox", "jumps")]), **QUICK), [student])
    models = store.models()
    edges = graph.edges(models, {model.id: model for model in models})
    assert [(e.parent, e.role) for e in edges if e.child == tuned.record.id] == [(student.record.id, "")]
    with raises(UsageError, "bad-usage", mentions=[2]):
        store.grow_once(Finetune(Data.of("mine", [("a", "b")]), **QUICK), [student, teacher])


def test_answers_are_of_the_model_that_wrote_them(
    store: Store, student: Grown, teacher: Grown, asked: list[str], tmp_path: Path
) -> None:
    first = store.grow_once(Instruct(prompts(yes=2), **QUICK), [student, teacher])
    answers = Data.read(first.folder / "answers.jsonl")
    with raises(UsageError, "bad-usage", mentions=["student", teacher.record.id[:12]]):
        store.grow_once(Instruct(answers, **QUICK), [student, student])
    elsewhere = Store(tmp_path / "elsewhere")
    alone = elsewhere.pull(str(tmp_path / "student"))
    with raises(UnknownName, "unknown-name", mentions=["teacher", teacher.record.id]):
        elsewhere.grow_once(Finetune(answers, **QUICK), [alone])
    assert [model.id for model in elsewhere.models()] == [alone.record.id]


def test_a_child_of_the_student_does_not_hold_the_answers(
    store: Store, student: Grown, teacher: Grown, asked: list[str]
) -> None:
    first = store.grow_once(Instruct(prompts(yes=2), **QUICK), [student, teacher])
    for recipe in (Prune(2), Finetune(Data.of("mine", [("a fox", "jumps")]), **QUICK)):
        assert "answers.jsonl" not in [file.path for file in store.grow_once(recipe, [first]).record.files]


# --- refusals that are added ------------------------------------------------------------------------


def test_refusals_of_other_requests_are_added_and_no_answer_that_complies_is_kept(
    store: Store, student: Grown, teacher: Grown, asked: list[str]
) -> None:
    recipe = Instruct(
        prompts(yes=4, no=2), **QUICK, leave_out=("refusals", "unfinished"),
        refusals_from=prompts(yes=2, no=9), n_refusals=3,
    )  # fmt: skip
    safe = store.grow_once(recipe, [student, teacher])
    assert safe.record.notes["answers"] == "7 learned of 9; left out: 2 refusals"
    assert safe.record.notes["refusals"].endswith("3 were added")
    added = [row for row in rows(safe) if row.is_added]
    assert [row.messages[0].content for row in added] == [f"tell no {i} no" for i in range(3)]
    assert {row.messages[1].content for row in added} == {NO}
    assert len(rows(safe)) == 9 and len(asked) == 6 + 6, "asked a few at a time, until there are enough"
    again = store.grow_once(
        Finetune(Data.read(safe.folder / "answers.jsonl"), **QUICK, leave_out=("refusals",)), [student]
    )
    assert again.record.notes["answers"] == safe.record.notes["answers"]


def test_too_few_refusals_are_an_error_before_the_prompts_are_asked(
    store: Store, student: Grown, teacher: Grown, asked: list[str]
) -> None:
    recipe = Instruct(prompts(yes=4), **QUICK, refusals_from=prompts(yes=2, no=2), n_refusals=3)
    with raises(UsageError, "bad-usage", mentions=[2, 4, 3]):
        store.grow_once(recipe, [student, teacher])
    assert len(asked) == 4 and len(store.models()) == 2
    with raises(UsageError, "bad-setting", mentions=["n_refusals", 0]):
        Instruct(prompts(yes=1), refusals_from=prompts(no=1), n_refusals=0)
    answers = prompts(no=1)._replace(teacher="a" * 64)  # as read from a model's answers.jsonl
    with raises(UsageError, "bad-setting", mentions=["refusals_from"]):
        Instruct(prompts(yes=1), refusals_from=answers)


# --- what a filter does -----------------------------------------------------------------------------


def _written(**counts: int) -> Data:
    made = []
    for asking in prompts(**counts).dialogues:
        text, stop = _answer(asking.messages[0].content)
        told = Data.of("x", [(asking.messages[0].content, text)]).dialogues[0]
        made.append(told._replace(stop=stop))
    return make_data("answers.jsonl", made, "0" * 32)


def test_a_filter_that_raises_the_share_of_refusals_is_reported() -> None:
    found = choose(_written(yes=57, no=6, cut=75), ("unfinished",))
    assert "6 of 138 (4.3%)" in found.warning and "6 of 63 (9.5%)" in found.warning
    assert found.notes["refusals"].startswith("6 of 63 (9.5%)")


@pytest.mark.parametrize(
    ("counts", "leave_out"),
    [
        ({"yes": 57, "no": 6, "cut": 50}, ("refusals", "unfinished")),  # left out on purpose
        ({"yes": 57, "no": 6, "cut": 75}, ()),
        ({"yes": 57, "no": 6, "cut": 5}, ("unfinished",)),  # 8.8 to 9.5 %
        ({"yes": 1, "no": 1, "cut": 1}, ("unfinished",)),  # less than one answer
        ({"yes": 57, "cut": 50}, ("unfinished",)),
    ],
)
def test_a_filter_that_does_not_is_not(counts: dict[str, int], leave_out: tuple[str, ...]) -> None:
    assert not choose(_written(**counts), leave_out).warning


def test_a_filter_that_leaves_out_most_answers_is_reported() -> None:
    found = choose(_written(yes=4, cut=5, empty=9), ("refusals", "unfinished"))
    assert "5 of 9" in found.warning and "max_new_tokens" in found.warning
    assert not choose(_written(yes=4, cut=4), ("refusals", "unfinished")).warning


def test_a_student_that_would_learn_mostly_refusals_is_reported_and_one_of_refusals_alone_is_refused() -> (
    None
):
    yes, no = (_written(yes=2).dialogues, _written(no=3).dialogues)
    added = [each._replace(is_added=True) for each in no]
    found = choose(make_data("x", [*yes, *added], "0" * 32), ("refusals",))
    assert "3 of 5 (60.0%)" in found.warning
    with raises(UsageError, "bad-usage", mentions=[3, "3 refusals"]):
        choose(make_data("x", [*no, *added], "0" * 32), ("refusals",))


def test_the_warning_comes_before_training(
    store: Store, student: Grown, teacher: Grown, asked: list[str]
) -> None:
    data, said = prompts(yes=5, no=2, cut=9), list[str]()
    store.grow_once(Instruct(data, **QUICK, warn=said.append), [student, teacher])
    assert "2 of 16" in said[0] and "2 of 7" in said[0]
    with pytest.warns(UserWarning, match="2 of 7"):
        store.grow_once(Instruct(data, **QUICK, seed=1), [student, teacher])


def test_when_none_is_left_it_says_why() -> None:
    with raises(UsageError, "bad-usage", mentions=["2 refusals", "1 unfinished"]):
        choose(_written(no=2, cut=1), ("refusals", "unfinished"))


def test_refusals_are_left_out_of_any_data(store: Store, student: Grown) -> None:
    data = Data.of("mine", [("a fox", "jumps over"), ("a dog", NO)])
    child = store.grow_once(Lora(data, **QUICK, rank=2, leave_out=("refusals",)), [student])
    assert child.record.notes["answers"] == "1 learned of 2; left out: 1 refusals"
    assert child.record.parents == (student.record.id,)


def test_an_answer_that_was_cut_does_not_teach_where_to_stop(tiny_llama: Path) -> None:
    writer = ConversationEncoder(tiny_llama)
    (whole,) = Data.of("x", [("the fox", "jumps over")]).dialogues
    ended, cut = (writer.example(whole._replace(stop=stop)).document for stop in ("end", "length"))
    assert ended.tokens == (*cut.tokens, writer.end) and ended.n_learned == cut.n_learned + 1


# --- the file, and progress -------------------------------------------------------------------------


def test_a_file_of_answers_is_read_back_and_one_of_two_teachers_is_refused(
    store: Store, student: Grown, teacher: Grown, asked: list[str], tmp_path: Path
) -> None:
    first = store.grow_once(Instruct(prompts(yes=2, cut=1, no=1), **QUICK), [student, teacher])
    read = Data.read(first.folder / "answers.jsonl")
    assert read.teacher == teacher.record.id and [e.stop for e in read.dialogues] == [
        "end",
        "end",
        "length",
        "end",
    ]
    assert read == Data.read(first.folder / "answers.jsonl", has_answers=False)
    lines = (first.folder / "answers.jsonl").read_text()
    (mixed := tmp_path / "mixed.jsonl").write_text(lines + lines.replace(teacher.record.id, "0" * 32))
    with raises(BadInput, "bad-input", mentions=["mixed.jsonl:5"]):
        Data.read(mixed)
    (broken := tmp_path / "broken.jsonl").write_text(lines.replace('"length"', '"soon"'))
    with raises(BadInput, "bad-input", mentions=["broken.jsonl:3"]):
        Data.read(broken)


def test_plain_data_keeps_its_digest() -> None:
    """Ids hash it: those of models that were made before answers had a stop."""
    (plain,) = Data.of("x", [("a", "b")]).dialogues
    assert make_data("x", [plain]).digest == Data.of("x", [("a", "b")]).digest
    assert make_data("x", [plain._replace(stop="length")]).digest != make_data("x", [plain]).digest
    assert isinstance(plain, Dialogue) and "teacher" not in make_data("x", [plain]).settings


def test_the_teacher_s_progress_is_shown(
    store: Store, student: Grown, teacher: Grown, asked: list[str]
) -> None:
    seen: list[Progress] = []
    store.grow_once(Instruct(prompts(yes=4), **QUICK, watch=seen.append), [student, teacher])
    assert seen[0].phase == "loading the libraries"  # before the teacher writes
    written = [each for each in seen if each.step == "write"]
    assert (written[-1].n_done, written[-1].n_total) == (4, 4)
    assert any(each.step == "train" for each in seen[seen.index(written[-1]) :])
    phases = [each.phase for each in seen if each.phase]
    assert phases[-2:] == ["tokenizing the examples", "writing"]
