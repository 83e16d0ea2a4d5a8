import pytest
import torch
from torch.nn import functional as F

from fewer.stitch.match.loftr import SMALL, CoarseLoFTR, LoFTRShape
from fewer.stitch.match.train_loftr import make_pairs, matching_loss, precision, true_cells

MINI = LoFTRShape(dims=(8, 8, 16, 32), heads=2, layers=2)


def test_the_network_to_train_has_about_a_million_parameters() -> None:
    count = sum(parameter.numel() for parameter in CoarseLoFTR(SMALL).parameters())
    assert 700_000 < count < 1_300_000
    assert SMALL.stride == 8


def test_the_homography_says_where_the_second_view_shows_the_first() -> None:
    first, second, homography = make_pairs(3, 64, torch.Generator().manual_seed(0))
    assert first.shape == second.shape == (3, 1, 64, 64)
    assert 0 <= first.min() <= first.max() <= 1
    line = torch.arange(64.0)
    y, x = torch.meshgrid(line, line, indexing="ij")
    points = torch.stack([x.flatten(), y.flatten(), torch.ones(64 * 64)])
    moved = homography @ points
    grid = ((moved[:, :2] / moved[:, 2:]) * 2 + 1) / 64 - 1
    back = F.grid_sample(second, grid.mT.reshape(3, 64, 64, 2), align_corners=False)
    inside = (grid.abs() < 0.95).all(dim=1).view(3, 64, 64)
    # gain, gamma, noise and highlights differ on purpose: cut the highlights, compare with unmoved pictures
    led, still = [], []
    for item in range(3):
        one, two, other = (
            first[item, 0][inside[item]],
            back[item, 0][inside[item]],
            second[item, 0][inside[item]],
        )
        pairs = [torch.stack([a.clamp(max=float(a.quantile(0.85))) for a in (one, b)]) for b in (two, other)]
        led.append(float(torch.corrcoef(pairs[0])[0, 1]))
        still.append(float(torch.corrcoef(pairs[1])[0, 1]))
    assert sum(led) > sum(still) + 0.3


def test_pairs_are_a_function_of_the_seed() -> None:
    one, two = (make_pairs(2, 32, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all((a == b).all() for a, b in zip(one, two, strict=True))


def test_true_cells_of_the_identity_and_of_a_shift() -> None:
    shift = torch.eye(3)[None].clone()
    index, inside = true_cells(shift, 64, 8)
    assert (index[0] == torch.arange(64)).all()
    assert inside.all()
    shift[0, 0, 2] = 16.0
    index, inside = true_cells(shift, 64, 8)
    assert index[0, 0] == 2
    assert inside[0].view(8, 8)[:, :6].all()
    assert not inside[0].view(8, 8)[:, 6:].any()


def test_the_loss_is_least_for_the_truth() -> None:
    index, inside = torch.arange(6.0)[None], torch.ones(1, 6, dtype=torch.bool)
    right = matching_loss(9 * torch.eye(6)[None], index, inside)
    wrong = matching_loss(9 * torch.eye(6)[None].roll(1, 2), index, inside)
    flat = matching_loss(torch.zeros(1, 6, 6), index, inside)
    assert right < flat < wrong


def test_even_a_hopeless_network_is_told_where_to_go() -> None:
    index, inside = torch.arange(2000.0)[None], torch.ones(1, 2000, dtype=torch.bool)
    similarity = torch.zeros(1, 2000, 2000, requires_grad=True)
    matching_loss(similarity, index, inside).backward()
    assert similarity.grad is not None
    assert (similarity.grad[0].diagonal() < 0).all()  # confidence 1 / 4,000,000 is not clamped away


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_few_steps_learn_one_batch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = CoarseLoFTR(MINI)
    pair = make_pairs(2, 64, torch.Generator().manual_seed(0))
    index, inside = true_cells(pair[2], 64, 8)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(15):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            similarity = model.similarity(pair[0], pair[1])
        loss = matching_loss(similarity, index, inside)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]
    with torch.no_grad():
        right, recall = precision(model.eval()(pair[0], pair[1]), index, inside, across=8, threshold=0.0)
    assert 0.2 < right <= 1
    assert 0.2 < recall <= 1
