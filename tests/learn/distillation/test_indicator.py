import numpy as np
import pytest
import torch
from scipy import stats

from fewer.core.errors import DataError
from fewer.learn.distillation.architectures import NetworkPlan
from fewer.learn.distillation.indicator import IndicatorPoint, fit_indicator, forecast, set_aside
from fewer.learn.distillation.training import Recipe
from tests.learn.distillation.conftest import make_pictures


def points(noise: float, count: int = 9) -> list[IndicatorPoint]:
    generator = np.random.default_rng(0)
    x = np.linspace(-1, 2.5, count)
    y = 0.5 + 0.9 * x + noise * generator.normal(size=count)
    return [
        IndicatorPoint(name=str(k), random=float(1 / (1 + np.exp(-a))), distilled=float(1 / (1 + np.exp(-b))))
        for k, (a, b) in enumerate(zip(x, y, strict=True))
    ]


def test_a_planted_line_is_found() -> None:
    fit = fit_indicator(points(0.0))
    assert (fit.offset, fit.slope) == pytest.approx((0.5, 0.9), abs=1e-6)
    assert fit.leave_one_out_error < 1e-9 and fit.pearson > 0.95 and fit.spearman == pytest.approx(1)
    expected, low, high = fit.predict(0.5)
    assert low == pytest.approx(expected) == pytest.approx(high) == pytest.approx(1 / (1 + np.exp(-0.5)))


def test_correlations_are_scipys() -> None:
    noisy = points(0.8)
    fit = fit_indicator(noisy)
    a, b = [p.random for p in noisy], [p.distilled for p in noisy]
    assert fit.pearson == pytest.approx(stats.pearsonr(a, b).statistic)
    assert fit.spearman == pytest.approx(stats.spearmanr(a, b).statistic)
    assert fit.pearson_low < fit.pearson < fit.pearson_high
    low, high = fit.predict(0.6)[1:]
    assert low < high


def test_too_few_points_are_refused() -> None:
    with pytest.raises(DataError, match="at least 4"):
        fit_indicator(points(0.0, count=3))


def test_setting_aside_is_stratified_and_complete() -> None:
    data = make_pictures(count=61)
    rest, held = set_aside(data, 0.2)
    assert len(rest) + len(held) == 61 and held.counts().tolist() == [4, 4, 4]
    with pytest.raises(DataError, match="hold one out"):
        set_aside(data.select(torch.tensor([0, 1, 2, 3, 4])), 0.2)


@pytest.mark.parametrize("given", [True, False])
def test_a_forecast_reads_the_line_at_the_random_accuracy(given: bool) -> None:
    fit = fit_indicator(points(0.1))
    found = forecast(
        make_pictures(count=60),
        make_pictures(count=30, seed=1) if given else None,
        2,
        fit,
        network=NetworkPlan(width=8, depth=2),
        recipe=Recipe(epochs=10),
        draws=2,
        networks=1,
    )
    assert found.expected == pytest.approx(fit.predict(found.random.balanced_accuracy)[0])
    assert found.low <= found.expected <= found.high and found.advice and found.seconds > 0
