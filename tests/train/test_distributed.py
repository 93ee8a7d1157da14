"""Several processes learn what one does, go on from one another's checkpoints, and end together"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this torch cannot speak to other processes", allow_module_level=True)

from heredity.core.errors import Damaged, UsageError
from heredity.core.files import Rows
from heredity.corpus import recipe as recipes
from heredity.corpus.build import build
from heredity.lineage.store import Store
from heredity.lineage.types import Grown
from heredity.recipes.pretrain import recipe as pretrain
from heredity.train import distributed, loop
from heredity.train import loop as pieces
from heredity.train.loop import CheckpointState
from tests.support.corpora import TOKENIZER, paragraphs
from tests.support.errors import raises
from tests.support.processes import RUNS, n_rows

N_STEPS, KEEP_EVERY = 20, 5
RECIPE = f"""
name = "tiny"
corpus = "out"
size = "50K"
hidden_size = 32
head_dim = 16
heads = 2
kv_heads = 1
ffn_size = 48
layers = 2
context = 64
tokens = {512 * N_STEPS}
batch_size = 512
lr = 0.005
validation_tokens = 2000
evaluations = 4
checkpoint_every = {KEEP_EVERY}
dtype = "float32"
"""
NEAR = 1e-3  # of a loss; Muon multiplies in bfloat16, so that a last bit of a gradient becomes a visible one


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus whose vocabulary no number of processes divides, and what to make of it."""
    pytest.importorskip("tokenizers")
    root = tmp_path_factory.mktemp("many")
    (root / "texts").mkdir()
    for number, text in enumerate(paragraphs()[:60]):
        (root / "texts" / f"{number:02}.txt").write_text(text, encoding="utf-8")
    source = '[[source]]\nname = "shelf"\nkind = "text"\npath = "texts"\n'
    (root / "corpus.toml").write_text(source + TOKENIZER.replace("400", "401"), encoding="utf-8")
    build(recipes.read(root / "corpus.toml"), root / "out")
    (root / "base.toml").write_text(RECIPE)
    return root / "base.toml"


@pytest.fixture(scope="module")
def alone(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Grown]:
    """What one process makes, with an optimizer."""
    store = Store(tmp_path_factory.mktemp("alone"))
    return lambda kind: store.grow_once(pretrain.read(recipe, {"optimizer": kind}), [])


def command(recipe: Path, world: int, *flags: str) -> list[str]:
    place = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    start = ["-m", "torch.distributed.run", *place, "--nproc-per-node", str(world)] if world else []
    return [sys.executable, *start, "-m", "heredity", "pretrain", str(recipe), *flags]


def environment(root: Path) -> dict[str, str]:
    found = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "HEREDITY_STORE": str(root)}
    return found | {"OMP_NUM_THREADS": "1"}


