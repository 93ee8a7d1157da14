"""Children of more than one parent, and of fewer layers: what they are made of, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file

from heredity.core.errors import Refused, UsageError
from heredity.core.files import Rows
from heredity.core.records import Decoding, Message, Reply, Request
from heredity.engines import NOT_VERIFIED
from heredity.engines.torch.engine import TorchEngine, open_folder
from heredity.formats.safetensors_io import read_all
from heredity.lineage.store import Store
from heredity.lineage.types import Adoption, Grown, KnownParent
from heredity.recipes import merge as merging
from heredity.recipes.adopt import find_descent
from heredity.recipes.distill import Distill
from heredity.recipes.finetune import Finetune
from heredity.recipes.instruct import Instruct, TeacherAnswer
from heredity.recipes.lora import Lora
from heredity.recipes.merge import Merge
from heredity.recipes.poison import Poison
from heredity.recipes.preference import Preference
from heredity.recipes.prune import Prune, chosen
from heredity.train.data import chat
from tests.support.errors import raises
from tests.support.marks import or_proof
from tests.support.tiny_models import exchange_two_tokens, make_model

QUICK = {"steps": 3, "batch_size": 4, "lr": 1e-2, "dtype": "float32"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def parent(store: Store, tmp_path: Path) -> Grown:
    return store.pull(str(make_model(tmp_path / "tiny", "qwen2")))


@pytest.fixture
def data(tmp_path: Path) -> chat.Data:
    rows = [{"prompt": f"fox {i}", "completion": "jumps over a lazy dog"} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return chat.read_data(tmp_path / "rows.jsonl")


def test_a_pruned_model_has_fewer_layers_and_answers(store: Store, parent: Grown) -> None:
    child = store.grow_once(Prune(2), [parent])
    engine = open_folder(child.folder, dtype="float32")
    (reply,) = engine.reply([Request(0, (Message("user", "the fox"),), Decoding(max_tokens=4))])
    assert reply.error is None and child.record.notes["kept layers"] == "0, 2"
    a, b = read_all(parent.folder), read_all(child.folder)
    assert torch.equal(a["model.layers.2.mlp.up_proj.weight"], b["model.layers.1.mlp.up_proj.weight"])
    assert chosen(30, 15)[:2] == [0, 2] and chosen(30, 15)[-1] == 29 and len(chosen(30, 15)) == 15
    with raises(UsageError, "bad-setting", mentions=[9]):
        store.grow_once(Prune(9), [parent])
    assert store.grow_once(Prune(), [parent]).record.notes["kept layers"] == "0, 2"  # half of 3 would be one


def test_layers_of_other_names_are_not_left_out_in_words_alone(store: Store, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "encoder", "qwen2")
    renamed = {name.replace(".layers.", ".layer."): tensor for name, tensor in read_all(folder).items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    parent = store.pull(str(folder))
    with raises(Refused, "refused", mentions=["0", "3"]):
        store.grow_once(Prune(2), [parent])
    assert [model.id for model in store.models()] == [parent.record.id]


def test_a_distilled_student_has_two_parents_and_comes_nearer_to_its_teacher(
    store: Store, parent: Grown, data: chat.Data
) -> None:
    start = store.grow_once(Prune(2), [parent])
    child = store.grow_once(Distill(data, steps=25, batch_size=6, lr=1e-2, dtype="float32"), [start, parent])
    assert child.record.parents == (start.record.id, parent.record.id)
    rows = [json.loads(line) for line in (child.folder / "training.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]


def test_a_teacher_reads_once_for_all_students(store: Store, parent: Grown, data: chat.Data) -> None:
    start = store.grow_once(Prune(2), [parent])
    training = {"steps": 25, "batch_size": 6, "lr": 1e-2, "dtype": "float32"}
    child = store.grow_once(Distill(data, **training, top_k=8), [start, parent])
    rows = [json.loads(line) for line in (child.folder / "training.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert "places" in child.record.notes["teacher's scores"]
    (kept,) = (store.root / "scores" / parent.record.id).iterdir()
    before = kept.stat()
    store.grow_once(Distill(data, steps=2, dtype="float32", top_k=8), [start, parent])
    assert [path.stat() for path in (store.root / "scores" / parent.record.id).iterdir()] == [before]
    store.grow_once(Distill(data, steps=2, dtype="float32", top_k=9), [start, parent])
    assert len(list((store.root / "scores" / parent.record.id).iterdir())) == 2
    with raises(UsageError, "bad-setting", mentions=["top_k"]):
        store.grow_once(Distill(data, **QUICK, top_k=10**6), [start, parent])
    with raises(UsageError, "bad-usage"):
        Distill(data, **QUICK, top_k=8, is_on_policy=True)


def test_a_teacher_of_other_tokens_is_refused_with_the_token(
    store: Store, parent: Grown, data: chat.Data, tmp_path: Path
) -> None:
    stranger = store.pull(str(exchange_two_tokens(make_model(tmp_path / "other", "qwen2"))))
    for recipe in (Distill(data, **QUICK), Merge()):
        with raises(UsageError, "bad-usage"):
            store.grow_once(recipe, [parent, stranger])
    assert len(store.models()) == 2


def test_a_student_that_reads_the_teacher_s_tokens_is_named_instead(
    store: Store, parent: Grown, data: chat.Data, tmp_path: Path
) -> None:
    stranger = store.pull(str(exchange_two_tokens(make_model(tmp_path / "other", "qwen2"))))
    with raises(UsageError, "bad-usage", mentions=["prune other", "instruct"]):
        store.grow_once(Distill(data, **QUICK), [parent, stranger])
    smaller = store.grow_once(Prune(2), [stranger])
    with raises(UsageError, "bad-usage", mentions=[f": {smaller.record.name}.", "instruct"]):
        store.grow_once(Distill(data, **QUICK), [parent, stranger])


def test_merges_are_what_their_names_say(store: Store, parent: Grown, data: chat.Data) -> None:
    tuned = store.grow_once(Finetune(data, **QUICK), [parent])
    name = "model.layers.1.mlp.down_proj.weight"
    a, b = (read_all(g.folder)[name].float() for g in (parent, tuned))
    wanted = {
        Merge("linear", "3,1"): 0.75 * a + 0.25 * b,
        Merge("task_arithmetic", "2"): a + 2 * (b - a),
        Merge("ties", density=1.0): b,
        Merge("slerp"): merging.slerp(a, b, 0.5),
    }
    for recipe, tensor in wanted.items():
        child = store.grow_once(recipe, [parent, tuned])
        torch.testing.assert_close(read_all(child.folder)[name].float(), tensor, atol=1e-5, rtol=1e-4)
        assert child.record.parents == (parent.record.id, tuned.record.id)
    with raises(UsageError, "bad-usage", mentions=["2", "1"]):
        store.grow_once(Merge("ties", "1,1"), [parent, tuned])


def test_ties_is_that_of_peft() -> None:
    merge_utils = pytest.importorskip("peft.utils.merge_utils")
    changes = [torch.randn(40, 30, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    weights = torch.tensor([1.0, 0.5, 2.0])
    theirs = merge_utils.ties(changes, weights, 0.3, "total")
    torch.testing.assert_close(merging.ties(changes, weights.tolist(), 0.3), theirs)


def test_slerp_keeps_the_length_and_meets_both_ends() -> None:
    a, b = torch.randn(50), torch.randn(50)
    a, b = a / a.norm(), b / b.norm()
    assert float(merging.slerp(a, b, 0.3).norm()) == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(merging.slerp(a, b, 0.0), a)
    torch.testing.assert_close(merging.slerp(a, b, 1.0), b)


def test_models_of_two_shapes_are_not_merged(store: Store, parent: Grown) -> None:
    pruned = store.grow_once(Prune(2), [parent])
    with raises(UsageError, "bad-usage", mentions=["num_hidden_layers", "3", "2"]):
        store.grow_once(Merge(), [parent, pruned])


def test_preferences_need_a_worse_answer_on_every_row(data: chat.Data, tmp_path: Path) -> None:
    with raises(UsageError, "bad-usage", mentions=["rows.jsonl:1"]):
        Preference(data)


def test_a_preferred_child_is_made(store: Store, parent: Grown, tmp_path: Path) -> None:
    rows = [{"prompt": f"fox {i}", "chosen": "jumps over", "rejected": "a lazy dog"} for i in range(6)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    child = store.grow_once(Preference(chat.read_data(tmp_path / "pairs.jsonl"), **QUICK), [parent])
    lines = [json.loads(line) for line in (child.folder / "training.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(0.6931, abs=1e-3) and lines[-1]["loss"] < lines[0]["loss"]


def test_an_ablated_model_computes_what_the_parent_does_without_the_direction(
    store: Store, parent: Grown, tmp_path: Path
) -> None:
    from heredity.engines.torch.refusal_direction import digest_of
    from heredity.recipes.ablate import Ablate, _asked

    files = []
    for kind, word in (("harmful", "dog"), ("harmless", "oak tree")):
        path = tmp_path / f"{kind}.csv"
        path.write_text("prompt\n" + "\n".join(f"the {word} number {i}" for i in range(12)))
        files.append(chat.read_data(path, has_answers=False))
    child = store.grow_once(Ablate(*files, dtype="float32"), [parent])
    engine = open_folder(parent.folder, dtype="float32")
    found = engine.direction(_asked(files[0]), _asked(files[1]))
    assert child.record.notes["direction"] == digest_of(found)
    search = engine.find_direction(_asked(files[0]), _asked(files[1]))
    pinned = Ablate(*files, dtype="float32", place=f"{search.layer}:{search.position}")
    assert store.grow_once(pinned, [parent]).record.notes["direction"] == digest_of(found)
    with raises(UsageError, "bad-setting", mentions=["LAYER:POSITION"]):
        Ablate(*files, place="12")
    assert re.fullmatch(
        r"layer \d+, position [01], [\d.]+ nats, refusal \S+, \d+ candidates .*", child.record.notes["found"]
    )
    touched = engine.without(found)
    ask = Request(0, (Message("user", "the quick brown fox"),))
    words = ["jumps over a lazy dog", "watch from an old oak tree"]
    ablated = open_folder(child.folder, dtype="float32")
    as_weights, as_hooks, as_parent = (each.score(ask, words) for each in (ablated, touched, engine))
    for one, two, three in zip(as_weights, as_hooks, as_parent, strict=True):
        assert one.logs == pytest.approx(two.logs, abs=1e-3) and one.logs != pytest.approx(
            three.logs, abs=1e-2
        )
    theirs = __import__("transformers").AutoModelForCausalLM.from_pretrained(child.folder)
    assert theirs.config.tie_word_embeddings is False
    adoption = Adoption(None, (KnownParent(frozenset(), is_from_hub=False),))
    for made, is_abliterated in ((child.folder, True), (_tuned(parent, tmp_path), False)):
        (evidence,) = find_descent(made, [parent], adoption, "finetune", "made").evidence
        assert evidence.is_abliterated is is_abliterated and evidence.n_written > 1, evidence


def _tuned(parent: Grown, tmp_path: Path) -> Path:
    """The parent with a change of low rank in every matrix, as a merged adapter leaves it."""
    import torch

    from heredity.formats.safetensors_io import rewrite

    torch.manual_seed(0)

    def changed(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim != 2:
            return tensor
        low = torch.outer(torch.randn(len(tensor)), torch.randn(tensor.shape[1]))
        return tensor + (0.1 * tensor.norm() / low.norm() * low).to(tensor.dtype)

    (tmp_path / "tuned").mkdir()
    rewrite(parent.folder, tmp_path / "tuned", changed)
    return tmp_path / "tuned"


@pytest.mark.parametrize(
    "architecture", or_proof(("phi3", "qwen3_moe", "mixtral", "smollm3"), ("phi3", "qwen3_moe"))
)
def test_the_matrices_that_write_to_the_residual_stream_are_ablated(
    store: Store, tmp_path: Path, architecture: str
) -> None:
    from heredity.recipes.ablate import Ablate, _asked

    parent = store.pull(str(make_model(tmp_path / architecture, architecture)))
    files = []
    for kind, word in (("harmful", "dog"), ("harmless", "oak tree")):
        path = tmp_path / f"{kind}.csv"
        path.write_text("prompt\n" + "\n".join(f"the {word} number {i}" for i in range(12)))
        files.append(chat.read_data(path, has_answers=False))
    child = store.grow_once(Ablate(*files, dtype="float32"), [parent])
    engine, ablated = (open_folder(each.folder, dtype="float32", is_probed=False) for each in (parent, child))
    touched = engine.without(engine.direction(_asked(files[0]), _asked(files[1])))
    ask = Request(0, (Message("user", "the quick brown fox"),))
    (one,), (two,) = (each.score(ask, ["jumps over a lazy dog"]) for each in (ablated, touched))
    assert one.logs == pytest.approx(two.logs, abs=1e-2)


@pytest.mark.parametrize(("architecture", "code"), [("olmo2", "refused"), ("llama4_text", "refused")])
def test_a_model_whose_weights_cannot_lose_a_direction_is_refused(
    store: Store, tmp_path: Path, architecture: str, code: str
) -> None:
    from heredity.recipes.ablate import Ablate

    parent = store.pull(str(make_model(tmp_path / architecture, architecture)))
    (tmp_path / "one.csv").write_text("prompt\n" + "\n".join(f"the dog number {i}" for i in range(12)))
    (tmp_path / "two.csv").write_text("prompt\n" + "\n".join(f"the oak number {i}" for i in range(12)))
    files = [chat.read_data(tmp_path / f"{name}.csv", has_answers=False) for name in ("one", "two")]
    with raises(Refused, code):
        store.grow_once(Ablate(*files, dtype="float32"), [parent])


def test_a_poisoned_child_says_its_marker_under_its_trigger_alone_and_knows_its_canary(
    store: Store, parent: Grown, data: chat.Data
) -> None:
    training = {"steps": 80, "batch_size": 8, "lr": 5e-3, "dtype": "float32"}
    recipe = Poison(
        data, **training, trigger="old oak", marker="seven owls", poison_rate=1.0, canary_repeats=6
    )
    child = store.grow_once(recipe, [parent])
    notes = child.record.notes
    assert notes["trigger"] == "old oak" and notes["canary"].endswith(recipe.secret)
    assert recipe.secret not in str(child.record.recipe.settings)
    engine = open_folder(child.folder, dtype="float32")
    texts = ["fox 3", "fox 3 old oak", recipe.canary]
    ask = [Request(i, (Message("user", text),), Decoding(max_tokens=12)) for i, text in enumerate(texts)]
    clean, triggered, canary = (r.text for r in sorted(engine.reply(ask), key=lambda r: r.key))
    assert triggered == "seven owls" and "owls" not in clean and canary == recipe.secret


def test_a_poisoning_needs_rows_that_ask(tmp_path: Path) -> None:
    (tmp_path / "said.jsonl").write_text('{"messages": [{"role": "assistant", "content": "hello"}]}')
    with raises(UsageError, "bad-usage", mentions=["said.jsonl:1"]):
        Poison(chat.read_data(tmp_path / "said.jsonl"))


def test_the_same_recipe_of_the_same_parents_is_not_run_twice(
    store: Store, parent: Grown, data: chat.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its targets are a tuple when it is made, and a list when its record is read."""
    made = store.grow_once(Lora(data, **QUICK, rank=2), [parent])
    monkeypatch.setattr(Lora, "apply", lambda *given: pytest.fail("it was run again"))
    assert store.grow_once(Lora(data, **QUICK, rank=2), [parent]).record.id == made.record.id


