"""A teacher's reading that is killed goes on to the same bytes, and a larger one serves a smaller k."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from heredity.lineage.store import Store
from heredity.lineage.types import Grown
from heredity.recipes.distill import Distill
from heredity.recipes.prune import Prune
from heredity.train import loop
from heredity.train.data import chat
from heredity.train.data.chat import TokenizedExample
from heredity.train.models import causal_lm
from heredity.train.objectives import distill
from heredity.train.objectives.distill import GroupFile, TeacherConfig
from tests.support.tiny_models import make_model
from tests.train.test_causal_lm import DOCUMENTS

# In products of 120 tokens, so that the teacher reads many; killed by itself once it has read `n_read`.
DISTILLING = """
import os, signal, sys
from pathlib import Path
from heredity.lineage.store import Store
from heredity.recipes.distill import Distill
from heredity.train.data import chat as dialogues
from heredity.train.objectives import distill as scores

root, data, student, teacher, n_read = sys.argv[1:]
scores.MICROBATCH_TOKENS = 120
store, seen = Store(Path(root)), []

def watch(at):
    if at.step == "read":
        seen.append(at.n_done)
        assert at.n_total > 3 and at.per_second > 0 and at.seconds_left is None
        if len(seen) == int(n_read):
            os.kill(os.getpid(), signal.SIGKILL)

training = dict(steps=2, dtype="float32")
recipe = Distill(dialogues.read_data(Path(data)), **training, top_k=5, watch=watch)
child = store.grow_once(recipe, [store.get(student), store.get(teacher)])
print(child.record.id, *seen)
"""


def distil(store: Store, data: Path, names: list[str], n_read: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", DISTILLING, str(store.root), str(data), *names, str(n_read)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.proof
def test_a_teacher_that_is_killed_reads_on_to_the_same_scores(data_file: Path, tmp_path: Path) -> None:
    made, stores = make_model(tmp_path / "tiny", "llama"), [Store(tmp_path / name) for name in ("a", "b")]
    for store in stores:
        teacher = store.pull(str(made))
        names = [store.grow_once(Prune(2), [teacher]).record.id, teacher.record.id]
    left_alone, killed = stores
    child, *read = distil(left_alone, data_file, names, 0).stdout.split()
    assert read == [str(i + 1) for i in range(len(read))]
    assert distil(killed, data_file, names, 2).returncode == -signal.SIGKILL
    assert not (killed.root / "scores").exists()  # what is not whole is not there
    (part,) = (killed.root / "training").rglob("*.part")
    with part.open("ab") as file:
        file.write(b"torn")
    assert distil(killed, data_file, names, 0).stdout.split() == [child, *read[2:]]
    assert not list((killed.root / "training").rglob("*.part"))
    one, other = (
        loop.read_tensors(path, "", "") for store in stores for path in (store.root / "scores").glob("*/*")
    )
    assert one.about == other.about
    assert all(torch.equal(tensor, other.state[name]) for name, tensor in one.state.items())


@pytest.mark.parametrize("at", [0, 5, 17, 40, -1])
def test_a_group_that_is_torn_is_cut_off(tmp_path: Path, at: int) -> None:
    groups = [b"one", b"two and more", b"", b"three"]
    with GroupFile(tmp_path / "groups") as file:
        for each in groups:
            file.append(each)
    data = bytearray((tmp_path / "groups").read_bytes())
    data[at] ^= 1
    (tmp_path / "groups").write_bytes(data)
    with GroupFile(tmp_path / "groups") as file:
        n = len(file.there)
        assert n < 4 and file.there == groups[:n]
        file.append(b"new")
    with GroupFile(tmp_path / "groups") as file:
        assert file.there == [*groups[:n], b"new"]


def test_a_larger_reading_serves_a_smaller_k_as_a_reading_of_its_own(
    tiny_llama: Path, tmp_path: Path
) -> None:
    teacher = causal_lm.load(tiny_llama, "float32")
    examples = [TokenizedExample(d) for d in DOCUMENTS]
    batch = causal_lm.collate(examples)
    for k in (12, 4, 30):
        reading = TeacherConfig(k, 2.0, tmp_path / "reading")
        distill.write_logprobs(tmp_path / f"mine-{k}.safetensors", "mine", teacher, examples, reading)
    assert [distill.find_logprobs(tmp_path, "mine", k).stem for k in (3, 4, 5, 12, 13, 31)] == [
        "mine-4", "mine-4", "mine-12", "mine-12", "mine-30", "mine-31",
    ]  # fmt: skip
    own = distill.read_logprobs(tmp_path / "mine-4.safetensors", "mine", 4)
    for k in (12, 30):
        taken = distill.read_logprobs(tmp_path / f"mine-{k}.safetensors", "mine", 4)
        assert torch.equal(taken.at_targets(batch)[0], own.at_targets(batch)[0])
        torch.testing.assert_close(taken.at_targets(batch)[1], own.at_targets(batch)[1], atol=1e-5, rtol=1e-5)
        assert taken.covered == pytest.approx(own.covered, abs=1e-6)
        torch.testing.assert_close(taken.at_targets(batch)[1].exp().sum(1), torch.ones(len(taken)))


def test_a_position_takes_as_many_bytes_as_the_guide_says(tiny_llama: Path, tmp_path: Path) -> None:
    teacher, path = causal_lm.load(tiny_llama, "float32"), tmp_path / "mine-64.safetensors"
    examples = [TokenizedExample(d) for d in DOCUMENTS]
    distill.write_logprobs(path, "mine", teacher, examples, TeacherConfig(64, 1.0, tmp_path))
    found, state = (
        distill.read_logprobs(path, "mine"),
        loop.read_tensors(path, "", "").state,
    )
    stored = [state[name] for name in ("tokens", "logs")]
    assert sum(each.numel() * each.element_size() for each in stored) == 516 * len(found)


def test_a_student_of_fewer_tokens_needs_no_teacher(
    store: Store, parent: Grown, data_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, data = store.grow_once(Prune(2), [parent]), chat.read_data(data_file)
    brief = {"steps": 2, "batch_size": 4, "dtype": "float32"}
    store.grow_once(Distill(data, **brief, top_k=9), [start, parent])
    (kept,) = (store.root / "scores").iterdir()
    monkeypatch.setattr(distill, "write_logprobs", lambda *given: pytest.fail("the teacher read again"))
    child = store.grow_once(Distill(data, **brief, top_k=8), [start, parent])
    assert list((store.root / "scores").iterdir()) == [kept]
    rows = [json.loads(line) for line in (child.folder / "training.jsonl").read_text().splitlines()]
    assert len(rows) == 2


def test_a_student_of_a_smaller_head_is_told_of_its_own_tokens(
    store: Store, parent: Grown, data_file: Path, tmp_path: Path
) -> None:
    """Heads of one tokenizer may be padded to two sizes."""
    n_words = json.loads((parent.folder / "config.json").read_text())["vocab_size"]
    wider = make_model(tmp_path / "wider", "llama", vocab_size=4 * n_words)
    recipe = Distill(chat.read_data(data_file), steps=1, dtype="float32", top_k=20)
    store.grow_once(recipe, [parent, store.pull(str(wider))])
    (kept,) = (store.root / "scores").glob("*/*")
    assert int(loop.read_tensors(kept, "", "").state["tokens"].max()) < n_words
