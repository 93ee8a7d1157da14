"""The sharded step is run on fake devices, by the hundred, and its memory is what was reckoned."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import distributed

from heredity.train import forecast
from heredity.train.forecast import Layout, LayoutForecast, Workload
from heredity.train.models import shapes
from heredity.train.models.shapes import TransformerShape
from heredity.train.rehearsal import RehearsalFailed, rehearse
from tests.support.errors import raises
from tests.train.test_cost_models import born, forward, pairs, text


def way(layout: Layout, product: int, runs_again: int = False) -> LayoutForecast:
    return LayoutForecast(layout, runs_again, product, 1, {}, 1.0)


@pytest.mark.parametrize(
    ("size", "layout", "product", "runs_again"),
    [
        ("1B", Layout("none", 1, 64), 4096, False),
        pytest.param("1B", Layout("fsdp", 8, 1), 4096, False, marks=pytest.mark.proof),
        pytest.param("8B", Layout("hsdp", 64, 16), 8192, False, marks=pytest.mark.proof),
        pytest.param("70B", Layout("hsdp", 128, 8), 8192, True, marks=pytest.mark.proof),
    ],
)
def test_a_step_of_a_model_that_would_fit_nowhere_here_works_in_the_memory_that_was_reckoned(
    size: str, layout: Layout, product: int, runs_again: bool
) -> None:
    dial = shapes.size_preset(size, 128_256, 4096)
    work = Workload(dial.shape, dial.tokens, dial.batch)
    found = rehearse(work, way(layout, product, runs_again))
    assert found.n_devices == layout.shards * layout.replicas
    assert found.parameters == forecast.n_parameters(work)
    assert found.predicted == pytest.approx(found.peak, rel=0.2)
    assert not distributed.is_initialized()


@pytest.mark.parametrize(
    ("work", "layout", "product", "runs_again"),
    [
        (text("30M", 512), Layout("none", 1, 8), 8192, False),
        pytest.param(*(text("30M", 512), Layout("fsdp", 8, 1), 8192, True), marks=pytest.mark.proof),
        (text("30M", 512), Layout("fsdp", 8, 1), 8192, 2),
        pytest.param(
            *(pairs("clip", "20M", batch=512), Layout("hsdp", 4, 2), 64, 2), marks=pytest.mark.proof
        ),
        pytest.param(*(text("30M", 512, "bert"), Layout("none", 1, 8), 8192, False), marks=pytest.mark.proof),
        (text("30M", 512, "bert"), Layout("fsdp", 8, 1), 8192, True),
        pytest.param(
            *(pairs("clip", "20M", batch=512), Layout("hsdp", 4, 2), 64, False), marks=pytest.mark.proof
        ),
        pytest.param(
            *(pairs("siglip", "20M", batch=64), Layout("none", 1, 1), 64, False), marks=pytest.mark.proof
        ),
        pytest.param(
            *(pairs("siglip", "20M", batch=512), Layout("fsdp", 8, 1), 64, True), marks=pytest.mark.proof
        ),
    ],
    ids=lambda value: value.architecture if isinstance(value, Workload) else "",
)
def test_encoders_and_pairs_are_rehearsed_in_the_memory_that_was_reckoned(
    work: Workload, layout: Layout, product: int, runs_again: int
) -> None:
    found = rehearse(work, way(layout, product, runs_again))
    assert found.parameters == forecast.n_parameters(work)
    assert found.predicted == pytest.approx(found.peak, rel=0.2)


def test_a_rehearsal_leaves_no_fake_mask_to_a_real_product() -> None:
    work = text("150K", 128)
    rehearse(work, way(Layout("fsdp", 2, 1), 256))
    net = born(work)
    assert torch.isfinite(forward(net, work)()).all()


def test_a_step_that_cannot_work_fails_here_with_what_torch_says() -> None:
    odd = TransformerShape(
        layers=2, width=64, heads=3, kv_heads=2, head=16, wide=160, context=64, vocabulary=256
    )
    with raises(RehearsalFailed, "failure", mentions=[8, "fsdp, 8"]):
        rehearse(Workload(odd, 1, 1), way(Layout("fsdp", 8, 1), 64))
    assert not distributed.is_initialized()
