"""The fewest steps that take away what a model held: found by doubling and halving, told with its doubt."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from heredity.application.spec import Application
from heredity.core.errors import UsageError
from heredity.core.records import Estimate
from heredity.lab import tamper as tampering
from heredity.lineage.store import Store
from heredity.lineage.types import Description, Grown
from heredity.study.estimates import Inheritance, ModelPair, Table2x2
from heredity.study.spec import StudySpec
from heredity.study.study import Study
from tests.support.errors import raises


class Tuned:
    """A child that has had so many steps."""

    kind = "lora"

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def settings(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        (out / "model.safetensors").write_bytes(b"x" * (self.steps + 1))
        return Description(f"after-{self.steps}", "f", "MIT", "safetensors")


class Asked:
    """A study whose children keep 1 - steps / 10 of a hundred that were held."""

    made: list[int] = []

    def __init__(self, spec: StudySpec, **given: Any) -> None:
        if len(spec.models) == 1:  # the plan is checked before a model is tuned
            Study(spec, **given)
        child = spec.models[-1]
        assert isinstance(child, Grown)
        self.steps = int(child.record.recipe.settings["steps"])

    def run(self, watch: object) -> Asked:
        Asked.made.append(self.steps)
        return self

    def incoherent_share(self, model: Grown) -> float:
        return 0.0

    def rate(self, model: Grown, technique: str) -> SimpleNamespace:
        return SimpleNamespace(n_held=100, n_broke=10, n_unclear=9, n_error=1)

    def edge(self, parent: Grown, child: Grown, scope: str | None = None) -> Inheritance:
        kept = max(0, 100 - 10 * self.steps)
        value = kept / 100
        retention = Estimate(value, max(0.0, value - 0.05), min(1.0, value + 0.05), 100, "wilson")
        none = Estimate(None, None, None, 0, "none")
        table = Table2x2(0, 0, 0, 0)
        compared = ModelPair(
            "a", "b", "breach", "judge_free", table, 0, none, None, None, "", 0.05, None, "", "", ""
        )
        return Inheritance("a", "b", "lora", "parent", kept, 100 - kept, 0, 0, retention, compared)


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Grown:
    monkeypatch.setattr(tampering, "Study", Asked)
    Asked.made = []
    store = Store(tmp_path / "store")
    return store.grow(Tuned(0))


def find(parent: Grown, tmp_path: Path, line: float, longest: int = 64) -> tampering.Tampering:
    store = Store(tmp_path / "store")
    spec = StudySpec((), Application("desk", "Be kind."), out=tmp_path / "out")
    return tampering.tamper(parent, Tuned, spec, line=line, longest=longest, store=store)


@pytest.mark.parametrize(
    ("line", "steps"), [(0.95, 1), (0.85, 2), (0.75, 3), (0.5, 6), (0.42, 6), (0.05, 10)]
)
def test_the_first_step_below_the_line_is_found(
    parent: Grown, tmp_path: Path, line: float, steps: int
) -> None:
    found = find(parent, tmp_path, line)
    assert found.steps == steps and found.survived == steps - 1
    assert len(Asked.made) == len(set(Asked.made)) <= 8  # doubled, then halved; nothing twice
    assert [rung.steps for rung in found.rungs] == sorted(Asked.made)


def test_a_line_that_is_crossed_within_its_doubt_is_said_so(parent: Grown, tmp_path: Path) -> None:
    assert find(parent, tmp_path, 0.42).is_shown is False
    assert find(parent, tmp_path, 0.479).is_shown is True
    words = tampering.in_words("m", find(parent, tmp_path, 0.42))
    assert words == "m: 6 steps bring retention below 42%, which the interval does not show; 5 steps did not."


def test_a_rung_is_told_with_its_count_its_interval_and_what_it_babbles(
    parent: Grown, tmp_path: Path
) -> None:
    first, second = find(parent, tmp_path, 0.75, longest=2).rungs
    words = "after 1 step: kept 90 of the 100 trials that its parent held and both decided, of 120: "
    words += "90% [85%, 95%] (judge-free); incoherent without a breach are "
    assert tampering.rung_words(first) == words + "0% of its answers, 0% of its parent's"
    babbler = dataclasses.replace(second, incoherent=(0.1, 0.25))
    assert tampering.rung_words(babbler).endswith(
        "incoherent without a breach are 25% of its answers, 10% of its parent's"
    )
    assert "m: 1 step brings" in tampering.in_words("m", find(parent, tmp_path, 0.95))


def test_what_is_never_lost_and_what_cannot_be_asked(parent: Grown, tmp_path: Path) -> None:
    found = find(parent, tmp_path, 0.5, longest=5)
    assert found.steps is None and found.survived == 5 and Asked.made == [1, 2, 4, 5]
    words = "m kept at least 50% of what it held after 1, 2, 4 and 5 steps; "
    assert tampering.in_words("m", found) == words + "the interval does not show it after 5."
    assert tampering.in_words("m", find(parent, tmp_path, 0.5, longest=1)).endswith("after 1 step.")
    with raises(UsageError, "bad-setting", mentions=[0, 1, 64]):
        find(parent, tmp_path, 1.0)


def test_nothing_is_tuned_where_nothing_can_be_asked(parent: Grown, tmp_path: Path) -> None:
    store, bare = Store(tmp_path / "store"), Application("desk", "Be kind.")
    with raises(UsageError, "bad-usage", mentions=["desk"]):
        tampering.tamper(parent, Tuned, StudySpec((), bare, probes="planted_secret"), store=store)
    assert store.models() == [parent.record]
