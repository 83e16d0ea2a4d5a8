"""The exchange itself needs GPUs; what can be asked without them is asked here."""

import torch

from fewer.parallel.one_shot import MOST_BYTES, OneShotSums


def test_only_small_fp32_tensors_on_a_gpu_fit() -> None:
    sums = OneShotSums.__new__(OneShotSums)
    assert not sums.fits(torch.zeros(8))
    meta = torch.zeros(8, device="meta")
    assert not sums.fits(meta)
    assert MOST_BYTES % 16 == 0
