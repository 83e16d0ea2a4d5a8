"""Training a style moves the style alone."""

import torch

from fewer.generate.conditional.adapter import base_digest
from fewer.generate.training.style import train_style
from fewer.generate.training.transformer import TransformerTraining


def test_the_base_stays_and_the_style_is_a_function_of_the_seed(tiny, encoded) -> None:
    base, data = tiny(), encoded([(4, 4)] * 3)
    before = base_digest(base)
    training = TransformerTraining(steps=4, batch=2, learning_rate=1e-2, warmup=0, ema_decay=None, seed=3)
    model, result = train_style(base, "ink", data, training, rank=2)
    assert base_digest(model.static_twin()) == before
    assert result.step == 4 and model.source.names == ("ink",)
    assert any(parameter.abs().max() > 0 for name, parameter in model.can.named_parameters() if ".b." in name)
    again, _ = train_style(tiny(), "ink", data, training, rank=2)
    for name, tensor in model.can.state_dict().items():
        assert torch.equal(tensor, again.can.state_dict()[name]), name
