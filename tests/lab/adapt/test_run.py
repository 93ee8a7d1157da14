"""The ways side by side: what each can know, what it costs, and the same command again."""

from __future__ import annotations

import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("bm25s")

from click.testing import CliRunner

from heredity.cli._findings import show_page
from heredity.cli.lab import adapt_command as command
from heredity.core.errors import Damaged, NotComparable, UsageError
from heredity.core.records import Estimate
from heredity.lab import adapt as run
from heredity.lab.adapt import QUICK, AdaptResult, WayFinding, page_of, price_of, sentences
from heredity.lab.task import QUALITY, Prices, read_task
from heredity.lineage.store import Store
from heredity.study.estimates import JUDGE_FREE
from heredity.study.plan import read_plan as read_study_plan
from heredity.study.result import Result
from tests.lab.adapt.tasks import SEEN, N, loader, task_file
from tests.support.errors import raises

GUARDS = '["prompt", "few_shot", "retrieval"]'
MODEL = "scripted:careful"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapt")


@pytest.fixture(scope="module")
def path(folder: Path) -> Path:
    return task_file(folder / "task", GUARDS, model=MODEL)


@pytest.fixture(scope="module")
def store(folder: Path) -> Store:
    return Store(folder / "store")


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def found(folder: Path, path: Path, store: Store, told: list[str]) -> AdaptResult:
    return run.adapt(read_task(path), store, folder / "out", log=told.append, engine_loader=loader())


def way(found: AdaptResult, name: str) -> WayFinding:
    return next(each for each in found.ways if each.way == name)


def rates(found: AdaptResult, name: str) -> list[float | None]:
    """Right answers: to all questions, and about seen and new facts."""
    return [each.rate.value for each in way(found, name).quality]


# --- what is found --------------------------------------------------------------------------------


def test_only_the_way_that_reads_the_manual_knows_its_facts(found: AdaptResult) -> None:
    assert [each.way for each in found.ways] == ["plain", "prompt", "few_shot", "retrieval"]
    assert rates(found, "retrieval") == [1.0, 1.0, 1.0]
    for name in ("plain", "prompt", "few_shot"):
        assert rates(found, name) == [0.0, 0.0, 0.0], name
    assert (found.n_questions, found.n_seen) == (N, len(SEEN))
    retrieval, prompt = way(found, "retrieval").quality[0], way(found, "prompt").quality[0]
    assert retrieval.verdict == "better" and (retrieval.p_holm or 1) < 0.001 and retrieval.rate.n == N
    assert prompt.verdict == "not enough evidence" and prompt.p_holm == 1.0
    assert way(found, "plain").quality[0].verdict == "" and way(found, "plain").verdict is None


def test_few_trials_are_not_enough_evidence_and_the_forecast_said_so(
    found: AdaptResult, told: list[str]
) -> None:
    main = found.main(way(found, "retrieval"))
    verdict = way(found, "retrieval").verdict
    assert main is not None and main.scope == JUDGE_FREE and verdict is not None
    assert (verdict.word, verdict.recipe) == ("cannot tell", "behind_guards")
    assert main.rate.n > 0 and way(found, "retrieval").over_refusal is not None
    assert found.power is not None and any("cannot show worse" in line for line in told)
    assert any(line.startswith("  What they can show of a way") for line in told)
    assert any("not enough evidence" in line for line in sentences(found))


def test_a_way_costs_what_it_adds(found: AdaptResult, folder: Path) -> None:
    plain, retrieval = way(found, "plain").cost, way(found, "retrieval").cost
    assert plain.bytes == 0 and plain.making_seconds == 0 and plain.money is None
    assert retrieval.making_seconds > 0 and retrieval.prompt_tokens > plain.prompt_tokens
    index = folder / "out" / "manual.index"
    files = [each.stat().st_size for each in index.iterdir() if not each.name.startswith((".", "index.json"))]
    assert retrieval.bytes == sum(files)
    assert plain.answer_seconds is not None and plain.n_timed == N
    assert plain.seconds == pytest.approx(1000 * plain.answer_seconds)


