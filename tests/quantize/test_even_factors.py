"""Adapters in four bits: an even pair has the same product, a packed one is near, odd ones are refused."""

from pathlib import Path

import pytest
import torch

from fewer.core.errors import DataError, FileError
from fewer.core.tensors import write_tensors
from fewer.generate.lora import fresh, read_lora
from fewer.generate.lora_file import LowRank
from fewer.generate.transformer import SanaTransformer
from fewer.quantize.even_factors import even, package_adapter
from fewer.quantize.importance import Importance, importance

Inputs = tuple[torch.Tensor, ...]
TARGETS = ("to_q", "to_v", "conv_inverted", "0")


@pytest.fixture
def known(sana_folder: Path, sana_inputs: Inputs) -> tuple[SanaTransformer, Importance]:
    network = SanaTransformer.load(sana_folder)
    return network, importance(network, lambda: network(*sana_inputs))


def trained(network: SanaTransformer, rank: int = 64) -> dict[str, LowRank]:
    generator = torch.Generator().manual_seed(0)
    made = fresh(network, rank, generator, targets=TARGETS, alpha=2.0 * rank)
    return {
        layer: LowRank(
            pair.down,
            torch.randn(pair.up.shape, generator=generator) * torch.logspace(-1, -3, rank),
            pair.alpha,
        )
        for layer, pair in made.items()
    }


def test_even_factors_have_the_same_product(known: tuple[SanaTransformer, Importance]) -> None:
    network, found = known
    for layer, pair in trained(network).items():
        moments = found.moments[layer]
        noise = found.noise[f"{layer}.weight"]
        made = even(pair, moments, noise)
        product, expected = made.up.double() @ made.down.double(), pair.up.double() @ pair.down.double()
        assert (product - expected).norm() < 1e-5 * expected.norm(), layer
        assert made.strength == pair.strength
        energy = made.down.double() @ moments.double() @ made.down.double().mT
        assert energy.diagonal().max() < 1.01  # each reads energy one, less what damping took


def test_an_adapter_comes_back_near_at_half_a_byte(
    known: tuple[SanaTransformer, Importance], tmp_path: Path, sana_inputs: Inputs
) -> None:
    network, found = known
    adapter = trained(network)
    tensors, metadata = package_adapter(adapter, found, 5.0)
    numbers = sum(pair.down.numel() + pair.up.numel() for pair in adapter.values())
    assert 8 * sum(t.numel() * t.element_size() for t in tensors.values()) <= 5.0 * numbers
    write_tensors(tmp_path / "lora.safetensors", tensors, metadata)
    again = read_lora(tmp_path / "lora.safetensors")
    assert again.keys() == adapter.keys()
    lost = whole = 0.0
    for layer, pair in adapter.items():
        rows = torch.linalg.cholesky(found.moments[layer] + 1e-3 * torch.eye(len(found.moments[layer]))).mT
        expected = pair.product(rows, 1.0)
        error = again[layer].product(rows.bfloat16(), 1.0).float() - expected
        matters = (found.noise[f"{layer}.weight"] / found.moments[layer].diagonal().sum()).sqrt()
        lost, whole = lost + (error * matters).square().sum(), whole + (expected * matters).square().sum()
        assert again[layer].strength == pair.strength
    # of what the adapter changes in the network's output, all layers together; random factors pack worst
    assert lost < 0.2**2 * whole


def test_adapters_of_other_networks_are_refused(known: tuple[SanaTransformer, Importance]) -> None:
    network, found = known
    name, pair = next(iter(trained(network).items()))
    with pytest.raises(FileError, match="'elsewhere'"):
        package_adapter({"elsewhere": pair}, found)
    with pytest.raises(FileError, match="another shape"):
        package_adapter({name: LowRank(pair.down[:, :-1], pair.up, 1.0)}, found)
    with pytest.raises(DataError, match="NaN"):
        package_adapter({name: LowRank(pair.down * float("nan"), pair.up, 1.0)}, found)


def test_an_adapter_that_changes_nothing_stays_so(known: tuple[SanaTransformer, Importance]) -> None:
    network, found = known
    blank = fresh(network, 64, torch.Generator().manual_seed(0), targets=TARGETS)
    tensors, _ = package_adapter(blank, found, 5.0)
    from fewer.generate.compact import expand

    for name, tensor in expand(tensors).items():
        assert torch.isfinite(tensor).all(), name
        assert "lora_B" not in name or not tensor.any(), name
