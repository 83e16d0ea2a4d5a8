"""What a network's layers read and how much their rows matter, against sums made by hand."""

from pathlib import Path

import pytest
import torch

from fewer.core.errors import DataError
from fewer.generate.transformer import SanaTransformer
from fewer.quantize.importance import Call, importance, some_of

Inputs = tuple[torch.Tensor, ...]


def test_moments_are_means_over_all_rows_that_were_read(sana_folder: Path, sana_inputs: Inputs) -> None:
    network, read = SanaTransformer.load(sana_folder), []
    handle = network.proj_out.register_forward_pre_hook(lambda _, given: read.append(given[0].flatten(0, 1)))
    found = importance(network, lambda: [network(*sana_inputs), network(*sana_inputs)])
    handle.remove()
    rows = torch.cat(read[:2]).detach()
    assert found.rows_read["proj_out"] == len(rows)
    assert torch.allclose(found.moments["proj_out"], rows.mT @ rows / len(rows), atol=1e-5)
    assert "transformer_blocks.0.ff.conv_point" in found.moments
    assert "transformer_blocks.0.ff.conv_depth" not in found.moments


def test_noise_is_what_noise_on_weights_adds_to_the_output(sana_folder: Path, sana_inputs: Inputs) -> None:
    network = SanaTransformer.load(sana_folder).double()
    inputs = tuple(part.double() for part in sana_inputs)
    found = importance(network, lambda: [network(*inputs) for _ in range(4)])
    base, size = network(*inputs).detach(), 1e-4
    for name in ("transformer_blocks.0.ff.conv_point.weight", "transformer_blocks.0.attn2.to_v.weight"):
        weight = network.get_parameter(name)
        plain, errors = weight.detach().clone(), []
        for seed in range(20):
            noise = torch.randn(plain.shape, generator=torch.Generator().manual_seed(seed)).double()
            weight.data = plain + size * noise
            errors.append(((network(*inputs).detach() - base) / size).square().sum() / len(base))
        weight.data = plain
        told = found.noise[name].sum().item()
        assert torch.stack(errors).mean().item() == pytest.approx(told, rel=0.25), name


def test_the_network_is_left_as_it_was(sana_folder: Path, sana_inputs: Inputs) -> None:
    network = SanaTransformer.load(sana_folder).requires_grad_(False)
    network.proj_out.bias.requires_grad_(True)
    importance(network, lambda: network(*sana_inputs))
    assert [name for name, weight in network.named_parameters() if weight.requires_grad] == ["proj_out.bias"]
    assert "denoise" not in vars(network) and "prepare" not in vars(network)
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert all(weight.grad is None for weight in network.parameters())


def test_a_pipeline_in_inference_mode_will_do(sana_folder: Path, sana_inputs: Inputs) -> None:
    network = SanaTransformer.load(sana_folder)
    latents, time, text, mask = sana_inputs

    def draw() -> None:
        with torch.inference_mode():
            prepared = network.prepare(text.clone(), mask)
            for _ in range(3):
                network.denoise(latents.clone(), time, prepared)

    found = importance(network, draw)
    assert (found.noise["proj_out.weight"] > 0).all()


@pytest.mark.parametrize(
    "run", [lambda network, inputs: None, lambda network, inputs: network.prepare(inputs[2])]
)
def test_a_calibration_that_draws_nothing_is_said(run, sana_folder: Path, sana_inputs: Inputs) -> None:
    network = SanaTransformer.load(sana_folder)
    with pytest.raises(DataError, match="did not evaluate"):
        importance(network, lambda: run(network, sana_inputs))
    assert "denoise" not in vars(network)


def test_inputs_that_are_no_numbers_name_the_layer(sana_folder: Path, sana_inputs: Inputs) -> None:
    network = SanaTransformer.load(sana_folder)
    with pytest.raises(DataError, match=r"'.+' have NaN"):
        importance(network, lambda: network(sana_inputs[0] * float("nan"), *sana_inputs[1:]))


def test_calls_of_all_steps_are_taken() -> None:
    nothing = torch.zeros(1)
    calls = [Call(nothing, torch.tensor([step]), nothing, None, None) for _ in range(24) for step in range(8)]
    taken = some_of(calls, 16, 0)
    assert len(taken) == 16 and len({int(call.timestep) for call in taken}) > 4
    assert taken == some_of(calls, 16, 0) and some_of(calls[:5], 16, 0) == calls[:5]
