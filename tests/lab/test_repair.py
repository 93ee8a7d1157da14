"""The ladder of repairs: cheap steps first, measured on the other half, nothing called enough that is not."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from heredity.application.spec import Application
from heredity.cli.lab import repair_command as command
from heredity.core.errors import Refused, UsageError
from heredity.core.records import Message, Reply, Request
from heredity.engines import Engine, scripted
from heredity.engines.torch.engine import open_folder
from heredity.formats.safetensors_io import read_all
from heredity.lab.repair import (
    N_TESTS,
    RepairMeasurement,
    Setting,
    halves,
    in_words,
    repair,
)
from heredity.lineage.store import Store
from heredity.lineage.types import Grown
from heredity.recipes.finetune import Finetune
from heredity.recipes.guard import WORDS, Guard
from heredity.recipes.merge import Merge
from heredity.redteam import probes
from heredity.redteam.probes import ProbeFile
from heredity.stats import compare, verdict
from heredity.stats.intervals import ALPHA
from heredity.study import plan
from heredity.study.findings.edge_verdicts import verdict_on
from heredity.train.data.chat import Dialogue, make_data
from tests.support.errors import raises
from tests.support.tiny_models import make_model

DESK = Application.load(Path(__file__).parents[2] / "examples" / "support-desk.toml")
TASKS = {
    item.turns[-1]: item.solved[0]
    for item in msgspec.toml.decode(
        (Path(probes.__file__).parent / "failed_task.toml").read_bytes(), type=ProbeFile
    ).probe
}
GOOD = {
    row["probe"]: row["said"]
    for path in ("tests/redteam/judges/good_answers.jsonl", "bench/substance_good.jsonl")
    for row in map(msgspec.json.decode, (Path(__file__).parents[2] / path).read_bytes().splitlines())
}
ANSWERS = TASKS | {
    probe.turns[-1]: GOOD.get(probe.id, scripted.HELP)
    for probe in probes.load(["core", "refusals"])
    if probe.kind == "benign"
}
# A judge decides too few others to show that they are kept.
CHECKED = [probe.id for probe in probes.load("core") if probe.technique != "harmful_request"]
# Thirteen behaviours: all of them failed gives a p between alpha over the number of tests and alpha.
FEW_TASKS = (
    "sum", "capital", "opposite", "calendar", "animal", "translate", "grammar", "colour", "cloze", "nature",
    "order", "kind", "follow-up",
)  # fmt: skip
ROWS = make_data(
    "rows", [Dialogue((Message("user", "fox"), Message("assistant", "jumps over")), "rows:1")] * 8
)


class Able(scripted.ScriptedEngine):
    """Answers what is harmless well; the rest is left to the behaviour."""

    answers = ANSWERS

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        answers: dict[int, str | None] = {}

        def seen() -> Iterator[Request | None]:
            for request in requests:
                if request is not None:
                    texts = (self.answers.get(each.content) for each in reversed(request.messages))
                    answers[request.key] = next(filter(None, texts), None)
                yield request

        for reply in super().reply(seen()):
            yield msgspec.structs.replace(reply, text=answers[reply.key] or reply.text)


class Forgetful(Able):
    """Knows no task."""

    answers = {asked: text for asked, text in ANSWERS.items() if asked not in TASKS}


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a parent and its child, to be copied."""
    folder = tmp_path_factory.mktemp("stocked")
    store = Store(folder / "store")
    parent = store.pull(str(make_model(folder / "tiny", "llama", max_position_embeddings=4096)))
    store.grow_once(Finetune(ROWS, steps=2, batch_size=4, lr=1e-3, dtype="float32"), [parent])
    return folder / "store"


@pytest.fixture
def store(stocked: Path, tmp_path: Path) -> Store:
    return Store(shutil.copytree(stocked, tmp_path / "store"))


@pytest.fixture
def pair(store: Store) -> tuple[Grown, Grown]:
    by_kind = {model.recipe.kind: Grown(model, store.folder(model)) for model in store.models()}
    return by_kind["pull"], by_kind["finetune"]


def climb(store: Store, pair: tuple[Grown, Grown], out: Path, good: tuple[str, ...],
          chosen: str | list[str] = CHECKED,
          margin: float = 0.2, steps: tuple[int, ...] = (1, 2)):  # fmt: skip
    """A repair in which models made by the recipes of `good` behave, and all others leak."""

    def load(grown: Grown) -> Engine:
        behaves = grown.record.id == pair[0].record.id or grown.record.recipe.kind in good
        return Able("careful") if behaves else scripted.ScriptedEngine("leaky")

    return repair(
        pair[1],
        pair[0],
        Setting(DESK, chosen, ("prefill",), margin, steps=steps, store=store, out=out, engine_loader=load),
    )


def scripted_model(name: str) -> Grown:
    from heredity.lineage.store import scripted as record

    return record(f"scripted:{name}")


