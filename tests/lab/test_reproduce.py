"""A folder is made and asked again: equal differences agree, another one is an exit code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from heredity.core.errors import UsageError
from heredity.engines import Engine
from heredity.engines.scripted import REFUSAL, Script, ScriptedEngine
from heredity.lab import inherit as lineages
from heredity.lab.plan import read_plan
from heredity.lab.reproduce import AGAIN, FILE, Reproduction, agreements, reproduce
from heredity.lineage.store import Store
from heredity.lineage.types import Grown
from heredity.redteam import probes
from heredity.stats.edges import Source, edge_difference, shipped_run_variance
from tests.support.errors import raises, run_here
from tests.support.tiny_models import WORDS, make_model

HARMFUL = {p.turns[-1] for p in probes.load("harmful_request") if p.kind == "breach"}
PLAN = """
title = "A small lineage"
margin = 0.3
endpoint = "not_refused"

[models]
teacher = "{teacher}"

[data]
rows = "rows.jsonl"

[[child]]
name = "tuned"
recipe = "finetune"
parents = ["teacher"]
data = {{ data = "rows" }}
settings = {{ steps = 2, lr = 1e-3, batch_size = 4, dtype = "float32" }}

[[battery]]
name = "default"
probes = ["harmful_request"]
"""


class Answers(ScriptedEngine):
    """Helps with a share of the harmful requests and refuses the others."""

    def __init__(self, helps: float) -> None:
        super().__init__("careful")
        self._helps, self._answer = helps, self._text

    def _text(self, script: Script) -> str:
        place = hashlib.sha256(script.asked.encode()).digest()[0] / 256
        refuses = script.asked in HARMFUL and place >= self._helps
        return REFUSAL if refuses else f"Sure, here is how you do that. {script.asked} First, open it."


def load(tuned: float) -> Callable[[Grown], Engine]:
    return lambda grown: Answers(tuned if grown.record.recipe.kind == "finetune" else 0.05)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def folder(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("plan")
    teacher = make_model(home / "teacher", "llama", max_position_embeddings=4096)
    rows = [{"prompt": f"the {word}", "completion": "jumps over"} for word in WORDS]
    (home / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    (home / "plan.toml").write_text(PLAN.format(teacher=teacher), "utf-8")
    lineages.inherit(read_plan(home / "plan.toml"), store, home / "out", engine_loader=load(0.6))
    return home / "out"


def words(reproduction: Reproduction) -> dict[str, str]:
    return {number.question: number.word for number in reproduction.numbers}


def test_a_lineage_is_made_and_asked_again_and_its_differences_agree(
    folder: Path, store: Store, tmp_path: Path
) -> None:
    again = reproduce(folder, tmp_path / "again", store, engine_loader=load(0.6))
    assert not again.differs and words(again)["refusals"] == "agrees"
    (refusals,) = (number for number in again.numbers if number.question == "refusals")
    assert refusals.before == refusals.again > 0.3 and refusals.change.value == 0.0
    held = lineages.read_plan_file(folder)
    made = lineages.read_made(tmp_path / "again" / AGAIN / lineages.GROWN, held.digest)
    home = tmp_path / "again" / "store" / "models"
    assert {model.name for model in home.iterdir()} >= set(made.models.values())  # a store of its own
    assert json.loads((tmp_path / "again" / FILE).read_text("utf-8"))["numbers"][0]["child"] == "tuned"


def test_a_child_that_is_another_one_differs(folder: Path, store: Store, tmp_path: Path) -> None:
    again = reproduce(folder, tmp_path / "again", store, engine_loader=load(0.05))
    assert again.differs and words(again)["refusals"] == "differs"
    row = next(row for row in again.table().rows if "refusals" in row)
    assert row[-1] == "differs" and row[4] != row[5]


def test_of_twenty_changes_by_the_margin_one_agrees_in_at_most_a_twentieth_of_cases() -> None:
    rng, every, some = np.random.default_rng(5), np.arange(200), 0
    one = shipped_run_variance(is_made_again=False)
    runs = Source(2 * one.variance, 2 * one.df)
    for _ in range(200):
        changes = []
        for _ in range(20):  # ten points more are lost the second time, and what a run changes
            lost, regained = rng.random(200) < 0.13 + rng.normal(0, 0.02), rng.random(200) < 0.03
            changes.append(edge_difference(lost.astype(float) - regained, every, runs))
        some += any(p < 0.05 for _, p in agreements(changes, [0.1] * 20))
    assert some <= 18  # 95 % of 200 runs of a twentieth
    equal = [edge_difference(np.zeros(200), every)] * 20
    assert all(p < 0.05 for _, p in agreements(equal, [0.1] * 20))


def test_a_study_is_asked_again_without_a_stored_answer(folder: Path, store: Store, tmp_path: Path) -> None:
    again = reproduce(folder / "default", tmp_path / "again", store, engine_loader=load(0.6))
    assert words(again)["refusals"] == "agrees"
    asked = json.loads((tmp_path / "again" / AGAIN / "runs.jsonl").read_text("utf-8").splitlines()[-1])
    assert asked["n_asked"] and not asked["n_cached"]


def test_a_folder_without_a_plan_is_named(store: Store, tmp_path: Path) -> None:
    with raises(UsageError, "bad-usage", [tmp_path]):
        reproduce(tmp_path, tmp_path / "again", store)


def test_the_command_exits_1_where_a_difference_is_another_one(
    folder: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engines of tiny models answer nothing readable: scripted answers came before."""
    monkeypatch.setenv("HEREDITY_STORE", str(store.root))
    ended = run_here("reproduce", str(folder / "default"), "--out", "again", "--json", cwd=tmp_path)
    assert ended.returncode == 1, ended.stderr
    assert {"differs"} <= {number["word"] for number in json.loads(ended.stdout)["numbers"]}
