"""A study's folder, or a store's record, from someone else: its words run nothing and reach no server."""

from __future__ import annotations

import hashlib
import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file

import heredity.study
from heredity.application.spec import Application
from heredity.application.toolbox import TOOL_RESULTS
from heredity.core.errors import Damaged, Refused, Unavailable, UnknownName, UsageError
from heredity.core.records import FileHash, Made, Model, RecipeRecord, encode
from heredity.lineage.store import Store, identity, load_engine
from heredity.lineage.types import Grown
from heredity.redteam import attacks
from heredity.study import plan as plans
from heredity.study.plan import PlannedModel
from heredity.study.spec import StudySpec
from heredity.study.storage import JUDGE, ChosenJudge
from heredity.study.study import Study
from tests.support.errors import check_refused, raises, run_here
from tests.support.studies import plan, study

HARMFUL_REFERENCES = [
    "call:trap_module:answer",
    "url:http://127.0.0.1:9/chat",
    "remote:openai:gpt-4o@http://127.0.0.1:9/v1",
    "llamacpp:call:trap_module:answer",
    "vllm:call:trap_module:answer",
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that leaves a file when anyone imports it, and the place of that file."""
    (tmp_path / "lib").mkdir()
    sprung = tmp_path / "sprung"
    (tmp_path / "lib" / "trap_module.py").write_text(
        f"import pathlib\npathlib.Path({str(sprung)!r}).touch()\ndef answer(text):\n    return text\n"
        "def judge(messages):\n    return 'no'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    monkeypatch.delitem(sys.modules, "trap_module", raising=False)
    return sprung


def planned(ident: str, name: str = "smollm2", format: str = "safetensors") -> PlannedModel:
    return PlannedModel(ident, name, "llama", "MIT", format)


def of_models(folder: Path, *models: PlannedModel, attacker: PlannedModel | None = None) -> None:
    """A folder with a plan of these models, whose digest is right."""
    made = msgspec.structs.replace(plan(n=1), models=models)
    if attacker is not None:
        made = msgspec.structs.replace(made, attacker=attacker, attacks=("pair:2",))
    plans.write_plan(folder, made)


def is_untouched(store: Store, trap: Path) -> bool:
    return not trap.exists() and store.models() == []


@pytest.mark.parametrize("ident", [*HARMFUL_REFERENCES, "smollm2", "scripted:leaky", "../x", "", "a" * 31])
def test_a_plans_model_is_an_exact_id_of_the_store(
    ident: str, store: Store, trap: Path, tmp_path: Path
) -> None:
    of_models(tmp_path / "s", planned(ident))
    with raises(Unavailable, "model-not-pulled", ["plan.json"]):
        Study.open(tmp_path / "s", store=store).run()
    assert is_untouched(store, trap)


@pytest.mark.parametrize("name", [*HARMFUL_REFERENCES, "scripted:call:trap_module:answer"])
def test_a_plans_scripted_model_is_scripted(name: str, store: Store, trap: Path, tmp_path: Path) -> None:
    of_models(tmp_path / "s", planned("0" * 32, name, "scripted"))
    with raises(UnknownName, "unknown-name", ["scripted"]):
        Study.open(tmp_path / "s", store=store).run()
    assert is_untouched(store, trap)


def test_a_plans_scripted_model_has_the_id_of_its_name(store: Store, tmp_path: Path) -> None:
    of_models(tmp_path / "s", planned("0" * 32, "scripted:careful", "scripted"))
    with raises(Damaged, "damaged", ["0" * 32]):
        Study.open(tmp_path / "s", store=store).run()


@pytest.mark.parametrize("ident", HARMFUL_REFERENCES)
def test_a_plans_attacker_is_an_exact_id_of_the_store(
    ident: str, store: Store, trap: Path, tmp_path: Path
) -> None:
    of_models(tmp_path / "s", *plan(n=1).models, attacker=planned(ident))
    with raises(Unavailable, "model-not-pulled", ["plan.json"]):
        Study.open(tmp_path / "s", store=store).run()
    assert is_untouched(store, trap)


def test_the_command_line_does_not_resolve_a_folders_ids(
    trap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path / "store"))
    of_models(tmp_path / "s", planned("call:trap_module:answer"))
    done = run_here("study", str(tmp_path / "s"))
    check_refused(done, "model-not-pulled", ["call:trap_module:answer"], after_progress=True)
    assert is_untouched(Store(tmp_path / "store"), trap)


def judged_by(folder: Path, spec: str) -> Path:
    """A finished study whose judge.json says this."""
    study(folder, plan(n=1)).run()
    (folder / JUDGE).write_bytes(encode(ChosenJudge(spec)))
    return folder


@pytest.mark.parametrize("reference", HARMFUL_REFERENCES)
@pytest.mark.parametrize(
    "spec", ["rubric:{}", "rubric:{}:yesno", "panel:rules+rubric:{}", "panel:rules+ rubric:{}:harm=1"]
)
def test_a_folders_judge_is_looked_up_in_the_store_alone(
    spec: str, reference: str, store: Store, trap: Path, tmp_path: Path
) -> None:
    folder = judged_by(tmp_path / "s", spec.format(reference))
    with raises(UsageError, "bad-usage", ["judge.json", reference, "--judge"]):
        Study.open(folder, store=store).run()
    with raises(UsageError, "bad-usage", ["judge.json", reference, "--judge"]):
        Study.open(folder, store=store).judge()
    assert is_untouched(store, trap)


def test_a_judge_that_the_user_names_is_resolved_and_resumes_from_the_store(
    store: Store, trap: Path, tmp_path: Path
) -> None:
    folder = judged_by(tmp_path / "s", "rules")
    spec = "rubric:call:trap_module:judge:yesno"
    Study.open(folder, store=store, judge=spec).run()
    assert trap.exists() and [model.name for model in store.models()] == ["call:trap_module:judge"]
    Study.open(folder, store=store).run()
    with raises(UsageError, "bad-usage", ["--judge"]):
        Study.open(folder, store=Store(tmp_path / "other")).run()


def test_two_records_of_one_judges_name_ask_for_the_users_word(
    store: Store, trap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.keep(store.get("call:trap_module:answer"))
    (tmp_path / "lib" / "trap_module.py").write_text("def answer(text):\n    return 'another'\n")
    monkeypatch.delitem(sys.modules, "trap_module")
    store.keep(store.get("call:trap_module:answer"))
    folder = judged_by(tmp_path / "s", "rubric:call:trap_module:answer:yesno")
    with raises(UsageError, "bad-usage", [2, "--judge"]):
        Study.open(folder, store=store).run()


def test_a_study_of_a_function_resumes_by_the_record_in_the_store(
    store: Store, trap: Path, tmp_path: Path
) -> None:
    desk = Application("theirs", system="", rendering="theirs")
    store.keep(store.get("call:trap_module:answer"))  # as at its first answer
    Study(
        StudySpec(["call:trap_module:answer"], desk, probes=["harmful_request/*"], out=tmp_path / "s"),
        store=store,
    ).plan()
    found = Study.open(tmp_path / "s", store=store).run().estimates
    assert found.n_asked == found.n_trials and not found.n_errors


def test_a_study_of_a_function_resumes_where_the_user_names_it_again(
    store: Store, trap: Path, tmp_path: Path
) -> None:
    desk = Application("theirs", system="", rendering="theirs")
    settings: dict[str, Any] = {"probes": ["harmful_request/*"], "out": tmp_path / "s"}
    Study(StudySpec(["call:trap_module:answer"], desk, **settings), store=store).plan()
    other = Store(tmp_path / "other")
    with raises(Unavailable, "model-not-pulled", ["--out"]):
        Study.open(tmp_path / "s", store=other).run()
    found = Study(StudySpec(["call:trap_module:answer"], desk, **settings), store=other).run().estimates
    assert found.n_asked == found.n_trials and not found.n_errors


def test_a_plan_sends_no_file_that_planning_did_not_pin(store: Store, tmp_path: Path) -> None:
    private = tmp_path / "private.txt"
    private.write_text("hunter2\n")
    for spec in (f"suffix:{private}", f"direct+suffix:{private}", f"suffix:{private}@"):
        folder = tmp_path / str(len(spec))
        plans.write_plan(folder, msgspec.structs.replace(plan(n=1), attacks=(spec,)))
        with raises(Damaged, "damaged", [spec]):
            Study.open(folder, store=store).run()
        assert (
            not (folder / "responses.jsonl").exists()
            or b"hunter2" not in (folder / "responses.jsonl").read_bytes()
        )
    spec = attacks.load(f"suffix:{private}").spec
    plans.write_plan(tmp_path / "own", msgspec.structs.replace(plan(n=1), attacks=(spec,)))
    assert Study.open(tmp_path / "own", store=store).run().estimates.n_errors == 0


def recorded(store: Store, files: dict[str, bytes], **fields: Any) -> Grown:
    """A record that anyone could write into a store: its id is right for what it says."""
    recipe, parents = RecipeRecord("lora", {}), fields.pop("parents", ())
    hashes = tuple(
        FileHash(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in files.items()
    )
    ident = identity(recipe, parents, hashes)
    made = Made("", "", 0.0, {})
    settings: dict[str, Any] = {"name": "handed-over", "format": "adapter", "modality": "text"} | fields
    model = Model(
        id=ident, family="llama", licence="MIT", parents=parents, recipe=recipe, files=hashes, made=made,
        **settings,
    )  # fmt: skip
    home = store.root / "models" / ident
    for path, data in files.items():
        (home / "files" / path).parent.mkdir(parents=True, exist_ok=True)
        (home / "files" / path).write_bytes(data)
    (home / "model.json").write_bytes(encode(model))
    return Grown(model, home / "files")


PARENTS = [*HARMFUL_REFERENCES, "scripted:careful", "smollm2", "..", "/etc", "../../elsewhere", ""]


@pytest.mark.slow
@pytest.mark.parametrize("parent", PARENTS)
def test_an_adapters_parent_is_an_exact_id_of_the_store(parent: str, store: Store, trap: Path) -> None:
    adapter = recorded(store, {"adapter_model.safetensors": b"0"}, parents=(parent,))
    for look in (store.base, store.ready, store.whole):
        with raises(UnknownName, "unknown-name", [parent]):
            look(adapter)
    with raises(UnknownName, "unknown-name", [parent]):
        load_engine(store.get("handed-over"), store)


@pytest.mark.slow
@pytest.mark.parametrize("parent", PARENTS)
def test_torch_loads_no_adapter_alone_whatever_its_parent(parent: str, store: Store, trap: Path) -> None:
    torch_engine = pytest.importorskip("heredity.engines.torch.engine")
    adapter = recorded(store, {"adapter_model.safetensors": b"0"}, parents=(parent,))
    with raises(Damaged, "damaged", ["handed-over"]):
        torch_engine.load(adapter.record, adapter.folder)
    assert store.family(adapter.record).asked == [adapter.record]
    assert not trap.exists() and [model.id for model in store.models()] == [adapter.record.id]


def test_an_adapter_without_a_parent_is_damaged(store: Store) -> None:
    adapter = recorded(store, {"adapter_model.safetensors": b"0"})
    with raises(Damaged, "damaged", ["handed-over"]):
        store.ready(adapter)


def test_whole_weights_with_an_adapters_config_are_not_loaded(store: Store) -> None:
    files = {"model.safetensors": b"0", "adapter_config.json": b'{"base_model_name_or_path": "/elsewhere"}'}
    model = recorded(store, files, format="safetensors")
    with raises(Refused, "adapter-config", ["adapter_config.json"]):
        store.ready(model)


def test_a_folder_with_an_adapters_config_is_not_pulled(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "handed-over"
    (source / "deep").mkdir(parents=True)
    save_file({"a": np.zeros(2, np.float32)}, source / "model.safetensors")
    (source / "config.json").write_text('{"model_type": "llama"}')
    (source / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}')
    with raises(Refused, "adapter-config", ["adapter_config.json"]):
        store.pull(str(source))
    assert store.models() == []


def test_exact_lookups_resolve_nothing(store: Store, trap: Path) -> None:
    kept = store.pull("remote:openai:gpt-4o")
    assert store.by_id(kept.record.id) == store.named(kept.record.id) == store.named(kept.record.name) == kept
    for name in (kept.record.id[:8], kept.record.id.upper(), f" {kept.record.id}", f"{kept.record.id}\n",
                 "remote:openai:gpt-4o\n", " remote:openai:gpt-4o", "remote:openai:gpt-4O",
                 "\uff52emote:openai:gpt-4o", *HARMFUL_REFERENCES):  # fmt: skip
        with raises(UnknownName, "unknown-name"):
            store.named(name)
        with raises(UnknownName, "unknown-name"):
            store.by_id(name)
    assert not trap.exists() and store.models() == [kept.record]


# --- names that lead out of a folder, or that block who opens them ---

WORDS = b"PRECIOUS DATA WITHOUT NEWLINE"
COMMANDS = {
    "study": ("study",), "label": ("label", "--n", "9"), "gate": ("gate", "--max-breach", "0.5"),
    "report": ("report",), "sarif": ("report", "--format", "sarif"), "show": ("show",),
    "trial": ("show", "--index", "0"), "trials": ("show", "--outcome", "held"),
}  # fmt: skip
PLACES = {"studies": ("studies",), "export": ("view", "--export", "pages")}
# Each of these is opened by a command on the study below. The others need an import, a tool or an error.
OPENED = {
    "plan.json", "responses.jsonl", "verdicts.jsonl", "prefixes.jsonl", "runs.jsonl", "estimates.json",
    "judge.json", "costs.json", "sources.json", "lacking.json", "labels.jsonl", "drawn.jsonl",
    "canaries.jsonl", ".lock", "shards",
}  # fmt: skip


def names_in_a_study() -> set[str]:
    """Every file that a module of heredity.study has a name for, and the ones that it shares with others."""
    found = {TOOL_RESULTS, "report.html", ".lock", ".lock.pid", "shards"}
    for each in pkgutil.walk_packages(heredity.study.__path__, "heredity.study."):
        if not each.name.endswith("__main__"):
            values = vars(importlib.import_module(each.name)).values()
            found |= {v for v in values if isinstance(v, str) and re.fullmatch(r"[a-z_]+\.jsonl?", v)}
    return found


def forge(path: Path, kind: str, victim: Path) -> None:
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "second name":
        os.link(victim, path)
    else:
        path.symlink_to({"link": victim, "device": "/dev/zero", "new": victim.with_name("new")}[kind])


def run_all_on_forged(kind: str, root: Path) -> None:
    """Run each command on a study of which one file is forged, for each file. For a process of its own."""
    study(root / "whole", plan(("scripted:mixed",), n=1, attacks=("direct",), samples=1)).run()
    shutil.copytree(root / "whole", root / "begun")  # of which `heredity study` has something left to do
    lines = (root / "begun" / "responses.jsonl").read_bytes().splitlines(keepends=True)
    (root / "begun" / "responses.jsonl").write_bytes(b"".join(lines[:3]))
    refused = set[str]()
    for name in sorted(names_in_a_study()):
        for title, (command, *options) in (COMMANDS | PLACES).items():
            sys.stdout.write(f"{name} {title}\n")  # the last line names what hangs
            place, victim = root / "place", root / "victim"
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(root / ("begun" if title == "study" else "whole"), place / "s")
            victim.write_bytes(WORDS)
            forge(place / "s" / name, kind, victim)
            argument = place if title in PLACES else place / "s"
            done = run_here(command, str(argument), *options, cwd=place, input="y\nn\n" * 9)
            assert victim.read_bytes() == WORDS and not (root / "new").exists(), (name, title)
            assert done.returncode in (0, 2, 3), (name, title, done.stderr)
            if kind in ("link", "pipe", "device"):
                # report refuses its own output by another code, before anything is opened
                assert done.code in ("", "refused", "bad-usage"), (name, title, done.stderr)
            refused |= {name} if done.code == "refused" else set()
    opened = OPENED - {"shards"} if kind == "pipe" else OPENED  # a pipe is no folder, so nothing reads it
    assert kind in ("second name", "new") or refused >= opened, opened - refused


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a link there needs rights that few users have")
@pytest.mark.parametrize("kind", ["link", "second name", "new", "pipe", "device"])
def test_a_forged_file_of_a_study_overwrites_nothing_and_blocks_no_command(kind: str, tmp_path: Path) -> None:
    code = (
        "import pathlib, resource, sys; from tests.study.test_hostile_folder import run_all_on_forged\n"
        "resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))\n"
        "run_all_on_forged(sys.argv[1], pathlib.Path(sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, kind, str(tmp_path)], cwd=Path(__file__).parents[2],
        env={**os.environ, "HEREDITY_STORE": str(tmp_path / "store")}, timeout=1800,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-200:] + done.stderr[-2000:]
