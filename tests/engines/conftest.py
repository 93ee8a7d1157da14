"""The fixtures of every test of an engine."""

from pathlib import Path

import pytest

from tests.support.model_sources import tiny_gguf as tiny_gguf
from tests.support.tiny_models import ARCHITECTURES, make_model
from tests.support.tiny_models import tiny_llama as tiny_llama

# Those whose pass differs in kind: fused files and turned parts, experts, chunks of attention.
NEWER = ("phi3", "qwen3_moe", "llama4_text")


@pytest.fixture(scope="session", params=sorted((*ARCHITECTURES, *NEWER)))
def any_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp(request.param), request.param)