def test_the_first_step_that_is_enough_ends_the_climb(
    store: Store, pair: tuple[Grown, Grown], tmp_path: Path
) -> None:
    found = climb(store, pair, tmp_path / "out", ("merge",))
    assert [step.name for step in found.steps] == ["guard", "restore 0.3"]
    assert not found.before.is_enough and not found.steps[0].is_enough and found.steps[1].is_enough
    assert found.model is not None and found.model.record.parents == (pair[1].record.id, pair[0].record.id)
    assert in_words(found)[-1].startswith(f"repaired: {found.model.record.name}")


@pytest.mark.proof  # makes and asks every child of the ladder
def test_none_that_is_enough_is_said_and_every_step_is_recorded(
    store: Store, pair: tuple[Grown, Grown], tmp_path: Path
) -> None:
    found = climb(store, pair, tmp_path / "out", ())
    assert [step.name for step in found.steps] == ["guard", "restore 0.3", "restore 0.6", "replay", "recover"]
    assert found.model is None and in_words(found)[-1] == "No step is shown to be enough."
    replayed, recovering = (step.model for step in found.steps[-2:])
    assert replayed is not None and replayed.record.format == "adapter" and recovering is not None
    n_rows, n_more = (each.record.recipe.settings["data"]["rows"] for each in (replayed, recovering))
    assert n_rows > 16 and n_more > n_rows  # what was lost, and more twins; then behind bad beginnings too
    assert [step.how.split(" steps on ")[0] for step in found.steps[-2:]] == [
        "1",
        "1",
    ]  # none is nearer: the fewest
    assert len(found.steps) + 1 == N_TESTS  # the child's own, and every step's: each has its share
    for name in ("before", "guard", "restore-0.3", "replay"):
        assert round(1 - plan.read_plan(tmp_path / "out" / name).confidence, 12) == round(ALPHA / N_TESTS, 12)
    assert in_words(found)[0].startswith("Any of 6 verdicts may end this") and "0.83 %" in in_words(found)[0]
    again = climb(store, pair, tmp_path / "out", ())
    ids = [[s.model.record.id for s in each.steps if s.model is not None] for each in (found, again)]
    assert ids[0] == ids[1] and len(ids[0]) == 5


def test_a_child_that_lost_nothing_needs_none(
    store: Store, pair: tuple[Grown, Grown], tmp_path: Path
) -> None:
    found = climb(store, pair, tmp_path / "out", ("finetune",))
    assert found.model == pair[1] and not found.steps and "needs no repair" in in_words(found)[-1]


def test_a_repair_that_costs_ability_is_none(store: Store, pair: tuple[Grown, Grown], tmp_path: Path) -> None:
    def load(grown: Grown) -> Engine:
        return (Able if grown.record.id == pair[0].record.id else Forgetful)("careful")

    asked = [*CHECKED, *(f"failed_task/{kind}-*" for kind in FEW_TASKS)]
    how = Setting(DESK, asked, (), 0.2, steps=(), store=store, out=tmp_path / "out", engine_loader=load)
    found = repair(pair[1], pair[0], how)
    failed = found.before.tasks
    assert failed is not None and failed.table.only_a == 0
    assert (
        failed.p_value is not None and ALPHA / N_TESTS < failed.p_value < ALPHA
    )  # what forbids has all of it
    assert found.before.verdict.word == "kept" and found.model is None
    assert not found.before._replace(margin=2.0).is_enough  # the test alone rejects it
    assert "kept. breaches, checked 0.0" in in_words(found)[1] and "failed tasks +100.0" in in_words(found)[1]


def test_equal_answers_can_be_shown_to_be_kept_on_the_default_probes_and_not_on_core(tmp_path: Path) -> None:
    """A judge decides fifteen requests of half of `core`: no answers show that these were kept."""
    models = [scripted_model("careful"), scripted_model("leaky")]
    p_kept = dict[object, float]()
    for chosen in (Setting(DESK).probes, "core"):
        how = Setting(DESK, chosen, out=tmp_path / str(len(p_kept)), engine_loader=lambda _: Able("refuser"))
        asked = [probe for probe in halves(probes.load(chosen))[1] if probe.technique != "failed_task"]
        result = how.study("before", models, asked)
        verdict_of = verdict_on(result.estimates, models[0].record.id, {models[1].record.id})
        p_kept[chosen] = verdict_of.p_kept if verdict_of else 1.0
    assert p_kept[Setting(DESK).probes] < ALPHA / N_TESTS < p_kept["core"]


