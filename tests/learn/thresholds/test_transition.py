"""Bar A2: the estimators recover a known T."""

import pytest
import torch
from torch import nn

from fewer.learn.thresholds.transition import (
    ClassTransition,
    CountedTransition,
    InstanceTransition,
    forward_corrected_loss,
    labelled_row_loss,
    transition_error,
)


def test_class_matrix_starts_as_published() -> None:
    matrix = ClassTransition(10)().detach()
    assert float(matrix[0, 0]) == pytest.approx(0.8233, abs=1e-4)
    torch.testing.assert_close(matrix.sum(1), torch.ones(10))


@pytest.mark.parametrize("body", ["cnn", "resnet"])
def test_instance_matrices_are_distributions(body: str) -> None:
    matrix = InstanceTransition(1, 3, body=body)(torch.randn(2, 1, 9, 9))
    assert matrix.shape == (2, 3, 3)
    torch.testing.assert_close(matrix.sum(2), torch.ones(2, 3))


def test_forward_correction_with_the_identity_is_cross_entropy() -> None:
    logits, labels = torch.randn(7, 4), torch.randint(4, (7,))
    expected = nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(forward_corrected_loss(logits, torch.eye(4), labels), expected)


def test_labelled_rows_alone_get_gradient() -> None:
    matrix = torch.full((3, 3), 1 / 3, requires_grad=True)
    loss = labelled_row_loss(matrix, torch.tensor([1, 1]), torch.tensor([[0.2, 0.7, 0.1]] * 2))
    loss.backward()
    assert matrix.grad is not None
    assert matrix.grad[1].abs().min() > 0
    assert matrix.grad[[0, 2]].abs().max() == 0


def test_counted_matrix_is_the_running_mean_of_answers() -> None:
    transition = CountedTransition(2, momentum=0.5)
    assert torch.equal(transition(), torch.eye(2))
    transition.update(torch.tensor([0, 0]), torch.tensor([[0.2, 0.8], [0.4, 0.6]]))
    # Row 0: half an image answered rightly before, two images now.
    torch.testing.assert_close(transition(), torch.tensor([[1.1 / 2.5, 1.4 / 2.5], [0.0, 1.0]]))
    truth = flipped(2, 0.2)
    for _ in range(40):
        transition.update(torch.tensor([0, 1]), truth)
    torch.testing.assert_close(transition(), truth)


def flipped(classes: int, share: float) -> torch.Tensor:
    """The truth of A2: `share` of each class is taken for the next one."""
    return (1 - share) * torch.eye(classes) + share * torch.eye(classes).roll(1, 1)


def test_class_matrix_is_recovered_through_forward_correction() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (5000,), generator=generator)
    points = 8 * torch.eye(5)[labels] + torch.randn(5000, 5, generator=generator)
    truth = flipped(5, 0.2)
    noisy = torch.multinomial(truth[labels], 1, generator=generator)[:, 0]
    torch.manual_seed(0)
    network, transition = nn.Linear(5, 5), ClassTransition(5)
    optimizer = torch.optim.SGD(
        [{"params": network.parameters(), "lr": 0.1}, {"params": transition.parameters(), "lr": 0.3}],
        momentum=0.9,
    )
    for _ in range(400):
        optimizer.zero_grad()
        forward_corrected_loss(network(points), transition(), noisy).mean().backward()
        optimizer.step()
    assert (transition() - truth).abs().mean() <= 0.05
    assert transition_error(transition().detach(), noisy, labels) <= 0.05


def test_class_matrix_is_recovered_from_labelled_rows() -> None:
    truth = flipped(5, 0.2)
    labels = torch.arange(5).repeat(8)
    transition = ClassTransition(5)
    optimizer = torch.optim.SGD(transition.parameters(), lr=1.0, momentum=0.9)
    for _ in range(300):
        optimizer.zero_grad()
        labelled_row_loss(transition(), labels, truth[labels]).backward()
        optimizer.step()
    assert (transition() - truth).abs().mean() <= 0.05


def test_instance_estimator_tells_two_groups_apart() -> None:
    """Bright pictures are mislabelled in 5 %, dark ones in 40 %."""
    generator = torch.Generator().manual_seed(0)
    count, classes = 600, 3
    labels = torch.randint(classes, (count,), generator=generator)
    dark = torch.rand(count, generator=generator) < 0.5
    images = 0.3 * torch.randn(count, 1, 6, 6, generator=generator)
    images += torch.where(dark, -1.0, 1.0)[:, None, None, None]
    images[torch.arange(count), 0, 0, labels] += 6
    share = torch.where(dark, 0.4, 0.05)
    wrong = torch.rand(count, generator=generator) < share
    noisy = torch.where(wrong, (labels + 1) % classes, labels)
    torch.manual_seed(0)
    estimator = InstanceTransition(1, classes)
    optimizer = torch.optim.Adam(estimator.parameters(), lr=3e-3)
    answers = nn.functional.one_hot(noisy, classes).float()
    for _ in range(60):
        rows = torch.randint(count, (128,), generator=generator)
        optimizer.zero_grad()
        labelled_row_loss(estimator(images[rows]), labels[rows], answers[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        matrices = estimator(images)
    errors = 1 - matrices[torch.arange(count), labels, labels]
    bright, dim = float(errors[~dark].mean()), float(errors[dark].mean())
    assert dim - bright >= 0.2
    assert abs(bright - 0.05) <= 0.1
    assert abs(dim - 0.4) <= 0.1
