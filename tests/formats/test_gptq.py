"""GPTQ against its definition on small matrices, and the grid that it shares with rounding to nearest."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from heredity.core.errors import Damaged, Refused
from heredity.formats import gptq
from heredity.formats.gptq import RoundingGrid
from tests.support.errors import raises


def _problem(outputs: int, inputs: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights, correlated calibration inputs (n, inputs), and their Hessian."""
    stream = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=stream)
    mixing = torch.randn(inputs, inputs, generator=stream) / inputs**0.5 + torch.eye(inputs)
    x = torch.randn(4 * inputs, inputs, generator=stream) @ mixing
    return weight, x, 2 * x.T @ x


def _reference(
    weight: torch.Tensor, hessian: torch.Tensor, grid: RoundingGrid, damp: float, order: list[int]
) -> object:
    """The optimal-brain-surgeon step, column by column, with the inverse computed anew for each."""
    w, h = weight.double().numpy().copy(), hessian.double().numpy().copy()
    h[np.diag_indices(len(h))] += damp * np.diag(h).mean()
    width, scales = grid.width(len(h)), {}
    if order != sorted(order):
        scales = {g: grid.scales(weight[:, g * width : (g + 1) * width].T) for g in range(len(h) // width)}
    for at, column in enumerate(order):
        group, left = column // width, order[at:]
        if group not in scales:
            scales[group] = grid.scales(torch.tensor(w[:, column : column + width]).float().T)
        rounded = grid.round(torch.tensor(w[:, column]).float(), *scales[group]).double().numpy()
        inverse = np.linalg.inv(h[np.ix_(left, left)])
        error = (w[:, column] - rounded) / inverse[0, 0]
        w[:, left] -= np.outer(error, inverse[0])
        w[:, column] = rounded
    return w


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("is_symmetric", [False, True])
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_is_the_surgeon_s_step_column_by_column(bits: int, is_symmetric: bool, act_order: bool) -> None:
    weight, _, hessian = _problem(6, 48)
    grid = RoundingGrid(bits, 16, is_symmetric)
    by_size = torch.argsort(hessian.diagonal(), descending=True, stable=True).tolist()
    wanted = _reference(weight, hessian, grid, 0.01, by_size if act_order else list(range(48)))
    found = gptq.gptq(weight, hessian, grid, 0.01, act_order).weight
    assert np.abs(found.double().numpy() - wanted).max() < 1e-4


def test_the_updates_by_block_are_those_of_one_pass_over_all_columns() -> None:
    weight, _, hessian = _problem(8, 256)
    found = gptq.gptq(weight, hessian, RoundingGrid(4, 32), act_order=False).weight
    again = gptq.gptq(weight, hessian, RoundingGrid(4, 32), act_order=False, n_block=256).weight
    assert torch.allclose(again, found, atol=1e-4)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("act_order", [False, True])
def test_the_outputs_change_less_than_by_rounding_to_nearest(bits: int, act_order: bool) -> None:
    weight, x, hessian = _problem(64, 128, seed=1)
    grid = RoundingGrid(bits, 64)
    plain = gptq.round_to_nearest(weight, grid)
    ours = gptq.gptq(weight, hessian, grid, act_order=act_order).weight
    lost = [float((x @ (each - weight).T).square().sum()) for each in (ours, plain)]
    assert lost[0] < 0.8 * lost[1]
    share = gptq.output_error(weight, plain, hessian)
    assert share == pytest.approx(lost[1] / float((x @ weight.T).square().sum()), rel=1e-4)


def test_without_activations_gptq_rounds_to_nearest() -> None:
    weight, _, hessian = _problem(8, 64)
    grid = RoundingGrid(4, 32)
    nearest = gptq.round_to_nearest(weight, grid)
    assert torch.equal(gptq.gptq(weight, torch.zeros_like(hessian), grid).weight, nearest)
    assert torch.allclose(gptq.gptq(weight, torch.eye(64), grid).weight, nearest)


@pytest.mark.parametrize("is_symmetric", [False, True])
def test_a_group_has_as_many_numbers_as_its_bits_allow(is_symmetric: bool) -> None:
    weight, _, hessian = _problem(5, 96)
    grid = RoundingGrid(3, 32, is_symmetric)
    for rounded in (gptq.round_to_nearest(weight, grid), gptq.gptq(weight, hessian, grid).weight):
        for group in rounded.split(32, dim=1):
            assert max(len(set(row.tolist())) for row in group) <= 8
    error = (gptq.round_to_nearest(weight, grid) - weight).abs().max()
    assert error < (0.6 if not is_symmetric else 1.1) * (weight.max() - weight.min()) / 7


def test_the_width_of_a_group_divides_the_inputs_or_is_refused() -> None:
    assert [RoundingGrid(4, 128).width(n) for n in (4864, 896, 576, 96)] == [128, 128, 64, 32]
    assert RoundingGrid(4, 128).bits_per_weight(4864) == pytest.approx(4 + 20 / 128)
    assert RoundingGrid(4, 128, True).bits_per_weight(576) == pytest.approx(4 + 16 / 64)
    with raises(Refused, "refused"):
        RoundingGrid(4, 128).width(100)


def test_a_singular_hessian_is_damped_until_it_can_be_inverted() -> None:
    weight, x, _ = _problem(8, 64)
    hessian = 2 * x[:3].T @ x[:3]  # of rank 3
    found = gptq.gptq(weight, hessian, RoundingGrid(4, 32), damp=1e-9)
    assert torch.isfinite(found.weight).all()
    assert found.damp > 1e-9 and math.log10(found.damp / 1e-9) == pytest.approx(
        round(math.log10(found.damp / 1e-9))
    )
    whole = _problem(8, 64)
    assert gptq.gptq(whole[0], whole[2], RoundingGrid(4, 32), damp=0.02).damp == 0.02


def test_numbers_that_are_none_are_not_rounded() -> None:
    weight, _, hessian = _problem(8, 64)
    with raises(Damaged, "damaged"):
        gptq.gptq(weight, hessian * torch.nan, RoundingGrid(4, 32))
    weight[0, 0] = torch.inf
    with raises(Damaged, "damaged"):
        gptq.round_to_nearest(weight, RoundingGrid(4, 32))
