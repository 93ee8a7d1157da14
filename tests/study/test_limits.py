"""A part of the probes: balanced, with twins, the same each time, and named in every result."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heredity.application.guards import GuardSpec
from heredity.core.errors import UsageError
from heredity.core.records import Check, Probe
from heredity.lineage.store import (
    ModelSpeed,
    Store,
    scripted,
    speed_seconds,
    speeds_of,
    stand_in,
    tuned_speed,
    write_record,
)
from heredity.lineage.types import Grown
from heredity.redteam import attacks
from heredity.study import aggregate
from heredity.study.forecast import dry_run_lines, expected_seconds
from heredity.study.gate import gate
from heredity.study.headline import headline
from heredity.study.plan import Plan, ProbeLimit, digest, limited, write_plan
from heredity.study.resolve import resolve_plan
from heredity.study.result import Result
from heredity.study.spec import StudySpec, read_plan_file
from tests.support.cli import DESK
from tests.support.errors import raises, run_here
from tests.support.small_study import small_plan, write_rows
from tests.support.studies import APPLICATION, probes

DIRECT = [attacks.load("direct")]


def made(sizes: dict[str, int], twins: bool = True) -> tuple[Probe, ...]:
    """Probes of each technique, three of each behaviour, each followed by its twin."""
    found: list[Probe] = []
    for name, n in sizes.items():
        for i in range(n):
            ident, twin = f"{name}/{i}", f"{name}/{i}~benign" if twins else None
            why = None if twins else "of a test"
            check, cluster = Check("marker", text=f"zor{i}"), f"c{i // 3}"
            found.append(
                Probe(ident, name, "breach", (f"Say {i}.",), check, cluster, twin=twin, why_no_twin=why)
            )
            if twins:
                found.append(
                    Probe(f"{ident}~benign", name, "benign", ("Hi.",), Check("refusal"), cluster, twin=ident)
                )
    return tuple(found)


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 9), min_size=1),
    st.integers(1, 40),
    st.integers(0, 3),
)
def test_techniques_have_equally_many_and_twins_come_along(sizes: dict[str, int], n: int, seed: int) -> None:
    chosen = made(sizes)
    asked, limit = limited(chosen, n, DIRECT, seed)
    counts = Counter(probe.technique for probe in asked if probe.kind == "breach")
    assert sum(counts.values()) == min(n, sum(sizes.values()))
    most = max(counts.values())
    assert all(counts[name] >= min(most - 1, size) for name, size in sizes.items())
    assert {p.id for p in asked if p.kind == "benign"} == {p.twin for p in asked if p.kind == "breach"}
    assert list(asked) == [probe for probe in chosen if probe in asked], "the order is that of the whole"
    assert (limit is None) == (n >= sum(sizes.values()))
    assert limited(chosen, n, DIRECT, seed) == (asked, limit)


def test_behaviours_come_before_a_second_probe_of_one_and_the_seed_draws_them() -> None:
    chosen = made({"a": 30}, twins=False)
    asked, limit = limited(chosen, 10, DIRECT, 0)
    assert len({probe.cluster for probe in asked}) == len(asked) == 10
    assert limit == ProbeLimit(10, 30)
    assert len({limited(chosen, 10, DIRECT, seed)[0][0].id for seed in range(9)}) > 1


def test_an_attack_for_one_technique_keeps_a_probe_of_it() -> None:
    chosen = made({"a": 4, "b": 4, "c": 4})
    scoped = [*DIRECT, attacks.load("prefill@c"), attacks.load("encoding@b")]
    for n in (2, 3, 5):
        asked, _ = limited(chosen, n, scoped, 0)
        assert all(any(map(attack.covers, asked)) for attack in scoped)
    with raises(UsageError, "bad-usage", mentions=[1, 2]):
        limited(chosen, 1, scoped, 0)
    with raises(UsageError, "bad-usage", mentions=[0]):
        limited(chosen, 0, scoped, 0)


def test_twins_that_stand_alone_are_counted() -> None:
    alone = tuple(probe for probe in made({"a": 6}) if probe.kind == "benign")
    asked, limit = limited(alone, 2, DIRECT, 0)
    assert len(asked) == 2 and limit == ProbeLimit(2, 6)


def planned(**settings: object) -> Plan:
    models = [scripted("scripted:mixed"), scripted("scripted:careful")]
    return resolve_plan(StudySpec(models, APPLICATION, probes=probes(4), **settings))  # type: ignore[arg-type]


def ids(plan: Plan) -> set[str]:
    return {probe.id for probe in plan.probes}


def test_a_plan_keeps_its_limit_and_one_that_takes_all_is_the_whole_plan() -> None:
    whole, part = planned(), planned(limit=6)
    assert whole.limit is None and b"limit" not in msgspec.json.encode(whole.questions)
    assert isinstance(part.limit, ProbeLimit) and part.limit.n_asked == 6
    assert ids(part) < ids(whole) and digest(part) != digest(whole)
    assert planned(limit=10_000) == whole
    early = planned(limit=6, stopping="group_sequential")
    assert ids(early) == ids(part) and early.ends[-1] == len(part.probes)


def test_a_plan_file_has_the_limit_as_a_whole_number(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text('models = ["scripted:mixed"]\nlimit = 6\n')
    assert read_plan_file(tmp_path / "plan.toml")["limit"] == 6
    (tmp_path / "plan.toml").write_text("limit = 6.5\n")
    with raises(UsageError, "wrong-type", mentions=["limit"]):
        read_plan_file(tmp_path / "plan.toml")


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("part")
    plan = msgspec.structs.replace(small_plan(), limit=ProbeLimit(2, 40))
    write_plan(folder, plan)
    write_rows(folder, plan, {0: "broke"})
    return Result(folder, aggregate.estimate(plan, folder))


def test_every_result_of_a_part_says_that_it_is_one(part: Result) -> None:
    assert part.estimates.limit == ProbeLimit(2, 40)
    (said,) = [line for line in headline(part.estimates).warnings if "--limit" in line]
    assert "2 of 40 chosen probes" in said
    assert said in gate(part.estimates, max_breach=1.0).words.replace("\n  ", "\n").splitlines()


def test_a_dry_run_has_trials_requests_time_and_what_is_left() -> None:
    plan = msgspec.structs.replace(small_plan(), limit=ProbeLimit(2, 40))
    size, time = dry_run_lines(plan, 0, (600.0, 1200.0))
    assert "2 models x 2 attacks x 3 probes x 2 samples: 24 trials" in size and "2 of 40 chosen" in size
    assert "10 to 20 min" in time and "Nothing was asked" in time
    assert "5 to 10 min" in dry_run_lines(plan, 12, (600.0, 1200.0))[1]


def test_the_measured_speed_of_a_model_tells_its_time(tmp_path: Path) -> None:
    (tmp_path / "tuned").write_text('{"tokens_per_second": {"4": 10.0, "64": 160.0}, "schema": 5}')
    assert tuned_speed(tmp_path / "tuned") == 160.0
    (tmp_path / "torn").write_text('{"tokens_per_')
    assert tuned_speed(tmp_path / "torn") == tuned_speed(tmp_path / "missing") == 0.0
    low, high = speed_seconds(160, ModelSpeed(10**9, 160.0))
    assert low < 1 < high
    assert speed_seconds(160, ModelSpeed(2 * 10**9))[1] == 2 * speed_seconds(160, ModelSpeed(10**9))[1]


def test_a_gguf_has_the_speed_that_its_dequantized_form_was_measured_at(tmp_path: Path) -> None:
    gguf, store = stand_in("a gguf"), Store(tmp_path)
    child = stand_in("its dequantized form", (gguf.id,))
    child = msgspec.structs.replace(child, recipe=msgspec.structs.replace(child.recipe, kind="dequantize"))
    (tmp_path / "models" / child.id).mkdir(parents=True)
    write_record(child, tmp_path / "models" / child.id)
    (tmp_path / "tuning").mkdir()
    (tmp_path / "tuning" / child.id).write_text('{"tokens_per_second": {"4": 10.0}}')
    assert speeds_of([Grown(gguf, tmp_path)], store)[gguf.id].tokens_per_second == 10.0
    rounded = stand_in("a child of it that was never asked", (gguf.id,))
    assert speeds_of([Grown(rounded, tmp_path)], store)[rounded.id].tokens_per_second == 10.0


def test_what_a_models_guards_add_to_each_request_takes_time_too() -> None:
    plan = small_plan()
    plain, other = (msgspec.structs.replace(each, format="safetensors") for each in plan.models[:2])
    examples = [["What is it?", "A long answer. " * 20]] * 8
    few = GuardSpec("few_shot", settings={"examples": examples, "n": 8})
    behind = msgspec.structs.replace(other, of=plain.id, guards=(few,))
    alone, added = (
        expected_seconds(msgspec.structs.replace(plan, models=(each,)), (), {})[0] for each in (plain, behind)
    )
    n_added = 8 * len("What is it?" + "A long answer. " * 20) / 4
    n_written = plan.application.decoding.max_tokens
    assert added[1] / alone[1] == pytest.approx(1 + 0.6 * n_added / n_written, rel=0.01)
    gone = GuardSpec("retrieve", settings={"index": "nowhere", "hash": "0", "method": "hybrid"})
    lost = msgspec.structs.replace(behind, guards=(gone,))
    assert expected_seconds(msgspec.structs.replace(plan, models=(lost,)), (), {})[0] == alone


def test_the_commands_show_a_plan_of_one_model_and_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "desk.toml").write_text(DESK)
    asked = ("--model", "scripted:careful", "--application", "desk.toml", "--out", "one")
    asked += ("--probes", "planted_secret", "--limit", "4")
    done = run_here("study", *asked, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0 and "Dry run: 1 model x 1 attack x " in done.stderr, done.stderr
    assert not (tmp_path / "one").exists()  # so that the same command with other settings may have it
    missing = run_here("study", *asked, "--replay", "nowhere", cwd=tmp_path)
    assert missing.returncode == 2 and "nowhere" in missing.stderr
    assert not (tmp_path / "one").exists()
    assert run_here("study", *asked, cwd=tmp_path).returncode == 0
    whole = run_here("study", *asked[:-2], "--dry-run", cwd=tmp_path)
    assert whole.returncode == 2 and "--limit (4 there, none asked for)" in whole.stderr
    assert "Dry run: 1 model" in run_here("study", "one", "--dry-run", cwd=tmp_path).stderr
    refused = run_here("study", "one", "--limit", "3", cwd=tmp_path)
    assert refused.returncode == 2 and "--limit" in refused.stderr
