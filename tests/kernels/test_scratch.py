import torch

from fewer.kernels.scratch import WeightScratch

CPU = torch.device("cpu")


def test_layers_share_two_buffers_in_turn() -> None:
    scratch = WeightScratch()
    scratch.reserve(64 * 5, CPU)
    large, other, small = scratch.view(5, 64, CPU), scratch.view(5, 64, CPU), scratch.view(1, 64, CPU)
    assert large.shape == (5, 64) and small.shape == (1, 64)
    assert large.data_ptr() == small.data_ptr() != other.data_ptr() and large.dtype == torch.int8


def test_what_was_expanded_early_is_its_owners_once_and_until_its_place_is_needed() -> None:
    scratch, owner = WeightScratch(), object()
    scratch.reserve(64, CPU)
    early = scratch.view(1, 64, CPU)
    scratch.keep(owner, early)
    assert scratch.take(object()) is None
    assert scratch.take(owner) is early and scratch.take(owner) is None
    scratch.keep(owner, scratch.view(1, 64, CPU))
    for _ in range(2):
        scratch.view(1, 64, CPU)
    assert scratch.take(owner) is None


def test_a_buffer_that_was_outgrown_stays_alive_for_graphs() -> None:
    scratch = WeightScratch()
    before = [scratch.view(1, 64, CPU) for _ in range(2)]
    after = scratch.view(2, 64, CPU)
    assert after.data_ptr() not in [view.data_ptr() for view in before]
    assert {view.data_ptr() for view in before} == {buffer.data_ptr() for buffer in scratch._retired}


def test_views_made_in_inference_mode_can_be_written_outside() -> None:
    with torch.inference_mode():
        view = WeightScratch().view(3, 64, CPU)
    view.fill_(1)
    assert view.sum() == 192
