"""A trained adapter changes what it is attached to and nothing else."""

import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.generate.lora import attach, read_lora, write_lora
from fewer.generate.training.lora import train_lora
from fewer.generate.training.transformer import TransformerTraining

PLAN = TransformerTraining(steps=12, batch=4, learning_rate=3e-2, warmup=1, ema_decay=None, dtype="fp32")


def test_the_model_stays_and_the_adapter_learns(tiny, encoded, tmp_path) -> None:
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapter, result = train_lora(model, encoded([(4, 4)] * 6), PLAN, rank=3)
    assert len(adapter) == 2 * 2 * 3  # blocks, attentions, layers
    assert all(float(found.up.abs().max()) > 0 and found.down.shape[0] == 3 for found in adapter.values())
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert result.step == 12

    path = write_lora(tmp_path / "adapter.safetensors", adapter)
    latents, time = torch.randn(1, 4, 4, 4), torch.tensor([300.0])
    text = torch.randn(1, 5, 12)
    with torch.no_grad():
        plain = model(latents, time, text)
        attach(model, read_lora(path), name="again")
        changed = model(latents, time, text)
    assert not torch.allclose(plain, changed, atol=1e-4)


def test_a_failed_run_leaves_the_model_as_it_was(tiny, encoded) -> None:
    model = tiny()
    with pytest.raises(ConfigError):
        train_lora(model, encoded([(4, 4)]), PLAN, rank=0)
    with pytest.raises(ConfigError, match="nothing_like_it"):
        train_lora(model, encoded([(4, 4)]), PLAN, targets=("nothing_like_it",))
    assert model.state_dict().keys() == tiny().state_dict().keys()
    assert all(parameter.requires_grad for parameter in model.parameters())
