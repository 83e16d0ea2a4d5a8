import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.learn.distillation.architectures import NETWORK_POOL, NetworkPlan, build_network
from fewer.learn.distillation.loop import distill
from tests.learn.distillation.conftest import make_pictures, tiny_plan


@pytest.mark.parametrize("name", NETWORK_POOL)
@pytest.mark.parametrize(("size", "channels"), [((8, 8), 1), ((28, 28), 3), ((5, 17), 1)])
def test_every_network_answers_pictures_of_any_size(name: str, size: tuple[int, int], channels: int) -> None:
    network = build_network(NetworkPlan(name=name, width=8), channels, size, 5)
    images = torch.randn(3, channels, *size)
    answers = network(images)
    assert answers.shape == (3, 5)
    assert torch.isfinite(answers).all()
    assert answers.std(0).max() > 0  # pictures are told apart
    torch.testing.assert_close(network.head(network.body(images)), answers)


def test_the_published_convnet_has_2048_features() -> None:
    assert build_network(NetworkPlan(), 1, (28, 28), 10).features == 2048
    assert build_network(NetworkPlan(), 3, (32, 32), 10).features == 2048


@pytest.mark.parametrize(("side", "blocks"), [(28, 3), (64, 4), (128, 5), (224, 6)])
def test_depth_follows_the_picture_size(side: int, blocks: int) -> None:
    network = build_network(NetworkPlan(width=4), 3, (side, side), 2)
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in network.modules()) == blocks


@pytest.mark.parametrize("norm", ["instance", "batch", "layer", "group", "none"])
@pytest.mark.parametrize("pooling", ["average", "max", "none"])
def test_variants_of_the_convnet(norm: str, pooling: str) -> None:
    network = build_network(NetworkPlan(width=8, depth=1, norm=norm, pooling=pooling), 1, (9, 9), 2)
    assert network(torch.randn(4, 1, 9, 9)).shape == (4, 2)


@pytest.mark.parametrize("method", ["dc", "dm", "mtt", "random"])
def test_batch_norm_is_refused_by_name(method: str) -> None:
    plan = tiny_plan(method, network=NetworkPlan(width=8, depth=2, norm="batch"))
    with pytest.raises(ConfigError, match=r"norm was 'batch'.*instance, layer, group, none"):
        distill(make_pictures(), plan=plan)
