import torch

from fewer.kernels.lucas_kanade import MARGIN, reference_settle_windows


def test_agrees_with_the_reference(draw, device: torch.device) -> None:
    from fewer.kernels.triton.lucas_kanade import launch_settle_windows

    height, width = 30, 34
    rows, columns = height + 2 * MARGIN, width + 2 * MARGIN
    rough = draw(2, 1, rows + 8, columns + 8)
    smooth = (
        torch.nn.functional.avg_pool2d(torch.nn.functional.avg_pool2d(rough, 5, 1), 5, 1)[:, 0] * 300 + 120
    )
    old, new = smooth, smooth.roll((1, 2), dims=(1, 2))
    slopes = [(old.roll(-1, axis) - old.roll(1, axis)) / 2 for axis in (2, 1)]
    flat = [each.flatten(1) for each in (old, *slopes, new)]
    places = [[15.0, 12.0], [7.5, 20.25], [33.0, 29.0], [-15.0, 4.0], [90.0, 10.0], [20.0, -40.0]]
    p = torch.tensor([places, places[::-1]], device=device)
    guess = p + draw(2, 6, 2)
    q, ok = launch_settle_windows(*flat, p, guess, height, width)
    wanted, wanted_ok = reference_settle_windows(*flat, p, guess, height, width)
    assert (ok == wanted_ok).all()
    assert ok.any() and not ok.all()
    assert (q - wanted)[ok].abs().max() < 1e-2
    assert torch.equal(q[~ok & (p == guess).all(-1)], guess[~ok & (p == guess).all(-1)])
    assert launch_settle_windows(*flat, p[:, :0], guess[:, :0], height, width)[0].shape == (2, 0, 2)