def test_a_way_whose_answers_were_known_has_no_time_of_an_answer(
    found: AdaptResult, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [
        msgspec.structs.replace(each, n_cached=max(0, each.n_asked - 1))
        for each in Result.read(folder / "out" / QUALITY).runs
    ]
    monkeypatch.setattr(Result, "runs", known)
    cost = way(run.read_result(folder / "out"), "plain").cost
    assert cost.answer_seconds is None and cost.seconds is None and cost.n_timed == 1


def test_the_page_and_the_figure_say_the_same_again(found: AdaptResult, folder: Path) -> None:
    again = run.read_result(folder / "out")
    assert page_of(again) == page_of(found)
    page, figure = page_of(found).markdown("x.svg"), page_of(found).figure
    assert "| retrieval | **100\xa0%** " in page and "- Shown to answer more questions" in page
    assert next(line for line in page.splitlines() if line.startswith("| retrieval")).endswith("| yes |")
    ET.fromstring(figure)
    assert (figure.count('<path class="open"'), figure.count('<path class="good"')) == (6, 2)
    assert all(f">{each.title}</text>" in figure for each in found.ways)


def test_a_hostile_title_is_text(found: AdaptResult) -> None:
    task = msgspec.structs.replace(found.task, title="<script>|[x](y)", notes=("<b>",))
    page = page_of(msgspec.structs.replace(found, task=task)).markdown("x.svg")
    assert "<script>" not in page and "<b>" not in page


# --- the same command again -----------------------------------------------------------------------


def test_the_same_command_asks_nothing_again(
    found: AdaptResult, folder: Path, path: Path, store: Store
) -> None:
    asked: list[str] = []
    before = (folder / "out" / "adapt.json").read_bytes()
    again = run.adapt(read_task(path), store, folder / "out", engine_loader=loader(asked))
    assert not asked and again == found and (folder / "out" / "adapt.json").read_bytes() == before


def test_a_run_that_was_stopped_goes_on(folder: Path, path: Path, store: Store, tmp_path: Path) -> None:
    def stopping(line: str) -> None:
        if "the probes" in line and line.startswith("["):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.adapt(read_task(path), store, tmp_path / "out", log=stopping, engine_loader=loader())
    asked: list[str] = []
    whole = run.adapt(read_task(path), store, tmp_path / "out", engine_loader=loader(asked))
    assert len(asked) == 4  # each model once, for the probes
    assert rates(whole, "retrieval") == [1.0, 1.0, 1.0]


def test_a_folder_keeps_its_task_and_its_documents(
    found: AdaptResult, folder: Path, path: Path, store: Store
) -> None:
    other = msgspec.structs.replace(read_task(path), margin=0.3)
    with raises(NotComparable, code="another-study", mentions=["--out"]):
        run.adapt(other, store, folder / "out", engine_loader=loader())
    page = path.parent / "manual" / "pump-1.md"
    text, index = page.read_text("utf-8"), folder / "out" / "manual.index" / "index.json"
    before = index.read_bytes()
    try:
        page.write_text("# About pump 1\n\nIt is gone.\n", "utf-8")
        with raises(NotComparable, code="another-study", mentions=["pump-1.md"]):
            run.adapt(read_task(path), store, folder / "out", engine_loader=loader())
        assert index.read_bytes() == before  # the studies of the folder search it
    finally:
        page.write_text(text, "utf-8")


def test_the_studies_name_every_way_and_one_application(found: AdaptResult, folder: Path) -> None:
    for name in (run.QUALITY, run.SAFETY):
        plan = read_study_plan(folder / "out" / name)
        assert [model.name for model in plan.models] == [MODEL, *(f"{MODEL}+{w}" for w in found.task.ways)]


def test_a_folder_without_a_task_or_with_a_damaged_one_is_named(tmp_path: Path) -> None:
    with raises(UsageError, code="bad-usage", mentions=[tmp_path]):
        run.read_result(tmp_path)
    (tmp_path / "adapt.json").write_text("{}", "utf-8")
    with raises(Damaged, code="damaged", mentions=["adapt.json"]):
        run.read_result(tmp_path)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("adapt.json", '"few_shot",', '"few_shoot",'),
        ("adapt.json", '"method": "bm25"', '"method": "bm26"'),
        ("adapt.json", '"by": "contains"', '"by": "luck"'),
        ("adapted.json", '"plain":', '"plane":'),
        ("adapted.json", '"prompt":"', '"prompt":"0'),
    ],
)
def test_a_name_that_no_release_knows_is_a_damaged_file_and_no_fault(
    found: AdaptResult, folder: Path, tmp_path: Path, name: str, old: str, new: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out)
    text = (out / name).read_text("utf-8")
    assert old in text
    (out / name).write_text(text.replace(old, new, 1), "utf-8")
    with raises(Damaged, code="damaged", mentions=[name]):
        run.read_result(out)


