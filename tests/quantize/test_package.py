"""A network in four bits: as small as asked, near, the same bytes twice, and opened like any other."""

from pathlib import Path

import pytest
import torch

from fewer.core.errors import ConfigError, DataError
from fewer.core.tensors import tensor_header, write_tensors
from fewer.generate.compact import compact, expand
from fewer.generate.transformer import SanaTransformer
from fewer.quantize.importance import Importance, importance
from fewer.quantize.package import package_transformer, packed

Inputs = tuple[torch.Tensor, ...]
NAME = "diffusion_pytorch_model.safetensors"


def byte_count(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@pytest.fixture
def network(sana_folder: Path) -> SanaTransformer:
    return SanaTransformer.load(sana_folder)


@pytest.mark.parametrize("bits", [4.1, 6.0])
def test_a_network_is_as_small_as_asked_and_opens_as_dense_weights(
    network: SanaTransformer, sana_folder: Path, sana_inputs: Inputs, bits: float
) -> None:
    network.eval()
    expected = network(*sana_inputs).detach()
    tensors = package_transformer(network, lambda: network(*sana_inputs), bits)
    parameters = sum(tensor.numel() for tensor in network.state_dict().values())
    assert 0.9 * bits < 8 * byte_count(tensors) / parameters <= bits
    write_tensors(sana_folder / NAME, tensors)
    again = SanaTransformer.load(sana_folder, torch.float32)
    assert {name: t.shape for name, t in again.state_dict().items()} == {
        name: t.shape for name, t in network.state_dict().items()
    }
    error = ((again(*sana_inputs) - expected).norm() / expected.norm()).item()
    assert error < {4.1: 0.08, 6.0: 0.02}[bits]


def test_the_same_bytes_twice(network: SanaTransformer, sana_inputs: Inputs) -> None:
    first, second = (package_transformer(network, lambda: network(*sana_inputs)) for _ in range(2))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def known_of(weights: dict[str, torch.Tensor], moments: torch.Tensor | None = None) -> Importance:
    found = Importance(noise={name: torch.ones(len(weight)) for name, weight in weights.items()})
    for name in weights if moments is not None else ():
        found.moments[name.removesuffix(".weight")] = moments
        found.rows_read[name.removesuffix(".weight")] = 100_000
    return found


def test_error_feedback_follows_what_the_layer_reads() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {"a.weight": torch.randn(96, 64, generator=generator)}
    mixing = torch.randn(64, 64, generator=generator) * torch.logspace(0, -2, 64)
    inputs = torch.randn(5000, 64, generator=generator) @ mixing.mT
    moments = inputs.mT @ inputs / len(inputs)
    errors = []
    for known in (known_of(weights), known_of(weights, moments)):
        near = expand(packed(weights, known, 4.5), torch.float32)["a.weight"]
        errors.append(((near - weights["a.weight"]) @ inputs.mT).square().sum().item())
    assert errors[1] < 0.4 * errors[0]


def test_nothing_is_lost_but_steps(network: SanaTransformer, sana_inputs: Inputs) -> None:
    """Without feedback every number is within half a step of its row; small tensors are bf16."""
    tensors = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    stored = packed(tensors, Importance(noise=importance(network, lambda: network(*sana_inputs)).noise), 5.0)
    near = expand(stored, torch.float32)
    for name, tensor in tensors.items():
        if f"{name}.row_scale" in stored:
            half = stored[f"{name}.row_scale"].float() / 2
            assert ((near[name] - tensor).flatten(1).abs().amax(dim=1) <= half * (1 + 1e-5)).all(), name
        else:
            assert torch.equal(near[name], tensor.bfloat16()), name


def test_it_is_nearer_than_even_rounding_of_the_same_size(
    network: SanaTransformer, sana_inputs: Inputs
) -> None:
    expected = network(*sana_inputs).detach()
    tensors = network.state_dict()
    even = {name: torch.ones(len(tensor)) for name, tensor in tensors.items() if tensor.ndim >= 2}
    known = importance(network, lambda: network(*sana_inputs))
    errors = []
    for noise, moments in ((even, {}), (known.noise, known.moments)):
        stored = packed(tensors, Importance(moments, known.rows_read, noise), 4.1)
        near = SanaTransformer(network.params)
        near.load_state_dict(expand(stored, torch.float32))
        errors.append((near(*sana_inputs) - expected).norm().item())
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("bits", [3.0, 3.91, 4.0, 4.1, 4.13, 4.17, 5.0])
def test_any_size_is_reached(bits: float) -> None:
    """Once a search stood still where two slopes were too near to be told apart."""
    generator = torch.Generator().manual_seed(2)
    weights = {f"{n}.weight": torch.randn(80, 64, generator=generator) for n in range(2)}
    mixing = torch.randn(64, 64, generator=generator)
    stored = packed(weights, known_of(weights, mixing @ mixing.mT / 64), bits)
    assert 0.9 * bits < 8 * byte_count(stored) / (2 * 80 * 64) <= bits


@pytest.mark.parametrize("bits", [0.5, 1.4, 9.0, float("nan")])
def test_bits_that_cannot_be_are_refused(bits: float) -> None:
    with pytest.raises(ConfigError, match="bits was"):
        packed({}, Importance(), bits)


def test_too_few_bits_for_what_stays_whole_are_said() -> None:
    with pytest.raises(ConfigError, match="too few"):
        packed(
            {"a.weight": torch.randn(64, 64), "b": torch.randn(4000)},
            known_of({"a.weight": torch.ones(64)}),
            2.0,
        )


def test_weights_that_are_no_numbers_are_named(network: SanaTransformer, sana_inputs: Inputs) -> None:
    network.transformer_blocks[0].attn1.to_q.weight.data[3, 4] = float("inf")
    with pytest.raises(DataError, match="NaN or Inf"):
        package_transformer(network, lambda: network(*sana_inputs))


def test_a_file_of_a_byte_a_weight_still_opens(
    network: SanaTransformer, sana_folder: Path, sana_inputs: Inputs
) -> None:
    write_tensors(sana_folder / NAME, compact(network.state_dict()))
    assert any(info.dtype == "I8" for info in tensor_header(sana_folder / NAME)[0].values())
    again = SanaTransformer.load(sana_folder, torch.float32)
    expected = network(*sana_inputs)
    assert (again(*sana_inputs) - expected).norm() < 0.02 * expected.norm()
