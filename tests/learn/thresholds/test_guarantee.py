"""Bar A3: 10^5 draws, the bound is never broken."""

import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.learn.thresholds.guarantee import certificate, failure_bound, monte_carlo_check, safe_base


@pytest.mark.parametrize("adversarial", [False, True])
@pytest.mark.parametrize("error", [0.0, 0.02, 0.1])
def test_no_draw_breaks_the_guarantee(adversarial: bool, error: float) -> None:
    check = monte_carlo_check(100_000, 5, error, adversarial=adversarial, seed=1)
    assert check.accepted_safe > 1000
    assert check.wrong_safe == 0
    assert check.margin_violations == 0
    assert check.failure_rate <= check.bound
    assert check.failure_rate_accepted <= check.bound


def test_the_check_can_fail() -> None:
    # Adversarial estimates do lead to wrong labels without the base: the bound is not empty.
    check = monte_carlo_check(50_000, 5, 0.05, adversarial=True)
    assert check.failure_rate > 0.02


def test_certificate_of_an_exact_model_is_the_margin() -> None:
    posterior = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], dtype=torch.float64)
    matrix = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.0, 0.1, 0.9]], dtype=torch.float64)
    margin = certificate(posterior, matrix, posterior.argmax(1))
    torch.testing.assert_close(margin, torch.tensor([0.2, 0.5], dtype=torch.float64))


def test_bound_and_base_by_hand() -> None:
    total, own = torch.tensor([1.0, 1.5]), torch.tensor([0.8, 0.5])
    torch.testing.assert_close(safe_base(total, 0.02), torch.tensor([0.04, 0.05]))
    torch.testing.assert_close(failure_bound(total, own, 0.02, 4.0), torch.tensor([0.2, 0.4]))
    assert failure_bound(total, own, 0.5, 4.0, 2.0).max() == 1


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError):
        monte_carlo_check(0)
    with pytest.raises(ConfigError):
        monte_carlo_check(classes=1)
