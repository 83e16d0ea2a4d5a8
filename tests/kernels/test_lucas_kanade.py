import torch

from fewer.kernels.lucas_kanade import MARGIN, settle_windows

HEIGHT, WIDTH = 40, 56


def bumps(move: tuple[float, float], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A smooth surface moved by so much, with its exact slopes, margin included; (1, pixels) each."""
    y, x = torch.meshgrid(
        torch.arange(-MARGIN, HEIGHT + MARGIN, device=device) - move[1],
        torch.arange(-MARGIN, WIDTH + MARGIN, device=device) - move[0],
        indexing="ij",
    )
    grey = 128 + 40 * (x / 5).sin() + 40 * (y / 6).cos()
    slopes = 8 * (x / 5).cos(), -40 / 6 * (y / 6).sin()
    return grey.flatten()[None], slopes[0].expand_as(y).flatten()[None], slopes[1].flatten()[None]


def test_a_moved_surface_is_found_and_flat_ground_refused(device: torch.device) -> None:
    old, x, y = bumps((0.0, 0.0), device)
    new = bumps((1.7, -2.2), device)[0]
    p = torch.tensor([[[20.0, 15.0], [30.3, 21.8], [9.0, 30.0], [500.0, 20.0]]], device=device)
    q, ok = settle_windows(old, (x, y), new, p, p + 0.5, (HEIGHT, WIDTH))
    assert ok[0].tolist() == [True, True, True, False]
    assert torch.allclose((q - p)[0, :3], torch.tensor([1.7, -2.2], device=device).expand(3, 2), atol=0.02)
    flat = torch.full_like(old, 90.0)
    assert not settle_windows(flat, (0 * x, 0 * y), flat, p, p, (HEIGHT, WIDTH))[1].any()


def test_operator_is_registered_properly(device: torch.device) -> None:
    old, x, y = bumps((0.0, 0.0), device)
    p = torch.tensor([[[20.0, 15.0]]], device=device)
    torch.library.opcheck(torch.ops.fewer.settle_windows, (old, x, y, old, p, p, HEIGHT, WIDTH))
