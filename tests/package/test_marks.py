"""The marks of slow tests: what gives one, and what a fast run does with a test that lacks it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.marks import Watch, loads_models, names_models


def node(selection: str) -> Any:
    return SimpleNamespace(config=SimpleNamespace(option=SimpleNamespace(markexpr=selection)))


@pytest.mark.slow  # the run's own watch would see it too
@pytest.mark.parametrize(
    ("event", "given", "said"),
    [
        ("subprocess.Popen", ("python", [], None, None), "starts a process"),
        ("os.fork", (), "starts a process"),
        ("time.sleep", (0.1,), "sleeps"),
        ("import", ("torch", None, None, None, None), "loads torch"),
    ],
)
def test_a_fast_test_that_does_what_is_slow_fails(event: str, given: tuple[Any, ...], said: str) -> None:
    watch = Watch()
    with pytest.raises(pytest.fail.Exception) as caught, watch.over(node("not slow and not models")):
        sys.audit(event, *given)
    assert said in str(caught.value) and "pytest.mark.slow" in str(caught.value)
    with watch.over(node("not proof")):
        sys.audit(event, *given)


@pytest.mark.slow  # the run's own watch would see it too
@pytest.mark.parametrize(("line", "outcome"), [("import torch", "passed"), ("import helpers", "failed")])
def test_a_named_file_that_loads_models_is_read_and_one_that_hides_it_is_an_error(
    line: str, outcome: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request.config.option, "markexpr", "not slow")
    path = tmp_path / "test_it.py"
    path.write_text(f"{line}\n", encoding="utf-8")
    module = pytest.Module.from_parent(request.session, path=path)
    reading = Watch().over_collection(module)
    next(reading)
    sys.audit("import", "torch", None, None, None, None)
    with pytest.raises(StopIteration) as end:
        reading.send(pytest.CollectReport(module.nodeid, "passed", None, []))
    assert end.value.value.outcome == outcome
    assert ("loads torch" in str(end.value.value.longrepr)) == (outcome == "failed")


def test_what_takes_no_time_is_not_slow() -> None:
    with Watch().over(node("not slow")):
        sys.audit("time.sleep", 0)
        sys.audit("import", "torchless", None, None, None, None)


@pytest.mark.parametrize(
    ("line", "is_loaded"),
    [
        ("import torch", True),
        ("from transformers import AutoTokenizer", True),
        ('torch = pytest.importorskip("torch")', True),
        ("from tests.support.tiny_models import make_model", True),
        ("def test_it() -> None:\n    import torch", False),
        ("import torchless", False),
        ("from heredity.engines import scripted", False),
    ],
)
def test_a_file_of_tests_that_loads_models_is_known_by_its_text(
    line: str, is_loaded: bool, tmp_path: Path
) -> None:
    path = tmp_path / "test_it.py"
    path.write_text(f'"""A test."""\n\n{line}\n', encoding="utf-8")
    assert loads_models(path) == is_loaded


def test_a_test_that_loads_models_is_known_by_its_code() -> None:
    def by_import() -> None:
        import torch.nn  # noqa: F401

    def by_name() -> None:
        pytest.importorskip("transformers")

    assert names_models(by_import) and names_models(by_name)
    assert not names_models(test_what_takes_no_time_is_not_slow)
