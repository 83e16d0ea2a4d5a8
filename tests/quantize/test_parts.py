import pytest
import torch

from fewer.quantize.parts import PANEL, Part, Samples, finite, panel_slices


def part() -> Part:
    weights = [torch.randn(5, 7), torch.randn(123, 7), torch.randn(1, 7)]
    return Part(("q", "k", "v"), weights, [None, None, None])


def test_panels_cover_every_row_once_and_in_order() -> None:
    joined = torch.cat(part().weights)
    own = part()
    own.weights = list(joined.split([5, 123, 1]))
    rebuilt = torch.full_like(joined, torch.nan)
    for panel, rows in own.panels():
        assert rebuilt[rows].isnan().all()
        rebuilt[rows] = panel
    assert torch.equal(rebuilt, joined) and own.shape == (129, 7)
    assert torch.equal(joined[own.rows_of("k")], own.weights[1])


def test_a_panel_holds_no_more_numbers_than_it_may() -> None:
    weight = torch.empty(1000, 4096)
    sizes = [(rows.stop - rows.start) * 4096 for rows in panel_slices(weight)]
    assert sum(sizes) == weight.numel() and max(sizes) <= PANEL["cpu"]


def test_the_peak_of_a_column_is_over_all_weights_and_samples_count_only_with_rows() -> None:
    own = part()
    assert torch.equal(own.column_peak(), torch.cat(own.weights).abs().amax(dim=0))
    assert not own.sampled
    own.samples = Samples(torch.empty(0, 7), torch.ones(7))
    assert not own.sampled


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_single_bad_value_is_found(value: float, dtype: torch.dtype) -> None:
    tensor = torch.randn(7, 5).to(dtype)
    assert finite(tensor) and finite(tensor[:0])
    tensor[3, 2] = value
    assert not finite(tensor)
