import torch

from fewer.learn.domains.images import Domains
from fewer.learn.domains.picture_table import PictureTable, normalised


def test_rows_are_counted_through_all_domains(domains: Domains) -> None:
    table = PictureTable(domains, torch.device("cpu"))
    assert table.starts == [0, 30, 60]
    statistics = torch.tensor([0.5]), torch.tensor([0.25])
    batch = table.batch(torch.tensor([2, 31, 61]), None, statistics, (1, 1, 1))
    for row, (env, place) in enumerate(((0, 2), (1, 1), (2, 1))):
        pixels = domains.images[env].images[place].permute(2, 0, 1).float()
        assert torch.allclose(batch.images[row], (pixels / 255 - 0.5) / 0.25)
        assert batch.labels[row] == domains.images[env].labels[place]
    assert batch.sizes == (1, 1, 1)


def test_moves_are_applied_before_normalising(domains: Domains) -> None:
    table = PictureTable(domains, torch.device("cpu"))
    statistics = torch.tensor([0.5]), torch.tensor([0.25])
    moved = table.batch(torch.tensor([4]), torch.tensor([[1, 0, 0]]), statistics, (1,))
    still = table.batch(torch.tensor([4]), None, statistics, (1,))
    assert torch.equal(moved.images[0, :, :-1], still.images[0, :, 1:])


def test_normalised_pixels_have_the_statistics_taken_out() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
    assert normalised(pixels, (torch.tensor([0.5]), torch.tensor([0.5]))).flatten().tolist() == [-1.0, 1.0]
