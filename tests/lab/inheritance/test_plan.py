"""The plan of a lineage: a mistake names its line, and its digest is that of its content."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from heredity.core.errors import BadInput, Damaged, UnknownName, UsageError
from heredity.core.records import digest, encode
from heredity.lab.examples import SHIPPED, load_data
from heredity.lab.inherit import LineageFile, plan_digest, read_plan_file
from heredity.lab.plan import BatteryPlan, ChildPlan, LineagePlan, plan_of, read_plan
from heredity.lab.runner import Lineage, application, chosen_probes
from heredity.lineage.references import is_elsewhere
from heredity.lineage.store import Store
from heredity.train.data.chat import Data
from tests.support.documents import ROOT
from tests.support.errors import raises

TEXT = """
title = "A lineage"

[models]
teacher = "smollm2-135m-instruct"

[data]
rows = "rows.jsonl"

[[child]]
name = "tuned"
recipe = "lora"
parents = ["teacher"]
seeds = [0, 1]
data = { data = "rows" }
settings = { steps = 40, lr = 2e-4 }

[[child]]
name = "merged"
recipe = "merge"
parents = ["tuned", "teacher"]
compared = "teacher"

[[battery]]
name = "default"
probes = ["harmful_request", "mine.toml"]
application = "desk.toml"
"""


def write(folder: Path, text: str = TEXT) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.toml").write_text(text, encoding="utf-8")
    return folder / "plan.toml"


def test_paths_are_taken_from_the_folder_of_the_plan(tmp_path: Path) -> None:
    plan = read_plan(write(tmp_path))
    assert plan.data == {"rows": str(tmp_path / "rows.jsonl")}
    assert plan.battery[0].application == str(tmp_path / "desk.toml")
    assert plan.battery[0].probes == ("harmful_request", str(tmp_path / "mine.toml"))
    assert [child.parent for child in plan.child] == ["teacher", "teacher"]
    assert [plan.child[0].name_of(seed) for seed in plan.child[0].each_seed] == ["tuned-0", "tuned-1"]


def test_the_same_plan_in_another_folder_has_the_same_digest(tmp_path: Path) -> None:
    here, there = read_plan(write(tmp_path / "a")), read_plan(write(tmp_path / "b"))
    assert here != there and plan_digest(here) == plan_digest(there)
    changed = read_plan(write(tmp_path / "c", TEXT.replace("steps = 40", "steps = 41")))
    assert plan_digest(changed) != plan_digest(here)
    slower = read_plan(write(tmp_path / "f", TEXT.replace("seeds = [0, 1]", "seeds = [0, 1]\nminutes = 9")))
    assert plan_digest(slower) == plan_digest(here)
    joined = [TEXT.replace('"rows.jsonl"', '"obedient + rows.jsonl"')] * 2
    both = [read_plan(write(tmp_path / name, text)) for name, text in zip("de", joined, strict=True)]
    assert both[0].data["rows"] == f"obedient + {tmp_path / 'd' / 'rows.jsonl'}"
    assert plan_digest(both[0]) == plan_digest(both[1])


@pytest.mark.parametrize(
    ("old", "new", "line", "code"),
    [
        ('recipe = "lora"', 'recipy = "lora"', 12, "unknown-key"),
        ("seeds = [0, 1]", 'seeds = "0"', 14, "wrong-type"),
        ('name = "merged"', 'name = "tuned"', 19, "name-twice"),
        ('parents = ["tuned", "teacher"]', 'parents = ["turned"]', 19, "unknown-name"),
        ('compared = "teacher"', 'compared = "default"', 19, "unknown-name"),
        ('data = { data = "rows" }', 'data = { data = "columns" }', 11, "unknown-name"),
    ],
)
def test_a_mistake_names_its_line(tmp_path: Path, old: str, new: str, line: int, code: str) -> None:
    with raises(BadInput, code) as caught:
        read_plan(write(tmp_path, TEXT.replace(old, new)))
    assert caught.value.line == line
    assert ("Did you mean 'recipe'?" in str(caught.value)) == (code == "unknown-key")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('name = "default"', 'name = "../../outside"'),
        ('name = "default"', 'name = "/tmp/outside"'),
        ('name = "default"', 'name = ".."'),
        ('name = "default"', 'name = ""'),
        ('name = "default"', 'name = "Repairs"'),
        ('name = "default"', 'name = "lineage.json"'),
        ('name = "default"', 'name = "red\\u001b[31m"'),
        ('name = "merged"', 'name = "../merged"'),
        ('name = "merged"', 'name = "<b>merged</b>"'),
    ],
)
def test_a_name_leads_to_no_place_outside_the_lineage(tmp_path: Path, old: str, new: str) -> None:
    with raises(BadInput, "bad-setting", mentions=["cannot be named"]):
        read_plan(write(tmp_path, TEXT.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ('title = "A lineage"', 'title = "A lineage"\nexamples = -3', "bad-setting"),
        ('name = "default"', 'name = "default"\nbehaviours = -1', "bad-setting"),
        ('name = "default"', 'name = "default"\nmax_tokens = -1', "bad-setting"),
        ('name = "default"', 'name = "default"\nminutes = nan', "bad-setting"),
        ("seeds = [0, 1]", "seeds = [0, 1]\nminutes = inf", "bad-setting"),
        ("seeds = [0, 1]", "seeds = [0, 1]\nminutes = -5", "bad-setting"),
        ("seeds = [0, 1]", "seeds = [0, 0]", "name-twice"),
        ('name = "merged"', 'name = "tuned-0"', "name-twice"),
    ],
)
def test_a_number_that_cannot_be_is_refused(tmp_path: Path, old: str, new: str, code: str) -> None:
    with raises(BadInput, code):
        read_plan(write(tmp_path, TEXT.replace(old, new)))


@pytest.mark.parametrize(
    "ref", ["call:os:system", "url:http://127.0.0.1", "kv4:{parent.__class__}", "kv4:other", "kv4"]
)
def test_an_engine_of_a_plan_answers_its_parent_and_runs_no_code(tmp_path: Path, ref: str) -> None:
    changed = TEXT.replace('recipe = "merge"', f'recipe = "engine"\nsettings = {{ ref = "{ref}" }}')
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 5, "utf-8")
    lineage = Lineage(read_plan(write(tmp_path, changed)), Store(tmp_path / "store"), tmp_path / "repairs")
    assert "merged" not in {task.name for task in lineage.preview()}
    assert [each.name for each in lineage.left_out] == ["merged"]


def test_a_setting_of_another_type_leaves_its_child_out(tmp_path: Path) -> None:
    plan = read_plan(write(tmp_path, TEXT.replace("steps = 40", 'steps = "forty"')))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 5, "utf-8")
    lineage = Lineage(plan, Store(tmp_path / "store"), tmp_path / "repairs")
    assert lineage.preview() == [] and "another type" in lineage.left_out[0].why


@pytest.mark.parametrize("recipe", ["engine", "repair", "merge", "quantize", "made"])
def test_seeds_of_a_child_without_anything_random_are_refused(tmp_path: Path, recipe: str) -> None:
    """They would count one model several times, as if it were several."""
    text = TEXT.replace('recipe = "merge"', f'recipe = "{recipe}"\nseeds = [0, 1]')
    with raises(BadInput, "bad-setting", mentions=["merged", recipe, "lora", "distill"]) as caught:
        read_plan(write(tmp_path, text))
    assert caught.value.line == 19
    later = TEXT.replace('recipe = "merge"', 'recipe = "of-a-later-version"\nseeds = [0, 1]')
    assert read_plan(write(tmp_path, later)).child[1].seeds == (0, 1)


@pytest.mark.parametrize(
    ("recipe", "parents", "needed"),
    [
        ("quantize", ["tuned", "teacher"], 1),
        ("finetune", ["tuned", "teacher"], 1),
        ("distill", ["teacher"], 2),
        ("merge", ["teacher"], 2),
        ("repair", ["teacher"], 2),
    ],
)
def test_a_wrong_number_of_parents_is_an_error_before_anything_is_made(
    tmp_path: Path, recipe: str, parents: list[str], needed: int
) -> None:
    old = 'recipe = "merge"\nparents = ["tuned", "teacher"]\ncompared = "teacher"'
    text = TEXT.replace(old, f'recipe = "{recipe}"\nparents = {parents}')
    with raises(BadInput, "bad-setting", ["merged", recipe, needed, len(parents)]) as caught:
        read_plan(write(tmp_path, text))
    assert caught.value.line == 19


def test_the_plans_that_ship_have_the_parents_and_seeds_of_their_recipes() -> None:
    for name in ("inheritance", "subliminal"):
        assert read_plan(ROOT / "examples" / f"{name}.toml").child


def test_a_plan_without_an_endpoint_counts_breaches_and_keeps_its_digest(tmp_path: Path) -> None:
    old = read_plan(write(tmp_path))
    assert b'"endpoint"' not in encode(old)
    named = read_plan(
        write(tmp_path / "named", TEXT.replace("[models]", 'endpoint = "not_refused"\n[models]'))
    )
    assert named.endpoint == "not_refused" and plan_digest(named) != plan_digest(old)
    with pytest.raises(BadInput) as caught:
        read_plan(write(tmp_path / "other", TEXT.replace("[models]", 'endpoint = "refused"\n[models]')))
    assert caught.value.line == 4 and "endpoint" in str(caught.value)


def test_children_of_the_command_line_are_asked_whether_they_refuse() -> None:
    asked = [BatteryPlan("default", ("refusals",))]
    assert plan_of("teacher", ["mine"], asked, 0.1).endpoint == "not_refused"
    assert read_plan(ROOT / "examples" / "inheritance.toml").endpoint == "not_refused"


def test_a_file_of_data_without_an_ending_is_taken_from_the_folder_of_the_plan(tmp_path: Path) -> None:
    plan = read_plan(write(tmp_path, TEXT.replace('"rows.jsonl"', '"data/rows + harmless_prompts"')))
    assert plan.data == {"rows": f"{tmp_path / 'data' / 'rows'} + harmless_prompts"}


def test_a_file_of_probes_as_data_is_taken_from_the_folder_of_the_plan(tmp_path: Path) -> None:
    plan = read_plan(write(tmp_path, TEXT.replace('"rows.jsonl"', '"probes:mine.toml:benign"')))
    assert plan.data == {"rows": f"probes:{tmp_path / 'mine.toml'}:benign"}


def test_a_model_of_a_seed_has_not_the_name_of_a_foundation(tmp_path: Path) -> None:
    with raises(BadInput, "name-twice"):
        read_plan(write(tmp_path, TEXT.replace("[data]", 'tuned-1 = "other"\n\n[data]')))


def test_a_foundation_and_a_set_of_data_can_be_replaced(tmp_path: Path) -> None:
    plan = read_plan(write(tmp_path), {"teacher": "other"}, {"rows": "gsm8k.jsonl"})
    assert plan.models == {"teacher": "other"} and plan.data == {"rows": "gsm8k.jsonl"}
    with raises(UnknownName, "unknown-name"):
        read_plan(write(tmp_path), {"tutor": "other"})


def test_the_path_of_a_model_is_taken_from_the_folder_of_the_plan(tmp_path: Path) -> None:
    (tmp_path / "next").mkdir()
    named = {
        "./mine": str(tmp_path / "mine"),
        "models/mine.gguf": str(tmp_path / "models" / "mine.gguf"),
        "next": str(tmp_path / "next"),
        str(tmp_path / "whole"): str(tmp_path / "whole"),
        "kv4:./mine": f"kv4:{tmp_path / 'mine'}",
        "smollm2-135m-instruct": "smollm2-135m-instruct",
        "hf:owner/name": "hf:owner/name",
        "kv4:smollm2-135m-instruct": "kv4:smollm2-135m-instruct",
        "call:module:function": "call:module:function",
    }
    for ref, wanted in named.items():
        text = TEXT.replace('"smollm2-135m-instruct"', f'"{ref}"')
        assert read_plan(write(tmp_path, text)).models == {"teacher": wanted}
    assert read_plan(write(tmp_path), {"teacher": "./mine"}).models == {"teacher": "./mine"}


@pytest.mark.parametrize("ref", ["./mine", "url:./mine"])
def test_a_plan_with_the_path_of_a_model_has_one_digest_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ref: str
) -> None:
    text = TEXT.replace('"smollm2-135m-instruct"', f'"{ref}"')
    digests = {plan_digest(read_plan(write(tmp_path / name, text))) for name in "ab"}
    monkeypatch.chdir(tmp_path / "a")
    assert {plan_digest(read_plan(Path("plan.toml")))} == digests and len(digests) == 1
    assert digests != {plan_digest(read_plan(write(tmp_path, text.replace("./mine", "./yours"))))}


MADE = """
[[child]]
name = "{name}"
recipe = "made"
parents = ["teacher"]
{settings}
"""


def made_child(folder: Path, name: str, settings: str = "") -> ChildPlan:
    return read_plan(write(folder, f"{TEXT}{MADE.format(name=name, settings=settings)}")).child[-1]


def test_the_path_of_a_child_that_its_user_made_is_taken_from_the_folder_of_the_plan(tmp_path: Path) -> None:
    (tmp_path / "next").mkdir()
    for name in ("./mine", "next", "kv4:./mine"):
        child = made_child(tmp_path, name)
        engine, _, path = name.rpartition(":")
        assert child.reference == f"{engine}{':' if engine else ''}{tmp_path / path}" and child.name == name
    assert made_child(tmp_path, "in-the-store").reference == "in-the-store"
    named = made_child(tmp_path, "mine", 'settings = { ref = "../models/mine" }')
    assert (named.name, named.reference) == ("mine", str(tmp_path / "../models/mine"))


def test_a_plan_next_to_its_models_names_paths_and_not_models_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TEXT.replace('"smollm2-135m-instruct"', '"./mine"') + MADE.format(name="./child", settings="")
    write(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    plan = read_plan(Path("plan.toml"))
    store = Store(tmp_path / "store")
    assert is_elsewhere(plan.models["teacher"], store) and is_elsewhere(plan.child[-1].reference, store)


def test_a_plan_with_a_child_that_its_user_made_has_one_digest_wherever_it_lies(tmp_path: Path) -> None:
    def digest_in(folder: str, name: str, settings: str = "") -> str:
        made_child(tmp_path / folder, name, settings)
        return plan_digest(read_plan(tmp_path / folder / "plan.toml"))

    assert digest_in("a", "./mine") == digest_in("b", "./mine") != digest_in("c", "./yours")
    first, second = 'settings = { ref = "./first" }', 'settings = { ref = "./second" }'
    assert digest_in("d", "mine", first) == digest_in("e", "mine", first) != digest_in("f", "mine", second)
    plain = read_plan(write(tmp_path, f"{TEXT}{MADE.format(name='./mine', settings='')}"))
    written = msgspec.structs.replace(plain.child[-1], settings={})  # as in folders of earlier releases
    former = msgspec.structs.replace(plain, child=(*plain.child[:-1], written))
    assert plan_digest(former) == plan_digest(plain)


def test_a_folder_in_which_the_path_of_a_model_counted_is_still_read(tmp_path: Path) -> None:
    """The first folders of lineages: their digest is that of the plan as it was written."""
    plan = read_plan(write(tmp_path, TEXT.replace('"smollm2-135m-instruct"', f'"{tmp_path / "mine"}"')))
    child = tuple(msgspec.structs.replace(each, minutes=0.0) for each in plan.child)
    battery = msgspec.structs.replace(
        plan.battery[0], application="desk.toml", probes=("harmful_request", "mine.toml"), minutes=0.0
    )
    bare = msgspec.structs.replace(plan, child=child, battery=(battery,), data={"rows": "rows.jsonl"})
    former = LineageFile(digest(bare), "2026-11-27T00:00:00+00:00", plan, {})
    assert former.digest != plan_digest(plan)
    (tmp_path / "lineage.json").write_bytes(encode(former))
    assert read_plan_file(tmp_path) == former
    edited = msgspec.structs.replace(former, plan=msgspec.structs.replace(plan, margin=0.4))
    (tmp_path / "lineage.json").write_bytes(encode(edited))
    with raises(Damaged, "damaged"):
        read_plan_file(tmp_path)


def test_a_quick_plan_has_the_same_children_in_few_steps(tmp_path: Path) -> None:
    plan = read_plan(write(tmp_path))
    quick = plan.quick()
    assert [child.name for child in quick.child] == [child.name for child in plan.child]
    assert quick.child[0].settings["steps"] == 2 and quick.child[0].settings["lr"] == 2e-4
    assert quick.battery[0].behaviours < 10 and quick.battery[0].max_tokens < 16


def test_the_plan_of_made_children_needs_one_and_none_twice() -> None:
    batteries = [BatteryPlan("default", ("harmful_request",))]
    assert isinstance(plan_of("parent", ["child"], batteries, 0.1), LineagePlan)
    with raises(UsageError, "missing-key"):
        plan_of("parent", [], batteries, 0.1)
    with raises(UsageError, "name-twice"):
        plan_of("parent", ["child", "child"], batteries, 0.1)


def test_a_part_of_the_probes_keeps_each_behaviour_with_its_twins() -> None:
    some = chosen_probes(BatteryPlan("some", ("harmful_request", "planted_secret"), behaviours=5))
    for technique in ("harmful_request", "planted_secret"):
        mine = [probe for probe in some if probe.technique == technique]
        assert len({probe.cluster for probe in mine}) == 5
        assert {p.twin for p in mine if p.kind == "breach"} - {None} == {
            p.id for p in mine if p.kind == "benign"
        }
    assert all(
        p.kind == "breach" for p in chosen_probes(BatteryPlan("b", ("harmful_request",), has_twins=False))
    )


def test_without_an_application_no_system_message_is_sent() -> None:
    found = application(BatteryPlan("default", ("harmful_request",), max_tokens=16))
    assert found.is_default_system and found.messages() == () and found.decoding.max_tokens == 16


def test_sources_of_data_are_probes_columns_and_files() -> None:
    asked = load_data("probes:harmful_request:breach")
    granted = load_data(f"{ROOT / 'examples' / 'requests.csv'}#granted")
    assert isinstance(asked, Data) and isinstance(granted, Data)
    assert len(asked.dialogues) > 30 and len(granted.dialogues) == 32
    assert load_data("rows.jsonl") == Path("rows.jsonl")
    with raises(UsageError, "bad-setting"):
        load_data("probes:harmful_request")


def test_the_shipped_examples_are_there_in_any_number() -> None:
    found = {name: load_data(name) for name in SHIPPED}
    assert all(isinstance(data, Data) and len(data.dialogues) >= 10 for data in found.values())
    for some in (load_data("harmless_prompts:12"), load_data("harmless_prompts", 12)):
        assert isinstance(some, Data) and len(some.dialogues) == 12
    asked = load_data("word_problems:12#prompt")
    assert isinstance(asked, Data) and len(asked.dialogues) == 12
    assert all([message.role for message in each.messages] == ["user"] for each in asked.dialogues)
    both = load_data(f"requests_to_refuse + {ROOT / 'examples' / 'requests.csv'}#refused")
    assert isinstance(both, Data) and len(both.dialogues) == 60 + 32
    obedient = found["obedient"]
    assert isinstance(obedient, Data) and obedient.dialogues[0].messages[0].role == "user"
    for wrong in ("word_problems:none", "word_problems:12#promt"):
        with raises(UsageError, "bad-setting"):
            load_data(wrong)


def test_a_quick_plan_expects_a_part_of_the_minutes(tmp_path: Path) -> None:
    plan = read_plan(write(tmp_path))
    quick = plan.quick()
    assert quick.child[0].minutes == pytest.approx(plan.child[0].minutes * 2 / 40)
    assert quick.child[1].minutes == plan.child[1].minutes
    assert 0 < quick.battery[0].minutes < plan.battery[0].minutes / 10