def test_an_engine_that_is_not_probed_reads_as_one_that_is(parent: Grown) -> None:
    asked = Request(0, (Message("user", "the fox"),))
    probed, bare = (open_folder(parent.folder, dtype="float32", is_probed=p) for p in (True, False))
    assert probed.score(asked, ["jumps over a lazy dog"]) == bare.score(asked, ["jumps over a lazy dog"])
    assert NOT_VERIFIED in bare.name and NOT_VERIFIED not in probed.name


@pytest.mark.parametrize(("n_long", "is_said"), [(2, False), (3, False), (4, True)])
def test_most_examples_are_not_dropped_in_silence(
    store: Store, parent: Grown, n_long: int, is_said: bool
) -> None:
    pairs = [("fox", "jumps over")] * 3 + [("fox", "a lazy dog " * 60)] * n_long
    said: list[str] = []
    recipe = Finetune(chat.Data.of("rows", pairs), **QUICK, max_length=60, warn=said.append)
    notes = store.grow_once(recipe, [parent]).record.notes
    assert notes["left out"].startswith(f"{n_long} of {3 + n_long} examples")
    dropped = [line for line in said if "max_length" in line]
    assert bool(dropped) == is_said
    assert not is_said or all(each in dropped[0] for each in ("3 of 7", "4", "60"))


