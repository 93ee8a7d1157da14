"""GPTQ on layers of SmolLM2-135M, with outliers in their activations that random models do not have."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import heredity as h
from heredity.formats.gptq import GptqSettings, RoundingGrid, calibrate
from heredity.recipes.prune import Prune
from heredity.recipes.quantize import _sequences
from heredity.train.data.chat import Data
from tests.support import real_models

pytestmark = pytest.mark.models
PROSE = Path(__file__).parents[1] / "corpus" / "prose.md"


@pytest.mark.parametrize("bits", [4, pytest.param(3, marks=pytest.mark.proof)])
def test_held_out_prose_loses_less_by_gptq_than_by_rounding_to_nearest(bits: int) -> None:
    store = h.Store()
    parent = store.grow_once(Prune(2), [real_models.model()])
    parts = [part for part in PROSE.read_text("utf-8").split("\n\n") if len(part) > 200]
    tokens = _sequences(parent.folder, Data.of("prose", [("Go on.", part) for part in parts]), 12, 256)
    assert len(tokens) == 12
    error = calibrate(parent.folder, tokens, 3, GptqSettings(RoundingGrid(bits)), "float32").mean_error
    assert 0 < error.gptq < 0.8 * error.nearest
