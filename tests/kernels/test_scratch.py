import torch

from fewer.kernels.scratch import WeightScratch

CPU = torch.device("cpu")


def test_layers_share_one_buffer() -> None:
    scratch = WeightScratch()
    scratch.reserve(64 * 5, CPU)
    large, small = scratch.view(5, 64, CPU), scratch.view(1, 64, CPU)
    assert large.shape == (5, 64) and small.shape == (1, 64)
    assert large.data_ptr() == small.data_ptr() and large.dtype == torch.int8


def test_a_buffer_that_was_outgrown_stays_alive_for_graphs() -> None:
    scratch = WeightScratch()
    before = scratch.view(1, 64, CPU)
    after = scratch.view(2, 64, CPU)
    assert after.data_ptr() != before.data_ptr()
    assert scratch._retired[0].data_ptr() == before.data_ptr()


def test_views_made_in_inference_mode_can_be_written_outside() -> None:
    with torch.inference_mode():
        view = WeightScratch().view(3, 64, CPU)
    view.fill_(1)
    assert view.sum() == 192
