import torch

from fewer.recommend.baselines.sasrec import SASRec
from fewer.recommend.baselines.transformer import TransformerShape


def test_every_position_knows_only_its_past() -> None:
    torch.manual_seed(0)
    network = SASRec(TransformerShape(items=9, length=6, dim=8)).eval()
    one, other = torch.tensor([[1, 2, 3, 4, 5, 6]]), torch.tensor([[1, 2, 3, 9, 9, 9]])
    first, second = network.encode_all(one), network.encode_all(other)
    torch.testing.assert_close(first[:, :3], second[:, :3])
    assert (first[:, 3:] - second[:, 3:]).abs().max() > 1e-4
    torch.testing.assert_close(network(one), first[:, -1])


def test_the_kernel_without_a_mask_agrees_on_full_histories() -> None:
    masked = SASRec(TransformerShape(items=9, length=6, dim=8)).eval()
    plain = SASRec(TransformerShape(items=9, length=6, dim=8, full_histories=True)).eval()
    plain.load_state_dict(masked.state_dict())
    histories = torch.tensor([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]])
    torch.testing.assert_close(
        plain.encode_all(histories), masked.encode_all(histories), atol=1e-5, rtol=1e-5
    )


def test_padding_and_the_cut_to_the_length_change_nothing() -> None:
    network = SASRec(TransformerShape(items=9, length=6, dim=8)).eval()
    short = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(network(torch.nn.functional.pad(short, (3, 0))), network(short))
    torch.testing.assert_close(
        network(torch.tensor([[7, 8, 1, 2, 3, 4, 5, 6]])), network(torch.tensor([[1, 2, 3, 4, 5, 6]]))
    )
