"""CAME against a plain transcription of its algorithm, and on a problem with a known answer."""

import copy

import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.generate.training.came import CAME


def transcription(start: torch.Tensor, gradients: list[torch.Tensor], lr: float) -> torch.Tensor:
    """Algorithm 2 of arXiv 2307.02047 for one matrix, in double precision and without in-place tricks."""
    b1, b2, b3, e1, e2 = 0.9, 0.999, 0.9999, 1e-30, 1e-16
    theta = start.double().clone()
    rows, columns = (
        torch.zeros(theta.shape[0], dtype=torch.double),
        torch.zeros(theta.shape[1], dtype=torch.double),
    )
    stray_rows, stray_columns, mean = rows.clone(), columns.clone(), torch.zeros_like(theta)
    for gradient in gradients:
        squares = gradient.double() ** 2 + e1
        rows = b2 * rows + (1 - b2) * squares.mean(1)
        columns = b2 * columns + (1 - b2) * squares.mean(0)
        update = gradient.double() / torch.sqrt(torch.outer(rows, columns) / rows.mean())
        update = update / max(1.0, float(update.pow(2).mean().sqrt()))
        mean = b1 * mean + (1 - b1) * update
        stray = (update - mean) ** 2 + e2
        stray_rows = b3 * stray_rows + (1 - b3) * stray.mean(1)
        stray_columns = b3 * stray_columns + (1 - b3) * stray.mean(0)
        theta = theta - lr * mean / torch.sqrt(torch.outer(stray_rows, stray_columns) / stray_rows.mean())
    return theta


def test_a_matrix_moves_as_the_algorithm_says() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, 7, generator=generator)
    gradients = [torch.randn(5, 7, generator=generator) for _ in range(6)]
    parameter = torch.nn.Parameter(start.clone())
    optimizer = CAME([parameter], lr=1e-3)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    assert torch.allclose(parameter.detach().double(), transcription(start, gradients, 1e-3), atol=1e-5)


def test_a_convolution_moves_like_its_matrix() -> None:
    generator = torch.Generator().manual_seed(1)
    start, gradient = (
        torch.randn(4, 3, 3, 3, generator=generator),
        torch.randn(4, 3, 3, 3, generator=generator),
    )
    image, matrix = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.flatten(1).clone())
    image.grad, matrix.grad = gradient.clone(), gradient.flatten(1).clone()
    CAME([image], lr=0.01).step()
    CAME([matrix], lr=0.01).step()
    assert torch.equal(image.detach().flatten(1), matrix.detach())


def test_it_solves_least_squares() -> None:
    generator = torch.Generator().manual_seed(2)
    wanted = torch.randn(6, 4, generator=generator)
    inputs = torch.randn(64, 6, generator=generator)
    found = torch.nn.Parameter(torch.zeros(6, 4))
    optimizer = CAME([found], lr=2e-3)
    first = float((inputs @ wanted).square().mean())
    for _ in range(300):
        optimizer.zero_grad()
        loss = (inputs @ found - inputs @ wanted).square().mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.02 * first


def test_its_state_is_smaller_than_adamws() -> None:
    parameter = torch.nn.Parameter(torch.randn(64, 64))
    parameter.grad = torch.randn(64, 64)
    optimizer = CAME([parameter])
    optimizer.step()
    kept = sum(value.numel() for value in optimizer.state[parameter].values())
    assert kept == 64 * 64 + 4 * 64


def test_state_survives_saving() -> None:
    parameter = torch.nn.Parameter(torch.randn(5, 3))
    parameter.grad = torch.randn(5, 3)
    optimizer = CAME([parameter], lr=0.1)
    optimizer.step()
    twin = torch.nn.Parameter(parameter.detach().clone())
    other = CAME([twin], lr=0.1)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    gradient = torch.randn(5, 3)
    for one, opt in ((parameter, optimizer), (twin, other)):
        one.grad = gradient.clone()
        opt.step()
    assert torch.equal(parameter, twin)


@pytest.mark.parametrize("bad", [{"lr": 0.0}, {"betas": (0.9, 1.0, 0.9)}, {"clip_threshold": 0.0}])
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ConfigError):
        CAME([torch.nn.Parameter(torch.zeros(2))], **bad)