def made(root: Path, command: Sequence[str]) -> Grown:
    """The only model of a store, after a command."""
    done = subprocess.run(command, env=environment(root), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    store = Store(root)
    (model,) = store.models()
    assert store.verify(model) == [] and not list(root.glob("training/*/*"))
    return Grown(model, store.folder(model))


def rows(model: Grown) -> list[loop.StepMetrics]:
    return list(Rows(model.folder / loop.METRICS, loop.StepMetrics))


def assert_the_same_training(
    one: Grown, other: Grown, falls: bool = True, near: float = NEAR, leaping: Sequence[str] = ()
) -> None:
    """leaping: terms that are no smooth function of the weights, which are left to the caller."""
    a, b = rows(one), rows(other)
    assert [row.step for row in b] == list(range(N_STEPS))
    assert [(row.n_tokens, row.n_learned, row.lr) for row in a] == [
        (row.n_tokens, row.n_learned, row.lr) for row in b
    ]
    assert [row.loss for row in b] == pytest.approx([row.loss for row in a], rel=near)
    assert [row.grad_norm for row in b] == pytest.approx([row.grad_norm for row in a], rel=100 * near)
    for row, other_row in zip(a, b, strict=True):
        assert row.terms.keys() == other_row.terms.keys()
        smooth = row.terms.keys() - set(leaping)
        assert [other_row.terms[name] for name in smooth] == pytest.approx(
            [row.terms[name] for name in smooth], rel=5 * near
        )
    assert not falls or a[-1].loss < 0.95 * a[0].loss


@pytest.mark.parametrize(
    ("kind", "world", "flags"),
    [
        pytest.param("muon", 2, ("--recompute", "--recompute-every", "2"), marks=pytest.mark.proof),
        pytest.param("muon", 2, ("--recompute",), marks=pytest.mark.proof),
        pytest.param("adamw", 2, (), marks=pytest.mark.proof),
        pytest.param("muon", 2, ("--replicas", "2", "--reduce", "each"), marks=pytest.mark.proof),
        pytest.param("muon", 4, ("--replicas", "2"), marks=pytest.mark.proof),
        pytest.param("adamw", 3, (), marks=pytest.mark.proof),
        pytest.param("muon", 1, (), marks=pytest.mark.proof),
    ],
)
def test_several_processes_give_the_losses_of_one_and_a_model_that_loads(
    alone: Callable[[str], Grown], recipe: Path, tmp_path: Path, kind: str, world: int, flags: tuple[str, ...]
) -> None:
    many = made(tmp_path, command(recipe, world, "--optimizer", kind, *flags))
    one = alone(kind)
    assert_the_same_training(one, many)
    assert many.record.recipe == one.record.recipe
    assert many.record.notes["processes"].startswith(f"{world}, weights in ")
    assert loss_in_transformers(many, recipe) == pytest.approx(
        loss_in_transformers(one, recipe), rel=5 * NEAR
    )


def loss_in_transformers(base: Grown, recipe: Path) -> float:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    document = pretrain.read(recipe).text.document("validation", 0)[:64].astype("int64")
    ids = torch.from_numpy(document)[None]
    with torch.no_grad():
        return float(model(ids, labels=ids).loss)


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        pytest.param(*each, marks=pytest.mark.proof)
        for each in (("adamw", 2, 0), ("muon", 0, 2), ("muon", 3, 2))
    ],
)
def test_killed_and_gone_on_with_by_another_number_of_processes_the_losses_are_those_of_one(
    alone: Callable[[str], Grown], recipe: Path, tmp_path: Path, kind: str, first: int, second: int
) -> None:
    """0: without torchrun."""
    kill_on_the_way(tmp_path, recipe, first, "--optimizer", kind)
    if second:
        grown = made(tmp_path, command(recipe, second, "--optimizer", kind))
    else:
        grown = Store(tmp_path).grow_once(pretrain.read(recipe, {"optimizer": kind}), [])
    assert_the_same_training(alone(kind), grown)


