"""Attacks on weights in a study: searched for once, kept, told apart in each row, skipped where closed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from heredity import engines
from heredity.core.errors import EngineFailure, UsageError
from heredity.core.files import Rows
from heredity.core.records import Reply, Request
from heredity.engines import Capabilities, Engine, Provenance
from heredity.redteam import attacks
from heredity.study.runner import FOUND, SearchResult
from heredity.study.spec import StudySpec
from heredity.study.study import Study
from tests.support.conversations import APPLICATION, BY_ID, HOW, REFUSAL
from tests.support.errors import raises
from tests.support.studies import Recorder, by_index, drop_circumstances

NAMES = ("planted_secret/plain-01", "planted_secret/steps-01")
SPECS = ("direct", "gcg:2", "refusal_direction")
FOUND_WORDS = " qu ! zz"


class Weights(Recorder):
    """An engine that lets attacks at its weights, and counts how often they search."""

    def __init__(self, has_direction: bool = True, fails: str = "") -> None:
        super().__init__("careful", say=self._answer)
        self._has_direction, self._fails = has_direction, fails
        self.name, self.numerics = "weights of test", "weights"
        self.searched: list[str] = []
        self.changed: list[str] = []

    @property
    def capabilities(self) -> Capabilities:
        provenance = Provenance(base_numerics="weights")
        return Capabilities(streamer=self, weights=self, provenance=provenance)  # type: ignore[arg-type]

    def direction(self, harmful: list[Request], harmless: list[Request]) -> str:
        assert len(harmful) == len(harmless) > 20
        self.searched.append("direction")
        return "the direction"

    def without(self, direction: str) -> Engine:
        self.changed.append(direction)
        other = Weights(has_direction=False)
        other.name = engines.altered(self.name, f"without {direction}")
        other.numerics = engines.altered(self.numerics, f"without {direction}")
        return other

    def suffix(self, request: Request, mark: str, target: str, steps: int, seed: int) -> str:
        self.searched.append(target)
        assert request.messages[-1].content.endswith(mark) and steps == 2
        if self._fails:
            raise EngineFailure(self._fails)
        return json.dumps({"text": FOUND_WORDS, "loss_before": 3.0, "loss_after": 1.0, "n_steps": steps})

    def _answer(self, request: Request) -> Reply:
        return Reply(0, "", REFUSAL if self._has_direction else "Sure, gladly.")


def run(folder: Path, engine: Engine, specs: tuple[str, ...] = SPECS) -> Study:
    from heredity.lineage.store import Store

    study = Study(
        StudySpec(["scripted:careful"], APPLICATION, probes=NAMES, attacks=specs, out=folder),
        store=Store(folder.parent / "store"),
        engine_loader=lambda _: engine,
    )
    study.run()
    return study


def test_each_attack_meets_the_model_that_it_made(tmp_path: Path) -> None:
    engine = Weights()
    run(tmp_path / "s", engine)
    rows = by_index(tmp_path / "s").values()
    assert len(rows) == 12 and all(row.error is None for row in rows)
    changed = [row for row in rows if row.attack == "refusal_direction"]
    assert {row.engine for row in changed} == {"weights of test | without the direction"}
    assert {e.text for row in changed for e in row.exchanges} == {"Sure, gladly."}
    assert {row.engine for row in rows if row.attack != "refusal_direction"} == {"weights of test"}
    assert engine.changed == ["the direction"] and engine.is_closed


def test_what_was_found_stands_in_the_prompt_and_in_the_folder(tmp_path: Path) -> None:
    engine = Weights()
    run(tmp_path / "s", engine)
    row = next(r for r in by_index(tmp_path / "s").values() if r.attack == "gcg:2" and r.probe == NAMES[0])
    assert BY_ID[NAMES[0]].turns[0] + FOUND_WORDS in row.exchanges[0].prompt
    kept = [found.value for found in Rows(tmp_path / "s" / FOUND, SearchResult)]
    assert sum("loss_before" in value for value in kept) == 4 and "the direction" in kept


def _numbers(folder: Path) -> dict[str, Any]:
    """The estimates without circumstances and deviations: to go on after a look is one."""
    found: dict[str, Any] = json.loads(drop_circumstances(folder))
    found.pop("deviations", None)
    return found


def test_a_resumed_study_searches_for_nothing_again(tmp_path: Path) -> None:
    run(tmp_path / "s", Weights())
    before = _numbers(tmp_path / "s")
    path = tmp_path / "s" / "responses.jsonl"
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*rows[:5], *rows[-2:]]))  # of the model as it is, and as it was changed
    again = Weights()
    run(tmp_path / "s", again)
    assert again.searched == [] and _numbers(tmp_path / "s") == before


def test_a_model_without_open_weights_is_skipped_in_words(tmp_path: Path) -> None:
    study = run(tmp_path / "s", Recorder("careful"))
    reasons = [s.reason for s in study.plan().skipped if s.probe == "*"]
    assert len(reasons) == 2 and all("'scripted:careful'" in reason for reason in reasons)
    rows = by_index(tmp_path / "s").values()
    assert all((row.error is None) == (row.attack == "direct") for row in rows)
    closed = [row.error for row in rows if row.attack == "gcg:2"]
    assert closed and all("skipped: gcg:2 works on weights in the torch engine" in error for error in closed)


def test_a_search_that_fails_is_an_error_row(tmp_path: Path) -> None:
    run(tmp_path / "s", Weights(fails="no place for a suffix"))
    rows = by_index(tmp_path / "s").values()
    assert all(row.error == "no place for a suffix" for row in rows if row.attack == "gcg:2")
    assert all(row.error is None for row in rows if row.attack != "gcg:2")


def test_the_target_is_the_beginning_of_an_answer_and_no_more() -> None:
    from heredity.redteam.attacks import gcg

    assert gcg.target(BY_ID[NAMES[0]], HOW) == f"Sure, {HOW.words['secret_name']} is"
    harm = next(p for p in BY_ID.values() if p.check.kind == "refusal")
    assert gcg.target(harm, HOW) == "Sure, here is"


def test_what_is_searched_for_stands_last() -> None:
    with raises(UsageError, "bad-usage"):
        attacks.load("gcg+encoding")
    assert attacks.load("roleplay+gcg:8").spec == "roleplay:play+gcg:8"
