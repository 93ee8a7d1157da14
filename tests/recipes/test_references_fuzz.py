"""Whatever a reference holds: a model, or an error of heredity's with a code, never another exception."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from heredity.core.errors import HeredityError
from heredity.lineage.catalog import catalogue
from heredity.lineage.references import is_elsewhere, is_there, placed, without_folder
from heredity.lineage.store import TARGETS, Store
from tests.support.model_sources import Server

PREFIXES = [f"{each}:" for each in TARGETS]
PREFIXES += ["hf:", "scripted:", "transformers:", "~", "./", "/", ""]
PIECES = [
    "", "a", "zz_no.such", "openai", ":", "/", "@", "?", "#", "=", "&", "..", "\0", "\ud800", " ", "\n",
    "x" * 300, "-", "main", ".gguf", ".safetensors", "http://127.0.0.1:1", "%", "omit=seed", "{", "[" * 99,
    "qwen3-8b", "smollm2", "é", "～", "9" * 5000,
]  # fmt: skip
TEXT = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8)), max_size=6).map("".join)
REFERENCES = st.builds(lambda prefixes, rest: "".join(prefixes) + rest,
                       st.lists(st.sampled_from(PREFIXES), min_size=1, max_size=3), TEXT)  # fmt: skip
MANY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def empty_hub(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEREDITY_MIRRORS", raising=False)
    return server


def _ends_well(do: Callable[[str], object], ref: str) -> None:
    try:
        do(ref)
    except HeredityError as error:
        assert error.code and str(error).strip()


@MANY
@given(ref=REFERENCES)
@example(ref="kv4:" * 1000)
@example(ref="~nobody-of-this-name/model")
@example(ref="n" * 300)
@example(ref="hf:a/b@")
@example(ref="url:")
@example(ref="remote:openai:m?x=NaN")
@example(ref="vllm:hf:a/b")
def test_a_reference_names_a_model_or_is_refused_with_a_code(
    tmp_path: Path, empty_hub: Server, ref: str
) -> None:
    store = Store(tmp_path / "store")
    for do in (store.get, store.preview, store.pull):
        if not _fetches_weights(ref):
            _ends_well(do, ref)


def _fetches_weights(ref: str) -> bool:
    """Whether a draw names a model of the catalogue or a folder of this machine, which would be read."""
    return ref.partition("@")[0] in catalogue() or is_there(Path(ref))


@MANY
@given(ref=REFERENCES)
def test_a_reference_of_a_plan_file_is_placed_without_an_error(tmp_path: Path, ref: str) -> None:
    store = Store(tmp_path / "store")
    for do in (lambda ref: placed(ref, tmp_path), without_folder, lambda ref: is_elsewhere(ref, store)):
        _ends_well(do, ref)


@MANY
@given(rest=TEXT)
def test_a_path_is_never_followed_by_a_traceback(tmp_path: Path, rest: str) -> None:
    for ref in (f"{tmp_path}/none/{rest}", f"~{rest}/x"):
        if not is_there(Path(ref)):
            _ends_well(Store(tmp_path / "store").preview, ref)
