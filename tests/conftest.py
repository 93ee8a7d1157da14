"""How tests are drawn, which of them are slow, and that none leaves anything behind.

Hypothesis has no deadline anywhere: no claim here is about time, and a machine may be busy. CI tells whether
a change broke something, so it must not depend on the luck of a draw. At a desk the draws are new each time,
and `--hypothesis-profile deep` makes many of them.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from heredity.core import host
from tests.support.marks import FIXTURES, Watch, is_fast_run, is_slow_bfloat16, loads_models, names_models

# pytest imports readline, which sets both for the workers of a run and for all that a test starts.
for _name in ("COLUMNS", "LINES"):
    os.environ.pop(_name, None)
    os.unsetenv(_name)
os.environ.setdefault("HEREDITY_MIRRORS", str(Path(__file__).parents[1] / "examples" / "mirrors.toml"))
# Workers share the cores: with more threads than cores, each waits for the others several times as long.
if _n_workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, host.n_cores() // int(_n_workers))))
host.configure()  # as every entry point does: before any test loads torch
# Tests end processes and never the power: no file of theirs need be on the disk itself.
os.fsync = lambda handle: None

settings.register_profile("desk", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True)
settings.register_profile("deep", deadline=None, max_examples=3000)
settings.load_profile("ci" if os.environ.get("CI") else "desk")

WATCH = Watch()
_TORCH = "torch's threads and dtype"
# Variables that a library sets for itself at its first use: no test leaves them behind.
_OF_LIBRARIES = (
    "CUDA", "DATATROVE", "GLOO", "HF_", "KMP_", "LM_", "MKL_", "NCCL", "PYTORCH", "RAY", "TF_", "TOKENIZERS_",
    "TORCH", "TRANSFORMERS", "TRITON", "XLA",
)  # fmt: skip


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """In a fast run, a file that loads a library of models is not even read."""
    is_test = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    return True if is_test and is_fast_run(config) and loads_models(collection_path) else None


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what makes a model or a corpus. Files that do so come first: none is then last alone."""
    loading: dict[Path, bool] = {}
    for item in items:
        if item.path not in loading:
            loading[item.path] = loads_models(item.path)
        makes = FIXTURES.intersection(getattr(item, "fixturenames", ()))
        if loading[item.path] or makes or names_models(getattr(item, "function", None)):
            item.add_marker(pytest.mark.slow)
        if is_slow_bfloat16(item):
            item.add_marker(
                pytest.mark.skip("this processor has no bfloat16 product: one architecture is tested")
            )
    items.sort(key=lambda item: not loading[item.path])


def pytest_collection_finish() -> None:
    """What was loaded to collect the tests stays: no collection of garbage looks at it again.

    Where engines are among it, each shape of a model is probed once.
    """
    _freeze()
    if "heredity.engines.torch.autotune" in sys.modules:
        from tests.support import probes

        probes.remember()


_N_FROZEN = [0]  # modules that were loaded when garbage was last told to leave them alone
_MANY = 50


def _freeze() -> None:
    """Let no later collection of garbage look at what is loaded. Engines collect at each opening."""
    gc.collect()
    gc.freeze()
    _N_FROZEN[0] = len(sys.modules)


@pytest.fixture(autouse=True)
def _leave_modules_alone() -> None:
    """Libraries of models are loaded by the first tests that need them, and have most of all objects."""
    if len(sys.modules) > _N_FROZEN[0] + _MANY:
        _freeze()


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return (yield from WATCH.over_collection(collector))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    with WATCH.over(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with WATCH.over(item):
        return (yield)


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> Iterator[None]:
    """Each test leaves the process as it was: environment, current folder, threads and dtype of torch."""
    before = _state()
    yield
    after = _state()
    names = (before.keys() | after.keys()) - (set() if _TORCH in before else {_TORCH})
    changed = {name: (before.get(name), after.get(name)) for name in names}
    changed = {
        name: (old, new)
        for name, (old, new) in changed.items()
        if old != new and not (old is None and name.startswith(_OF_LIBRARIES))
    }
    assert not changed, f"left behind by this test (before, after): {changed}"


def _state() -> dict[str, object]:
    found: dict[str, object] = {"current folder": os.getcwd(), **os.environ}  # noqa: PTH109
    del found["PYTEST_CURRENT_TEST"]
    found.pop("TORCHINDUCTOR_CACHE_DIR", None)  # torch sets it once, as transformers loads its models
    if torch := sys.modules.get("torch"):
        found[_TORCH] = (torch.get_num_threads(), torch.get_default_dtype())
    return found