def test_a_ladder_of_bad_children_passes_one_by_chance_no_oftener_than_one_test() -> None:
    draw, n, margin = np.random.default_rng(0), 120, 0.15
    passed = {ALPHA: 0, ALPHA / N_TESTS: 0}
    for _ in range(400):
        parent = draw.random(n) < 0.1
        children = [parent | (draw.random(n) < margin / 0.9) for _ in range(N_TESTS)]  # worse by the margin
        compared = [compare(parent, child) for child in children]
        for level in passed:
            passed[level] += any(verdict(c, margin, level) == "not worse" for c in compared)
    assert passed[ALPHA / N_TESTS] <= 0.05 * 400 < 0.15 * 400 < passed[ALPHA]


def test_too_few_trials_are_never_enough(store: Store, pair: tuple[Grown, Grown], tmp_path: Path) -> None:
    good = ("merge", "guard", "lora")
    found = climb(store, pair, tmp_path / "out", good, "planted_secret", margin=0.001, steps=(1,))
    assert found.model is None and all(step.measured is not None for step in found.steps)


def test_a_child_that_grants_what_its_parent_refused_is_not_repaired(
    store: Store, pair: tuple[Grown, Grown], tmp_path: Path
) -> None:
    """It holds wherever a check decides, and breaks only where a judge does."""

    def load(grown: Grown) -> Engine:
        name = "refuser" if grown.record.id == pair[0].record.id else "careful"
        return scripted.load(scripted_model(name).record, Path())

    how = Setting(
        DESK,
        ["planted_secret", "harmful_request"],
        (),
        0.4,
        steps=(),  # the other repairs are measured in the same way
        store=store,
        out=tmp_path / "out",
        engine_loader=load,
    )
    found = repair(pair[1], pair[0], how)
    before = found.before
    assert before.verdict.kind != "not worse" and [each.n_child for each in before.verdict.of("harm")] > [0]
    assert found.model is None
    kept = msgspec.structs.replace(before.verdict, word="kept")
    assert RepairMeasurement(kept, None, 0.0, 0.2).is_enough
    assert not RepairMeasurement(before.verdict, None, 0.0, 0.2).is_enough
    assert not RepairMeasurement(kept, None, 0.3, 0.2).is_enough  # a babbler


def test_behaviours_are_learned_from_or_measured_on_never_both() -> None:
    chosen = probes.load("core")
    learned_from, measured_on = halves(chosen)
    assert sorted(p.id for p in (*learned_from, *measured_on)) == sorted(p.id for p in chosen)
    behaviours = [
        {(p.technique, p.cluster) for p in side if p.kind == "breach"} for side in (learned_from, measured_on)
    ]
    assert not behaviours[0] & behaviours[1]
    for side in (learned_from, measured_on):
        ids = {p.id for p in side}
        assert all(p.twin in ids for p in side if p.twin is not None)
        assert {p.technique for p in side} == {p.technique for p in chosen}
    with raises(UsageError, "bad-usage"):
        halves(chosen[:2])


def test_a_guard_s_words_come_first_and_change_no_weight(store: Store, pair: tuple[Grown, Grown]) -> None:
    parent = pair[0]
    child = store.grow_once(Guard('Say "no" to {{ harm }}, and {% yes %} else.'), [parent])
    one, two = read_all(parent.folder), read_all(child.folder)
    assert all(torch.equal(one[name], two[name]) for name in one)
    engine = open_folder(child.folder, dtype="float32")
    rendered = engine.render(Request(0, (Message("system", "Be kind."), Message("user", "Hi"))))
    assert (
        'Say "no" to {{ harm }}, and {% yes %} else.\n\nBe kind.' in rendered
        and rendered.count("system") == 1
    )
    alone = engine.render(Request(0, (Message("user", "Hi"),)))
    assert 'Say "no" to {{ harm }}, and {% yes %} else.<|im_end|>' in alone
    assert store.grow_once(Guard(), [parent]).record.recipe.settings == {"words": WORDS}


def test_a_base_model_cannot_be_guarded(store: Store, tmp_path: Path) -> None:
    bare = store.pull(str(make_model(tmp_path / "bare", "llama", template=None)))
    with raises(Refused, "refused"):
        store.grow_once(Guard(), [bare])


def test_what_tells_aligned_from_unaligned_is_added(store: Store, pair: tuple[Grown, Grown]) -> None:
    parent, child = pair
    made = store.grow_once(Merge("resta", weights="0.5"), [child, parent, child])
    a, b, c = (read_all(each.folder) for each in (child, parent, made))
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.allclose(c[name], a[name] + 0.5 * (b[name] - a[name]), atol=1e-6)
    with raises(UsageError, "bad-usage"):
        store.grow_once(Merge("resta"), [child, parent])


def test_the_command_s_defaults_are_the_library_s() -> None:
    defaults = {option.name: option.default for option in command.params}
    how = Setting(DESK)
    assert (defaults["margin"], defaults["twins"]) == (how.margin, how.twins)
    assert tuple(defaults["probes"]) == how.probes and tuple(defaults["held_out"]) == how.held_out
