import sys
import types

import pytest
import torch
from torch import nn

from fewer.core.errors import ConfigError
from fewer.learn.for_domainbed import EVIL, domainbed_plan

HPARAMS = {
    "lr": 0.01,
    "delta": 3,
    "grad_accumulation_n": 2,
    "evil_warmup": 4,
    "evil_end": 12,
    "dense_allocation": 0.4,
}


def minibatches(step: int, shape: tuple[int, ...]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(step)
    return [
        (torch.randn(5, *shape, generator=generator), torch.randint(3, (5,), generator=generator))
        for _ in range(2)
    ]


def test_domainbed_s_interface() -> None:
    algorithm = EVIL((2, 8, 8), 3, 2, HPARAMS)
    for step in range(10):
        figures = algorithm.update(minibatches(step, (2, 8, 8)), None)
        assert set(figures) == {"loss"}
        assert isinstance(figures["loss"], float)
    assert algorithm.predict(torch.zeros(4, 2, 8, 8)).shape == (4, 3)
    assert algorithm.training_state is not None
    assert len(algorithm.training_state.updates) == 1
    for name, mask in algorithm.training_state.masks.items():
        assert abs(float(mask.float().mean()) - 0.6) <= 1 / mask.numel()
        assert algorithm.network.get_parameter(name)[~mask].abs().max() == 0


def test_inside_a_checkout_domainbed_s_own_network_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Featurizer(nn.Sequential):
        def __init__(self, input_shape: tuple[int, ...], hparams: dict) -> None:
            super().__init__(nn.Flatten(), nn.Linear(2 * 4 * 4, 6), nn.ReLU(), nn.Linear(6, 5))
            self.n_outputs = 5

    networks = types.ModuleType("domainbed.networks")
    networks.Featurizer = Featurizer  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "domainbed", types.ModuleType("domainbed"))
    monkeypatch.setitem(sys.modules, "domainbed.networks", networks)
    algorithm = EVIL((2, 4, 4), 3, 2, HPARAMS)
    for step in range(6):
        algorithm.update(minibatches(step, (2, 4, 4)))
    assert algorithm.training_state is not None
    assert list(algorithm.training_state.masks) == ["featurizer.3.weight"]  # the stem stays dense


def test_hyperparameters_of_the_released_code() -> None:
    assert domainbed_plan({"dense_allocation": 0.3}).density == pytest.approx(0.7)
    with_random = {"dense_allocation": 0.3, "mask_initialization": "random"}
    assert domainbed_plan(with_random).density == pytest.approx(0.3)
    # In the released code's mode the first mask itself keeps 1 - density: 0.3 again.
    assert domainbed_plan({**with_random, "evil_mode": "tmllab"}).density == pytest.approx(0.7)
    published = domainbed_plan({})
    assert (published.density, published.delta, published.accumulation) == (0.6, 400, 20)
    assert domainbed_plan({"evil_mode": "extended"}).first_mask is None
    with pytest.raises(ConfigError):
        domainbed_plan({"evil_base": "magic"})