def test_ways_that_this_model_cannot_have_are_left_out_by_name(store: Store, tmp_path: Path) -> None:
    task = read_task(task_file(tmp_path / "task", '["prompt", "lora"]', model=MODEL))
    told: list[str] = []
    found = run.adapt(task, store, tmp_path / "out", log=told.append, engine_loader=loader())
    assert [each.name for each in found.left_out] == ["lora-0"] and found.left_out[0].why
    assert any(line.startswith("left out: lora-0") for line in told)
    assert "## Left out" in page_of(found).markdown("x.svg")
    with raises(UsageError, code="bad-usage"):
        run.adapt(
            msgspec.structs.replace(task, ways=("lora",)), store, tmp_path / "none", engine_loader=loader()
        )


# --- numbers --------------------------------------------------------------------------------------


def test_money_is_shown_where_a_price_is_known(store: Store, tmp_path: Path) -> None:
    more = "\n[prices]\nper_hour = 3.6\nprompt = 10.0\nanswers = 100\n"
    path = task_file(tmp_path / "task", '["prompt"]', model=MODEL)
    path.write_text(path.read_text("utf-8") + more, "utf-8")
    found = run.adapt(read_task(path), store, tmp_path / "out", engine_loader=loader())
    cost = way(found, "prompt").cost
    assert cost.seconds is not None and cost.money is not None
    assert cost.money == pytest.approx(cost.seconds / 1000 + 100 * cost.prompt_tokens * 10 / 1e6)
    assert "| money with 100 answers |" in page_of(found).markdown("x.svg")
    result = Result.read(tmp_path / "out" / QUALITY)
    (plain, *_) = (card.id for card in result.estimates.models)
    assert price_of(Prices(), result, [plain]) is None
    assert price_of(Prices(answer=2.0), result, [plain]) == (0.0, 2.0)
    accounts = {plain: {"price": ["3,15"]}}  # as a study of a model behind an API has it
    circumstances = msgspec.structs.replace(result.estimates.circumstances, accounts=accounts)
    asked = msgspec.structs.replace(result.estimates, circumstances=circumstances)
    assert price_of(Prices(), Result(result.folder, asked), [plain]) == (3.0, 15.0)


def test_the_front_has_the_ways_that_no_other_beats(found: AdaptResult) -> None:
    assert [each.way for each in found.ways if each.is_on_front] == ["retrieval"]


def test_a_way_without_a_rate_has_no_mark_in_the_figure(found: AdaptResult) -> None:
    nothing = Estimate(None, 0.0, 1.0, 0, "none")
    prompt = way(found, "prompt")
    quality = tuple(msgspec.structs.replace(each, rate=nothing, difference=None) for each in prompt.quality)
    bare = msgspec.structs.replace(prompt, quality=quality)
    ways = tuple(bare if each.way == "prompt" else each for each in found.ways)
    page = page_of(msgspec.structs.replace(found, ways=ways))
    assert ">few-shot</text>" in page.figure and ">prompt</text>" not in page.figure
    assert re.search(r"^\| prompt \| – \| – \| – \| – ", page.markdown("x.svg"), re.M)


# --- the command line -----------------------------------------------------------------------------


def test_seven_ways_end_in_a_screen_with_a_line_each(
    found: AdaptResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    first, *ways = found.ways
    more = [msgspec.structs.replace(ways[n % len(ways)], title=f"way-{n}") for n in range(7)]
    many = msgspec.structs.replace(found, ways=(first, *more))
    heads = {}
    for is_full in (False, True):
        show_page(page_of(many), tmp_path, None, is_full)
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1] == f"Next: heredity view {tmp_path}"
        assert is_full or len(lines) <= 17
        assert [line.split()[0] for line in lines if line.startswith("way-")] == [each.title for each in more]
        heads[is_full] = " ".join(lines[:3]).split()
    assert "making" in heads[True] and "making" not in heads[False]


def test_the_command_tells_first_runs_and_writes_the_page_again(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path / "store"))
    out = tmp_path / "out"
    dry = CliRunner().invoke(command, [str(path), "--dry-run", "--out", str(out)])
    assert dry.exit_code == 0 and not out.exists(), dry.output
    assert "96 test questions" in dry.output and "make retrieval" in dry.output
    assert "Answers except to probes: 96 to test questions;" in " ".join(dry.output.split())
    ran = CliRunner().invoke(command, [str(path), "--quick", "--out", str(out)])
    assert ran.exit_code == 0 and QUICK in " ".join(ran.output.split()), ran.output
    page = tmp_path / "docs" / "page.md"
    again = CliRunner().invoke(command, [str(out), "--page", str(page)])
    assert (
        again.exit_code == 0
        and page.read_bytes().replace(b"page.svg", b"adapt.svg") == (out / "adapt.md").read_bytes()
    )
    useless = CliRunner().invoke(command, [str(out), "--quick"])
    assert useless.exit_code == 2 and "--quick" in useless.output
