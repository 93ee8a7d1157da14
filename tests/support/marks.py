"""Which tests are slow, by what they do, and a watch that no other test does it.

A test is slow if its file or its function loads a library of models, if it uses a fixture that makes a model
or a corpus, or if it is marked `slow`. In a fast run (`-m "not slow ..."`) a file that loads such a library
is not read, and a test that starts a process, sleeps or loads such a library fails.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from heredity.formats.architectures import FAST

LIBRARIES = (
    "torch", "transformers", "tokenizers", "peft", "gguf", "xllamacpp", "lm_eval", "sklearn", "datatrove",
    "uvicorn",
)  # fmt: skip
# Architectures that are tested in bfloat16 only on a processor that has its product.
_OTHERS = frozenset(FAST) - {"llama"}
FIXTURES = frozenset(
    {"any_kind", "any_model", "tiny_llama", "tiny_gguf", "built", "small_corpus", "make_wheel"}
)
PROCESSES = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"})
_NAMES = "|".join(map(re.escape, (*LIBRARIES, "tests.support.tiny_models")))
_LOADING = re.compile(
    rf"""^(?:(?:import|from)\ (?:{_NAMES})\b | (?:\w+\ =\ )?pytest\.importorskip\("(?:{_NAMES})")""",
    re.MULTILINE | re.VERBOSE,
)


def or_proof(names: Iterable[str], by_default: Collection[str]) -> list[Any]:
    """Parameters of a test: `by_default` runs by default, and the other names in proofs."""
    return [name if name in by_default else pytest.param(name, marks=pytest.mark.proof) for name in names]


def is_fast_run(config: pytest.Config) -> bool:
    """Whether the tests that are slow are left out of this run."""
    return "not slow" in config.option.markexpr


def loads_models(path: Path) -> bool:
    """Whether a file of tests loads a library of models when it is read: outside of its functions."""
    return _LOADING.search(path.read_text(encoding="utf-8")) is not None


def names_models(function: Callable[..., object] | None) -> bool:
    """Whether a function imports a library of models, or names one."""
    code: CodeType | None = getattr(function, "__code__", None)
    if code is None:
        return False
    texts = (*code.co_names, *(each for each in code.co_consts if isinstance(each, str)))
    return any(text.split(".")[0] in LIBRARIES for text in texts)


def is_slow_bfloat16(item: pytest.Item) -> bool:
    """Whether a test is of bfloat16, on a processor that computes it by loops, for one of many architectures.

    One architecture is tested in it everywhere. Where the processor has the product, all are.
    """
    given = {str(value).removeprefix("torch.") for value in _parameters(item).values()}
    return "bfloat16" in given and bool(given & _OTHERS) and not _has_bfloat16()


def _parameters(item: pytest.Item) -> Mapping[str, object]:
    callspec = getattr(item, "callspec", None)
    return {} if callspec is None else callspec.params


@cache
def _has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16; True if torch does not say. torch is loaded already."""
    torch = sys.modules["torch"]
    features = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("amx_tile", "avx512_bf16")]
    if platform.machine().lower() not in ("x86_64", "amd64") or None in features:
        return True
    return any(each() for each in features if each is not None)


class Watch:
    """Notes what no fast test may do, and fails the test that did it."""

    def __init__(self) -> None:
        self._is_on, self._hears, self._seen = False, False, ""

    @contextmanager
    def over(self, node: pytest.Item | pytest.Collector) -> Iterator[None]:
        """Watch the reading of a file or a part of a test, in a fast run."""
        self._is_on, self._seen = is_fast_run(node.config), ""
        if self._is_on and not self._hears:  # a hook stays, and Python calls it at every file and every id
            sys.addaudithook(self._hear)
            self._hears = True
        try:
            yield
        finally:
            self._is_on = False
        if self._seen:
            pytest.fail(f"A fast test {self._seen}: mark it with pytest.mark.slow.", pytrace=False)

    def over_collection(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """Watch the reading of a file, as the body of a hook. What is noted makes its report a failure.

        A file that loads a library of models is read only where it is named, and its tests are slow.
        """
        if isinstance(collector, pytest.Module) and loads_models(collector.path):
            return (yield)
        try:
            with self.over(collector):
                return (yield)
        except pytest.fail.Exception as failure:  # raised out of a hook, it would end pytest
            return pytest.CollectReport(collector.nodeid, "failed", str(failure), [])

    def _hear(self, event: str, given: tuple[object, ...]) -> None:
        if not self._is_on or self._seen:
            return
        if event in PROCESSES:
            self._seen = "starts a process"
        elif event == "time.sleep" and given[0]:
            self._seen = "sleeps"
        elif event == "import" and given[0] in LIBRARIES:
            self._seen = f"loads {given[0]}"
