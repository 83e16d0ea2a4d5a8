import itertools

import pytest
import torch

from fewer.quantize import parts, smoothed
from fewer.quantize.formats import FORMATS, decode_weight, round_activations, round_weight
from fewer.quantize.lowrank import Branch, truncated_svd
from fewer.quantize.parts import Part, Samples
from fewer.quantize.smoothed import SmoothedPart


def make(form: str, *, sampled: bool = True) -> tuple[SmoothedPart, Branch, torch.Tensor, torch.Tensor]:
    """(a part of two weights, a branch, W-hat, the sampled rows)."""
    torch.manual_seed(0)
    weights, rows, scales = (
        [torch.randn(40, 96), torch.randn(83, 96)],
        torch.randn(70, 96),
        torch.rand(96) + 0.5,
    )
    samples = Samples(rows, rows.abs().amax(dim=0)) if sampled else None
    part = Part(("a", "b"), weights, [None, None], samples)
    whole = torch.cat(weights) * scales
    return SmoothedPart(part, scales, FORMATS[form], torch.bfloat16), truncated_svd(whole, 6), whole, rows


@pytest.fixture(autouse=True)
def small_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several panels and several chunks of inputs even for small layers."""
    monkeypatch.setitem(parts.PANEL, "cpu", 17 * 96)
    monkeypatch.setitem(smoothed.INPUT_BYTES, "cpu", 8 * 96 * 64)


@pytest.mark.parametrize("form", ["int4", "nvfp4", "h8"])
def test_panels_give_what_the_whole_matrix_gives(form: str) -> None:
    work, branch, whole, rows = make(form)
    assert torch.equal(work.whole(), whole)
    residual = whole - branch.product()
    expected = round_weight(residual, FORMATS[form])
    for place, own, rounded in work.rounded(branch):
        assert torch.allclose(own, residual[place], atol=1e-6)
        assert (rounded - expected[place]).abs().gt(1e-5).float().mean() < 0.01  # single codes at ties
    inputs = rows / work.scales
    error = round_activations(inputs, FORMATS[form]) @ expected.mT - inputs @ residual.mT
    assert work.loss(branch, 1000).item() == pytest.approx(error.square().sum().item(), rel=1e-2)
    codes, scales = work.encode(branch)
    gap = decode_weight(codes, scales, FORMATS[form], 96) - expected
    assert gap.abs().gt(1e-5).float().mean() < 0.01


def test_settling_leaves_the_weight_less_its_rounding_and_tells_the_same_loss() -> None:
    work, branch, whole, _ = make("int4")
    target = work.whole()
    assert work.settle(branch, target, 1000) == pytest.approx(work.loss(branch, 1000).item(), rel=1e-5)
    for rows, residual, rounded in work.rounded(branch):
        assert torch.allclose(target[rows], residual - rounded + branch.product()[rows], atol=1e-5)
    assert torch.allclose(target, whole - torch.cat([r for _, _, r in work.rounded(branch)]), atol=1e-5)
    alone, _, _, _ = make("int4", sampled=False)
    weight_loss = sum((r - q).square().sum().item() for _, r, q in alone.rounded(branch))
    assert alone.settle(branch, alone.whole(), 1000) == pytest.approx(weight_loss, rel=1e-5)


def test_the_loss_stops_beyond_its_bound_and_fewer_rows_cost_less() -> None:
    work, branch, _, _ = make("int4")
    whole = work.loss(branch, 1000).item()
    assert work.loss(branch, 1000, bound=whole * 0.9) == float("inf")
    assert work.loss(branch, 1000, bound=whole * 1.1) == whole
    few = [work.loss(branch, rows).item() for rows in (1, 10, 70)]
    assert all(smaller < larger for smaller, larger in itertools.pairwise(few))
