import pytest
import torch

from fewer.core.errors import DataError
from fewer.generate.lora import attach, detach
from fewer.generate.training.merged_flow import train_merged
from fewer.generate.training.on_device import DeviceSet
from fewer.generate.training.transformer import TransformerTraining

_TRAINING = TransformerTraining(steps=30, batch=4, learning_rate=1e-2, warmup=2, ema_decay=None, dtype="fp32")


def a_set(height: int, width: int) -> DeviceSet:
    generator = torch.Generator().manual_seed(height)
    latents = torch.randn(1, 4, height, width, generator=generator)
    text = torch.randn(2, 3, 12, generator=generator)
    return DeviceSet(
        latents, torch.ones(1, 1, dtype=torch.long), torch.ones(1, 1), text, torch.ones(2, 3) > 0
    )


def test_it_learns_two_shapes_and_the_adapter_does_what_the_merged_network_did(tiny) -> None:
    network = tiny()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    sets = [a_set(4, 6), a_set(6, 4)]
    adapter, result = train_merged(network, sets, _TRAINING, rank=4)
    assert sum(result.losses[-6:]) < 0.8 * sum(result.losses[:6])
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    latents, text = torch.randn(1, 4, 4, 6), torch.randn(1, 3, 12)
    plain = network(latents, torch.tensor([500.0]), text)
    worn = attach(network, adapter, name="shapes")(latents, torch.tensor([500.0]), text)
    assert (worn - plain).abs().max() > 1e-3
    detach(network)


def test_nothing_to_learn_from_is_refused(tiny) -> None:
    with pytest.raises(DataError, match="at least one set"):
        train_merged(tiny(), [], _TRAINING, rank=2)
