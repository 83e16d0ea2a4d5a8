import torch

from fewer.learn.thresholds.alignment import DistributionAlignment


def test_first_batch_sets_the_mean_and_later_ones_move_it() -> None:
    alignment = DistributionAlignment(2, momentum=0.9)
    alignment.update(torch.tensor([[0.8, 0.2]]), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(alignment.p_model, torch.tensor([0.8, 0.2]))
    torch.testing.assert_close(alignment.p_target, torch.tensor([0.55, 0.45]))
    alignment.update(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(alignment.p_model, torch.tensor([0.72, 0.28]))


def test_aligned_rows_sum_to_one_and_lean_to_the_target() -> None:
    alignment = DistributionAlignment(3)
    alignment.update(torch.tensor([[0.8, 0.1, 0.1]] * 5), torch.ones(2, 3) / 3)
    p = torch.randn(7, 3).softmax(1)
    moved = alignment(p)
    torch.testing.assert_close(moved.sum(1), torch.ones(7))
    assert (moved[:, 0] < p[:, 0]).all()


def test_uniform_target_stays() -> None:
    alignment = DistributionAlignment(4, 0.5, uniform=True)
    alignment.update(torch.eye(4)[:2], torch.eye(4)[:1])
    assert torch.equal(alignment.p_target, torch.full((4,), 0.25))


def test_a_checkpoint_carries_the_means() -> None:
    first, second = DistributionAlignment(2), DistributionAlignment(2)
    first.update(torch.tensor([[0.9, 0.1]]), torch.tensor([[0.5, 0.5]]))
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(torch.tensor([[0.5, 0.5]])), first(torch.tensor([[0.5, 0.5]])))