def kill_on_the_way(root: Path, recipe: Path, world: int, *flags: str) -> None:
    """The first process, behind a checkpoint; the others end by themselves."""
    begun = command(recipe, world, *flags)
    with subprocess.Popen(
        begun, env=environment(root), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and n_rows(root.glob(RUNS)) < KEEP_EVERY + 2:
            time.sleep(0.002)
        (holder,) = root.glob("training/*/.lock.pid")
        os.kill(int(holder.read_text()), signal.SIGKILL)
        assert process.wait(120) != 0
    (folder,) = root.glob("training/*")
    assert (folder / pieces.INDEX_FILE).exists() == bool(world)
    assert (folder / loop.SINGLE_FILE).exists() != bool(world)
    assert KEEP_EVERY <= n_rows(root.glob(RUNS)) < N_STEPS


MUON = """
import torch
from heredity.train import distributed as processes
from heredity.train.distributed import ShardedMuon

with processes.process_group() as dist:
    torch.manual_seed(0)
    whole = [torch.randn(shape) for shape in ((7, 5), (1, 6), (16, 4), (5, 9), (3, 3))]
    pieces = [each[slice(*dist.rows(len(each)))].clone() for each in whole]
    one = torch.optim.Muon(whole, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    many = ShardedMuon(pieces, [len(each) for each in whole], dist, 0.1, 0.1)
    for _ in range(3):
        for each, piece in zip(whole, pieces):
            each.grad = torch.randn_like(each)
            piece.grad = each.grad[slice(*dist.rows(len(each)))].clone()
        one.step()
        many.step()
    for each, piece in zip(whole, pieces):
        torch.testing.assert_close(piece, each[slice(*dist.rows(len(each)))], rtol=1e-6, atol=1e-6)
    assert dist.sum([1.0]) == [2.0] and dist.broadcast([float(dist.rank), 7.0]) == [0.0, 7.0]
"""


@pytest.mark.proof  # which several processes with muon show, too
def test_muon_over_pieces_is_torchs_muon_over_whole_matrices(tmp_path: Path) -> None:
    run_program(MUON, tmp_path)


def run_program(text: str, folder: Path, *said: str) -> None:
    """In two processes."""
    program = folder / "program.py"
    program.write_text(text)
    start = command(program, 2)
    started = [*start[: start.index("heredity") - 1], str(program), *said]
    done = subprocess.run(started, env=environment(folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


GUARD = """
import sys
from pathlib import Path
from heredity.train import loop, distributed as processes
from heredity.train.models import causal_lm as network
from heredity.train.distributed import ShardedModel
from heredity.train.data.packed import PackedDataset
from heredity.train.models.causal_lm import FullFinetune
from tests.train.test_loop_guard import DOCUMENTS, END, SIZE, Spoilt

config = {
    "model_type": "qwen3", "vocab_size": SIZE, "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "max_position_embeddings": 64, "tie_word_embeddings": True,
}
with processes.process_group() as dist:
    stream = PackedDataset(DOCUMENTS, END, 128, 64, 1, rank=dist.rank, world_size=dist.world_size)
    read = []

    class Noted:
        def batches(self, step):
            read.append(step)
            return stream.batches(step)

    of_one = PackedDataset(DOCUMENTS, END, 128, 64, 1, rank=1, world_size=2).batches(3)[0].targets.tolist()
    whole = PackedDataset(DOCUMENTS, END, 128, 64, 1)
    before = [token for step in range(3) for batch in whole.batches(step) for token in batch.targets.tolist()]
    spoilt = Spoilt(next(t for t in of_one if t not in before), float("nan"))
    plan = loop.TrainingPlan("t", 5, 1e-3, "constant")
    net = ShardedModel(network.from_config(config, 5, "float32"), dist)
    guard = loop.DivergenceGuard(keep_every=2)
    rows = loop.train(
        net, FullFinetune(), spoilt, Noted(), plan, Path(sys.argv[1]), None, None, guard, dist
    )
    assert read == [0, 1, 2, 3, 4, 5, 6], read  # step 2 is done again, with step 4 of data
    assert [row.step for row in rows] == (list(range(5)) if dist.is_main_process else [])
"""


@pytest.mark.proof
def test_a_loss_that_is_no_number_in_one_process_sends_all_back(tmp_path: Path) -> None:
    run_program(GUARD, tmp_path, str(tmp_path / "training"))


class Apart(loop.DistContext):
    """A process of several that run one after another: nothing that it says is heard."""

    def sum(self, numbers: Sequence[float]) -> list[float]:
        return list(numbers)


WHOLE = {
    "master/w": torch.arange(35.0).view(7, 5),
    "momentum_buffer/w": torch.arange(35.0).view(7, 5) / 2,
    "master/norm": torch.arange(3.0),
    "step/norm": torch.tensor(4.0),
}
N_ROWS = {"w": 7, "norm": 3}


def apart(rank: int, world: int, replicas: int = 1) -> Apart:
    return Apart(rank, world, replicas, torch.device("cpu"), "there")


def state(dist: loop.DistContext) -> dict[str, torch.Tensor]:
    """What lies in a process."""
    return {
        key: whole[slice(*dist.rows(N_ROWS[key.partition("/")[2]]))] if whole.ndim else whole
        for key, whole in WHOLE.items()
    }


def keep(folder: Path, world: int, n_steps: int, replicas: int = 1) -> None:
    """A checkpoint of as many processes, the first of them last."""
    for rank in reversed(range(world)):
        dist = apart(rank, world, replicas)
        pieces.write_checkpoint(folder, "t", CheckpointState(n_steps, 10, state(dist)), N_ROWS, dist)


@pytest.mark.parametrize(("before", "replicas"), [(1, 1), (2, 1), (5, 1), (4, 2)])
@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_a_checkpoint_of_some_processes_is_read_by_any_number(
    tmp_path: Path, before: int, replicas: int, after: int
) -> None:
    keep(tmp_path, before, 3, replicas)
    for dist in [loop.SINGLE_PROCESS, *(apart(rank, after) for rank in range(after))]:
        kept = pieces.read_checkpoint(tmp_path, "t", N_ROWS, dist)
        assert kept is not None and (kept.n_steps, kept.n_tokens) == (3, 10)
        wanted = state(dist)
        assert set(kept.state) == set(wanted)
        for key, tensor in wanted.items():
            assert torch.equal(kept.state[key], tensor), key


def test_the_former_checkpoint_stands_until_the_next_is_whole(tmp_path: Path) -> None:
    keep(tmp_path, 2, 3)
    pieces.write_checkpoint(
        tmp_path, "t", CheckpointState(6, 20, state(apart(1, 2))), N_ROWS, apart(1, 2)
    )  # and then killed
    assert pieces.read_checkpoint(tmp_path, "t", N_ROWS, loop.SINGLE_PROCESS).n_steps == 3  # type: ignore[union-attr]
    keep(tmp_path, 3, 6)
    assert pieces.read_checkpoint(tmp_path, "t", N_ROWS, loop.SINGLE_PROCESS).n_steps == 6  # type: ignore[union-attr]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["checkpoint.6"]


def test_one_process_takes_over_from_many_and_many_from_one(tmp_path: Path) -> None:
    keep(tmp_path, 2, 3)
    loop.write_single_file(
        tmp_path, "t", CheckpointState(5, 15, WHOLE)
    )  # killed before the pieces were let go
    assert pieces.read_checkpoint(tmp_path, "t", N_ROWS, loop.SINGLE_PROCESS).n_steps == 5  # type: ignore[union-attr]
    assert pieces.read_checkpoint(tmp_path, "t", N_ROWS, apart(1, 2)).n_steps == 5  # type: ignore[union-attr]
    pieces.write_checkpoint(tmp_path, "t", CheckpointState(7, 20, WHOLE), N_ROWS, loop.SINGLE_PROCESS)
    assert [path.name for path in tmp_path.iterdir()] == [loop.SINGLE_FILE]
    keep(tmp_path, 2, 9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.9", pieces.INDEX_FILE]


def test_a_checkpoint_that_is_torn_or_of_another_training_is_refused(tmp_path: Path) -> None:
    keep(tmp_path, 2, 3)
    with raises(Damaged, "damaged"):
        pieces.read_checkpoint(tmp_path, "other", N_ROWS, apart(0, 2))
    (tmp_path / "checkpoint.3" / "1.safetensors").write_bytes(b"torn")
    with raises(Damaged, "damaged"):
        pieces.read_checkpoint(tmp_path, "t", N_ROWS, loop.SINGLE_PROCESS)
    assert (
        pieces.read_checkpoint(tmp_path, "t", N_ROWS, apart(0, 2)) is not None
    )  # it needs the first piece alone
    (tmp_path / pieces.INDEX_FILE).write_bytes(b"{")
    with raises(Damaged, "damaged"):
        pieces.read_checkpoint(tmp_path, "t", N_ROWS, apart(0, 2))


def test_replicas_that_do_not_divide_the_processes_are_refused() -> None:
    with raises(UsageError, "bad-usage", mentions=["2", "1"]), distributed.process_group(2):
        pass
