"""diffusers' own models at tiny sizes: sync is exact, a full warm-up equals sync, displaced is close."""

import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.parallel.attach import parallelize
from fewer.parallel.group import Group
from fewer.parallel.plan import ParallelPlan
from fewer.parallel.simulated import run_simulated

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def unet() -> tuple:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=16, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=8, attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 1),
    )  # fmt: skip
    text = torch.randn(1, 3, 8)
    return model.eval(), torch.randn(1, 4, 16, 6), lambda m, x, t: m(x, t, text, return_dict=False)[0]


def pixart() -> tuple:
    from diffusers import PixArtTransformer2DModel

    torch.manual_seed(0)
    model = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=2,
        sample_size=8, cross_attention_dim=16, caption_channels=8, use_additional_conditions=False,
    )  # fmt: skip
    text = torch.randn(1, 3, 8)
    return (
        model.eval(),
        torch.randn(1, 4, 10, 8),
        lambda m, x, t: m(
            x, encoder_hidden_states=text, timestep=torch.full((len(x),), t), return_dict=False
        )[0],
    )


def flux() -> tuple:
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    text, pooled = torch.randn(1, 3, 8), torch.randn(1, 8)
    images, texts = (
        torch.cartesian_prod(torch.zeros(1), torch.arange(5.0), torch.arange(3.0)),
        torch.zeros(3, 3),
    )
    return model.eval(), torch.randn(1, 15, 4), lambda m, x, t: m(
        x, encoder_hidden_states=text, pooled_projections=pooled, timestep=torch.full((len(x),), t / 1000),
        img_ids=images, txt_ids=texts, return_dict=False,
    )[0]  # fmt: skip


MODELS = {"unet": unet, "pixart": pixart, "flux": flux}


def three_steps(model: torch.nn.Module, start: torch.Tensor, call: object) -> torch.Tensor:
    for time in (900.0, 600.0, 300.0):
        start = start - 0.1 * call(model, start, time)
    return start


def on_ranks(name: str, devices: int, **plan: object) -> tuple[torch.Tensor, torch.Tensor]:
    model, start, call = MODELS[name]()
    with torch.no_grad():
        expected = three_steps(model, start, call)

    def rank_main(group: Group) -> torch.Tensor:
        return three_steps(parallelize(model, ParallelPlan(devices=devices, **plan), group), start, call)

    return run_simulated(devices, rank_main)[-1], expected


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("devices", [2, 3])
def test_sync_equals_one_device(name: str, devices: int) -> None:
    result, expected = on_ranks(name, devices, mode="sync")
    assert float((result - expected).norm() / expected.norm()) <= 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_full_warm_up_equals_sync_bit_for_bit(name: str) -> None:
    warm, _ = on_ranks(name, 2, mode="displaced", warmup_steps=2)
    sync, _ = on_ranks(name, 2, mode="sync")
    assert torch.equal(warm, sync)


@pytest.mark.parametrize("name", MODELS)
def test_displaced_is_closer_than_naive(name: str) -> None:
    displaced, expected = on_ranks(name, 2, mode="displaced", warmup_steps=0)
    naive, _ = on_ranks(name, 2, mode="naive")
    assert 0 < (displaced - expected).norm() < (naive - expected).norm()


@pytest.mark.parametrize("devices", [1, 2, 3])
@pytest.mark.parametrize("size", [(13, 7), (5, 6)])
@torch.no_grad()
def test_a_unet_takes_heights_that_no_halving_divides(size: tuple[int, int], devices: int) -> None:
    model, _, call = unet()
    start = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(1))
    expected = three_steps(model, start, call)
    plan = ParallelPlan(devices=devices, mode="sync")
    for result in run_simulated(
        devices, lambda group: three_steps(parallelize(model, plan, group), start, call)
    ):
        assert float((result - expected).norm() / expected.norm()) <= (1e-5 if devices > 1 else 0)


