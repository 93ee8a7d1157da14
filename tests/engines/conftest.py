"""The fixtures of every test of an engine."""

from pathlib import Path

import pytest

from tests.support.marks import or_proof
from tests.support.model_sources import tiny_gguf as tiny_gguf
from tests.support.tiny_models import ARCHITECTURES, make_model
from tests.support.tiny_models import tiny_llama as tiny_llama

# Those whose pass differs in kind: fused files and turned parts, experts, chunks of attention.
NEWER = ("phi3", "qwen3_moe", "llama4_text")
# One of each kind of pass: plain, windows, experts, chunks of attention. The others are variants of these.
KINDS = ("llama", "gemma3_text", "qwen3_moe", "llama4_text")
EVERY = sorted((*ARCHITECTURES, *NEWER))


@pytest.fixture(scope="session", params=EVERY)
def any_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session", params=or_proof(EVERY, KINDS))
def any_kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One architecture of each kind of pass; the others in a proof."""
    return make_model(tmp_path_factory.mktemp(request.param), request.param)