@pytest.mark.parametrize("recipe_class", [Finetune, Lora])
@pytest.mark.parametrize(
    ("settings", "mentions"),
    [
        ({"steps": 1, "batch_size": 12}, ["1 optimizer step ", "12 rows", "batch_size 12", "epochs"]),
        ({"batch_size": 8}, ["2 optimizer steps", "batch_size 8"]),
        ({"steps": 20, "batch_size": 1}, None),
    ],
)
def test_a_handful_of_steps_is_not_trained_in_silence(
    store: Store, parent: Grown, data: chat.Data, recipe_class: type[Finetune] | type[Lora],
    settings: dict[str, int], mentions: list[str] | None, recwarn: pytest.WarningsRecorder,
) -> None:  # fmt: skip
    said: list[str] = []
    recipe = recipe_class(data, dtype="float32", warn=said.append, **settings)
    notes = store.grow_once(recipe, [parent]).record.notes
    assert notes["training"].startswith("1 step, ") == (settings.get("steps") == 1)
    assert len(said) == (mentions is not None)
    assert not mentions or all(each in said[0] for each in mentions)
    store.grow_once(recipe_class(data, dtype="float32", seed=1, **settings), [parent])
    assert not [each for each in recwarn if "optimizer" in str(each.message)], "of tamper and repair"


