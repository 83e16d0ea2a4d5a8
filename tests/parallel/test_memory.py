import pytest
import torch

from fewer.core.errors import CapacityError
from fewer.generate.autoencoder import DCAutoencoder
from fewer.generate.transformer.sana import SanaTransformer
from fewer.parallel import memory
from fewer.parallel.attach import parallelize
from fewer.parallel.group import Group
from fewer.parallel.memory import band_bytes, require_on_every_rank
from fewer.parallel.plan import ParallelPlan
from fewer.parallel.simulated import run_simulated
from tests.generate.autoencoder.live_memory import LiveMemory
from tests.parallel.test_autoencoder import tiny
from tests.parallel.test_sana import inputs, sample

CPU = torch.device("cpu")


def test_the_estimate_covers_what_a_band_takes_and_not_much_more(toy: SanaTransformer) -> None:
    def rank_main(group: Group) -> int:
        parallel = parallelize(toy, ParallelPlan(devices=1, mode="sync"), group)
        latents, text, mask = inputs(64, 32)
        prepared = parallel.prepare(text, mask)
        with LiveMemory() as live:
            parallel.denoise(latents.repeat(2, 1, 1, 1), torch.full((2,), 500.0), prepared)
        return live.peak

    peak = run_simulated(1, rank_main)[0]
    estimate = band_bytes(toy.params, ParallelPlan(mode="sync"), (64, 32), 2, 4)
    assert 0.8 * peak <= estimate <= 3 * peak, (peak, estimate)


def test_more_bands_take_less_each_and_displaced_ones_more(toy: SanaTransformer) -> None:
    exact, late = ParallelPlan(mode="sync"), ParallelPlan(mode="displaced")
    assert band_bytes(toy.params, exact, (16, 32), 1, 4) < band_bytes(toy.params, exact, (32, 32), 1, 4)
    assert band_bytes(toy.params, late, (16, 32), 1, 4) > band_bytes(toy.params, exact, (16, 32), 1, 4)


def test_one_rank_without_room_stops_all_of_them() -> None:
    def rank_main(group: Group) -> str:
        try:
            require_on_every_rank(group, 2**60 if group.rank == 1 else 8, CPU, "for a test")
        except CapacityError as error:
            return str(error)
        return "went on"

    said = run_simulated(3, rank_main)
    assert said[0] == said[1] == said[2]
    assert "would take about" in said[0] and "for a test; try a smaller size" in said[0]


def test_ranks_of_one_machine_must_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda device: 100)
    run_simulated(2, lambda group: require_on_every_rank(group, 50, CPU, "fits"))
    with pytest.raises(CapacityError, match="the 2 ranks"):
        run_simulated(2, lambda group: require_on_every_rank(group, 51, CPU, "does not"))


def test_a_picture_or_a_decoding_that_cannot_fit_is_refused_by_every_rank(
    toy: SanaTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda device: 1000)
    plan = ParallelPlan(devices=2, mode="sync")
    autoencoder: DCAutoencoder = tiny("conv", "interpolate", ())
    with pytest.raises(CapacityError, match="a step of these bands"):
        run_simulated(2, lambda group: sample(parallelize(toy, plan, group), 1))
    latents = torch.zeros(1, autoencoder.config.latent_channels, 8, 4)
    with pytest.raises(CapacityError, match=r"a band of .* pixels"):
        run_simulated(2, lambda group: parallelize(autoencoder, plan, group).decode(latents))
