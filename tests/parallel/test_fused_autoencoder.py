"""The engine's DC-AE on bands."""

import pytest
import torch

from fewer.generate.engine import accelerate
from fewer.parallel import fused_autoencoder
from fewer.parallel.attach import parallelize
from fewer.parallel.fused_autoencoder import BandEfficientViTBlock
from fewer.parallel.group import Group
from fewer.parallel.plan import ParallelPlan
from fewer.parallel.simulated import run_simulated
from tests.parallel.test_autoencoder import tiny


@pytest.mark.parametrize(
    ("devices", "height", "up", "scales"), [(2, 7, "interpolate", (5,)), (3, 6, "pixel_shuffle", ())]
)
@torch.no_grad()
def test_fused_bands_equal_one_plain_device(devices: int, height: int, up: str, scales: tuple) -> None:
    model = tiny("conv" if up == "interpolate" else "pixel_unshuffle", up, scales)
    latents = torch.randn(1, 4, height, 5, generator=torch.Generator().manual_seed(0))
    pixels = model.decode(latents)
    fused = accelerate(model)

    def rank_main(group: Group) -> tuple[torch.Tensor, torch.Tensor]:
        parallel = parallelize(fused, ParallelPlan(devices=devices), group)
        assert any(isinstance(module, BandEfficientViTBlock) for module in parallel.modules())
        return parallel.decode(latents), parallel.encode(pixels)

    for decoded, encoded in run_simulated(devices, rank_main):
        assert float((decoded - pixels).norm() / pixels.norm()) <= 1e-5
        again = model.encode(pixels)
        assert float((encoded - again).norm() / again.norm()) <= 1e-5


@torch.no_grad()
def test_small_bands_are_decoded_in_a_graph_on_all_ranks_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_autoencoder, "MOST_LATENTS_IN_A_GRAPH", 20)
    fused = accelerate(tiny("conv", "interpolate", (5,)))
    pictures = [torch.randn(1, 4, height, 5, generator=torch.Generator().manual_seed(0)) for height in (7, 9)]
    expected = [fused.decode(latents) for latents in pictures]

    def rank_main(group: Group) -> tuple[list[torch.Tensor], int]:
        parallel = parallelize(fused, ParallelPlan(devices=2), group)
        parallel.decoder.graphed = True
        results = [parallel.decode(latents) for latents in pictures * 2]
        return results, len(parallel.decoder.graphs)

    # Bands of 4 and 3 rows: 20 and 15 latents, both in graphs. Of 5 and 4: 25 and 20, neither.
    for results, captured in run_simulated(2, rank_main):
        assert captured == 1
        for result, wanted in zip(results, expected * 2, strict=True):
            assert float((result - wanted).norm() / wanted.norm()) <= 1e-5
