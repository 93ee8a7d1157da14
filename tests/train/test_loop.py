"""A training learns, goes on after kill -9 to the same bits, and stops where its loss is no number."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest
import torch

from heredity.core.errors import Damaged
from heredity.train import loop
from heredity.train.data import chat
from heredity.train.data import chat as documents
from heredity.train.loop import BatchSampler, MasterWeights, OptimizerName, lr_factor
from heredity.train.models import causal_lm
from heredity.train.models.causal_lm import FullFinetune, LowRankAdapters
from heredity.train.objectives.causal import Causal
from tests.support.errors import raises
from tests.support.processes import ends_after_kills, n_rows

N_STEPS = 14


def run(folder: Path, data: Path, work: Path, kind: str, optimizer: str = "adamw", rate: float = 3e-3) -> str:
    """Train and return a digest of every weight."""
    net = causal_lm.load(folder, "float32")
    prepared = documents.ConversationEncoder(folder).prepare(chat.read_data(data).dialogues, 512)
    trainable = FullFinetune() if kind == "all" else LowRankAdapters(rank=4)
    plan = loop.TrainingPlan("t", N_STEPS, rate, "wsd", 2, 0.01, 1.0, optimizer)  # type: ignore[arg-type]
    loop.train(net, trainable, Causal(), BatchSampler(prepared.examples, 4, 1, 128), plan, work)
    raw = b"".join(p.detach().numpy().tobytes() for _, p in sorted(net.model.named_parameters()))
    return hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize("kind", ["all", "lora"])
def test_the_loss_falls_and_two_runs_give_the_same_bits(
    tiny_llama: Path, data_file: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "PROGRESS_SECONDS", 0.0)
    one = run(tiny_llama, data_file, tmp_path / "a", kind)
    two = run(tiny_llama, data_file, tmp_path / "b", kind)
    assert one == two
    rows = list(loop.Rows(tmp_path / "a" / loop.METRICS, loop.StepMetrics))
    assert len(rows) == N_STEPS and rows[-1].loss < 0.9 * rows[0].loss
    shown = msgspec.json.decode((tmp_path / "a" / loop.PROGRESS).read_bytes(), type=loop.RunProgress)
    assert (shown.n_done, shown.n_steps) == (N_STEPS, N_STEPS) and shown.per_second > 0
    assert shown.seconds_left is None  # in its first minute


@pytest.mark.parametrize(
    ("kind", "optimizer", "kills"),
    [
        ("all", "adamw", (6,)),
        pytest.param("all", "muon", (2, 6, 11), marks=pytest.mark.proof),
        pytest.param("lora", "adamw", (2, 6, 11), marks=pytest.mark.proof),
    ],
)
def test_killed_again_and_again_it_comes_to_the_same_bits(
    tiny_llama: Path, data_file: Path, tmp_path: Path, kind: str, optimizer: str, kills: tuple[int, ...]
) -> None:
    whole = run(tiny_llama, data_file, tmp_path / "whole", kind, optimizer)
    program = (
        "import sys, time; from pathlib import Path; import heredity.train.loop as loop;"
        "loop.CHECKPOINT_SECONDS = 0.0; loop._CHECKPOINT_COST_RATIO = 0;"
        "tick = loop._ProgressClock.tick;"
        "loop._ProgressClock.tick = lambda self, m: (tick(self, m), time.sleep(0.05));"
        "from tests.train.test_loop import run;"
        f"folder, data = Path({str(tiny_llama)!r}), Path({str(data_file)!r});"
        f"print(run(folder, data, Path(sys.argv[1]), {kind!r}, {optimizer!r}))"
    )
    command = ["-c", program, str(tmp_path / "killed")]
    metrics = tmp_path / "killed" / loop.METRICS
    last = ends_after_kills(command, tmp_path, lambda: n_rows([metrics]), kills)
    assert last.stdout.strip() == whole
    steps_done = [row.step for row in loop.Rows(metrics, loop.StepMetrics)]
    assert steps_done == list(range(N_STEPS))


def test_a_loss_that_is_no_number_stops_and_the_last_good_checkpoint_stays(
    tiny_llama: Path, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "_CHECKPOINT_COST_RATIO", 0)
    with raises(loop.Diverged, "diverged"):
        run(tiny_llama, data_file, tmp_path, "all", rate=1e18)
    kept = loop.read_single_file(tmp_path, "t")
    assert kept is None or all(bool(torch.isfinite(tensor).all()) for tensor in kept.state.values())


def test_weights_that_the_last_step_ruined_are_not_handed_on(
    tiny_llama: Path, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "_CHECKPOINT_COST_RATIO", 0)
    step, n_done = MasterWeights.step, iter(range(N_STEPS))

    def ruining(self: MasterWeights, share: float, clip: float) -> float:
        norm = step(self, share, clip)
        if next(n_done) == ruined:
            self.masters[0].data[0] = torch.nan
        return norm

    monkeypatch.setattr(MasterWeights, "step", ruining)
    for ruined, n_kept in ((N_STEPS - 1, N_STEPS - 1), (4, 4)):
        n_done = iter(range(N_STEPS))
        with raises(loop.Diverged, "diverged", mentions=[ruined]):
            run(tiny_llama, data_file, tmp_path / str(ruined), "all")
        kept = loop.read_single_file(tmp_path / str(ruined), "t")
        assert kept is not None and kept.n_steps == n_kept


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    loop.write_single_file(tmp_path, "one", loop.CheckpointState(3, 30, {"master/x": torch.ones(2)}))
    assert loop.read_single_file(tmp_path, "one").n_steps == 3  # type: ignore[union-attr]
    with raises(Damaged, "damaged"):
        loop.read_single_file(tmp_path, "two")
    (tmp_path / loop.SINGLE_FILE).write_bytes(b"torn")
    with raises(Damaged, "damaged"):
        loop.read_single_file(tmp_path, "one")


def test_small_steps_are_not_lost_to_the_networks_rounding() -> None:
    parameter = torch.nn.Parameter(torch.full((4, 4), 1.0, dtype=torch.bfloat16))
    masters = MasterWeights([("w", parameter)], "adamw", 1e-5, 0.0)
    for _ in range(400):  # each step is far below bf16's spacing at 1, their sum is not
        parameter.sum().backward()
        masters.step(1.0, 0.0)
    assert float(parameter.detach().float().mean()) == pytest.approx(0.996, abs=0.002)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_decay_pulls_matrices_that_are_no_embeddings(kind: OptimizerName) -> None:
    names = ("model.embed_tokens.weight", "q_proj.weight", "lm_head.weight", "norm.weight")
    named = [
        (name, torch.nn.Parameter(torch.ones(3, 3)[0] if "norm" in name else torch.ones(3, 3)))
        for name in names
    ]
    masters = MasterWeights(named, kind, 0.1, 0.5)
    for _, each in named:
        each.grad = None
        (0 * each.sum()).backward()
    masters.step(1.0, 0.0)
    assert [float(each.detach().mean()) < 0.99 for _, each in named] == [False, True, True, False]


def test_schedules_rise_hold_and_fall() -> None:
    wsd = [lr_factor(step, 100, "wsd", 10) for step in range(100)]
    assert 0 < wsd[0] < wsd[9] < 1 and wsd[10:80] == [1.0] * 70 and wsd[-1] < 0.1
    cosine = [lr_factor(step, 100, "cosine", 10) for step in range(100)]
    assert cosine[10] == pytest.approx(1.0, abs=0.01) and sorted(cosine[10:], reverse=True) == cosine[10:]
    assert 0 < cosine[-1] < 0.01