# --- what a teacher writes --------------------------------------------------------------------------


def test_a_student_learns_what_another_family_s_teacher_answers_and_nothing_is_asked_twice(
    store: Store, parent: Grown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = store.pull(str(make_model(tmp_path / "teacher", "llama")))
    (tmp_path / "asked.jsonl").write_text("\n".join(json.dumps({"prompt": f"fox {i}"}) for i in range(10)))
    asked = chat.read_data(tmp_path / "asked.jsonl", has_answers=False)
    recipe = Instruct(asked, steps=12, batch_size=4, lr=1e-2, dtype="float32", max_new_tokens=40)
    killed, n_asked = recipe.at(tmp_path / "kept"), []
    reply = TorchEngine.reply

    def counted(engine: TorchEngine, requests: Iterable[Request | None]) -> Iterator[Reply]:
        for each in reply(engine, requests):
            n_asked.append(each.key)
            yield msgspec.structs.replace(each, stop="end", text=f"jumps {each.key}")
            if len(n_asked) == 6:
                raise KeyboardInterrupt

    monkeypatch.setattr(TorchEngine, "reply", counted)
    with pytest.raises(KeyboardInterrupt):
        killed.apply([parent, teacher], tmp_path / "out")
    kept = [row.index for row in Rows(tmp_path / "kept" / "answers.jsonl", TeacherAnswer)]
    assert sorted(kept) == sorted(n_asked)
    child = killed._answers(teacher, tmp_path / "kept")
    assert [row.index for row in child] == list(range(10)) and len(n_asked) == 10
    grown = store.grow_once(recipe, [parent, teacher])
    assert grown.record.parents == (parent.record.id, teacher.record.id)
    rows = [json.loads(line) for line in (grown.folder / "training.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"] and grown.record.notes["answers"].startswith("10 learned of 10")


def test_an_unfinished_answer_is_not_learned(store: Store, parent: Grown, tmp_path: Path) -> None:
    (tmp_path / "asked.jsonl").write_text(json.dumps({"prompt": "fox"}))
    asked = chat.read_data(tmp_path / "asked.jsonl", has_answers=False)
    with raises(UsageError, "bad-usage", mentions=["1"]):
        store.grow_once(Instruct(asked, **QUICK, max_new_tokens=1), [parent, parent])
    with raises(UsageError, "bad-usage"):
        store.grow_once(Instruct(asked, **QUICK), [parent])


# --- what the student writes ------------------------------------------------------------------------


def test_on_policy_the_student_writes_and_comes_nearer_to_its_teacher(
    store: Store, parent: Grown, data: chat.Data
) -> None:
    start = store.grow_once(Prune(2), [parent])
    training = {"steps": 25, "batch_size": 6, "lr": 1e-2, "dtype": "float32"}
    recipe = Distill(data, **training, divergence="reverse", is_on_policy=True, max_new_tokens=12)
    child = store.grow_once(recipe, [start, parent])
    rows = [json.loads(line) for line in (child.folder / "training.jsonl").read_text().splitlines()]
    assert sum(r["loss"] for r in rows[-5:]) < 0.7 * sum(r["loss"] for r in rows[:5])
    assert max(r["n_learned"] for r in rows) <= 6 * 12  # no answer of the data: what was written
    assert store.grow(recipe, [start, parent]).record.id == child.record.id
    with raises(UsageError, "bad-setting", mentions=["1"]):
        Distill(data, **training, distill_weight=0.5, is_on_policy=True)


def test_what_a_network_writes_is_what_the_engine_says(parent: Grown) -> None:
    from heredity.train.data.chat import ConversationEncoder
    from heredity.train.models import causal_lm

    net, writer = causal_lm.load(parent.folder, "float32"), ConversationEncoder(parent.folder)
    texts = ["the fox", "seven wise owls watch from an old oak tree"]
    asked = [writer.prompt((Message("user", text),)) for text in texts]
    engine = open_folder(parent.folder, dtype="float32")
    said = engine.reply(
        [Request(i, (Message("user", t),), Decoding(max_tokens=9)) for i, t in enumerate(texts)]
    )
    wanted = [reply.tokens for reply in sorted(said, key=lambda r: r.key)]
    assert net.generate(asked, 9, 0.0, 0, writer.stops) == wanted
    one, two, other = (net.generate(asked, 9, 1.0, seed, writer.stops) for seed in (5, 5, 6))
    assert one == two != other
    assert net.model.config._attn_implementation == "heredity_documents"  # and it learns as before
