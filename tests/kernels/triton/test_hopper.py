import pytest
import torch

from fewer.kernels.triton import hopper


def test_nothing_fits_without_the_gpu() -> None:
    rows = torch.zeros(4, 64, dtype=torch.int8)
    assert not hopper.has_hopper(rows.device) and not hopper.fits_hopper(rows, rows)


def test_rows_must_be_whole_copies_and_ranks_whole_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hopper, "has_hopper", lambda device: True)
    codes, weight = torch.zeros(4, 64, dtype=torch.int8), torch.zeros(8, 64, dtype=torch.int8)
    low, up = torch.zeros(4, 32, dtype=torch.bfloat16), torch.zeros(8, 32, dtype=torch.bfloat16)
    assert hopper.fits_hopper(codes, weight) and hopper.fits_hopper(codes, weight, low, up)
    others = [
        (codes[:0], weight), (codes[:, :56], weight[:, :56]), (codes, weight[:5]),
        (codes.float(), weight.float()), (codes, weight.bfloat16()),
        (codes, weight, low.float(), up.float()), (codes, weight, low[:, :20], up[:, :20]),
    ]  # fmt: skip
    assert not any(hopper.fits_hopper(*operands) for operands in others)