@torch.no_grad()
def test_what_a_control_net_adds_is_taken_by_bands() -> None:
    model, start, _ = unet()
    text, generator = torch.randn(1, 3, 8), torch.Generator().manual_seed(2)
    down = [torch.randn(1, width, 16 // step, 6 // step, generator=generator)
            for width, step in ((8, 1), (8, 1), (8, 2), (16, 2))]  # fmt: skip
    mid = torch.randn(1, 16, 8, 3, generator=generator)

    def call(network: torch.nn.Module) -> torch.Tensor:
        return network(
            start, 500.0, text, return_dict=False, down_block_additional_residuals=tuple(down),
            mid_block_additional_residual=mid,
        )[0]  # fmt: skip

    expected, plan = call(model), ParallelPlan(devices=3, mode="sync")
    found = run_simulated(3, lambda group: call(parallelize(model, plan, group)))[1]
    assert float((found - expected).norm() / expected.norm()) <= 1e-5


def test_fused_projections_are_refused_since_bands_would_ignore_each_other() -> None:
    model, _, _ = unet()
    model.fuse_qkv_projections()
    with pytest.raises(ConfigError, match="unfuse_qkv_projections"):
        run_simulated(2, lambda group: parallelize(model, ParallelPlan(devices=2, mode="sync"), group))


@pytest.mark.parametrize("name", MODELS)
def test_ranks_that_were_given_different_pictures_are_refused_before_they_compute(name: str) -> None:
    model, start, call = MODELS[name]()

    @torch.no_grad()
    def rank_main(group: Group) -> None:
        parallel = parallelize(model, ParallelPlan(devices=2, mode="sync"), group)
        call(parallel, start, 900.0)
        call(parallel, start if group.rank == 0 else torch.cat([start, start], dim=1), 950.0)

    with pytest.raises(ConfigError, match=r"latents is .*, but rank 1 has"):
        run_simulated(2, rank_main)


def two_samples(name: str) -> tuple:
    """A call with a batch of two different samples, texts included."""
    model, start, call = MODELS[name]()
    both = torch.cat([start, 0.5 * start.flip(-1)])
    closure = dict(zip(call.__code__.co_freevars, call.__closure__, strict=True))
    for cell in (closure[key] for key in ("text", "pooled") if key in closure):
        cell.cell_contents = torch.cat([cell.cell_contents, -cell.cell_contents])
    return model, both, call


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("devices", [2, 4])
@torch.no_grad()
def test_halves_of_guidance_equal_one_device(name: str, devices: int) -> None:
    model, start, call = two_samples(name)
    expected = three_steps(model, start, call)

    def rank_main(group: Group) -> tuple[torch.Tensor, int]:
        plan = ParallelPlan(devices=devices, mode="sync", guidance="split")
        parallel = parallelize(model, plan, group)
        return three_steps(parallel, start, call), parallel.band_session.group.size

    for result, bands in run_simulated(devices, rank_main):
        assert bands == devices // 2
        assert float((result - expected).norm() / expected.norm()) <= 1e-5


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_picture_of_another_text_starts_exact_after_a_cancelled_one(name: str) -> None:
    """Made from a picture it begins in the middle of the times, below where the cancelled one stopped."""
    model, start, call = MODELS[name]()
    other, plan = MODELS[name]()[2], ParallelPlan(devices=2, mode="displaced", warmup_steps=0)
    cell = dict(zip(other.__code__.co_freevars, other.__closure__, strict=True))["text"]
    cell.cell_contents = -cell.cell_contents

    def rank_main(group: Group) -> tuple[torch.Tensor, torch.Tensor]:
        parallel = parallelize(model, plan, group)
        for time in (900.0, 600.0):
            call(parallel, torch.ones_like(start), time)
        return other(parallel, start, 300.0), other(parallelize(model, plan, group), start, 300.0)

    for after, fresh in run_simulated(2, rank_main):
        assert torch.equal(after, fresh)
