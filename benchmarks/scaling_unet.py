"""An SDXL-shaped U-Net in DistriFusion's modes: the item of scaling.py that is not about Sana."""

import statistics
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from scaling_tools import build, in_graph, relative_error
from torch import Tensor, nn

from fewer.parallel import ParallelPlan, parallelize
from fewer.parallel.graphs import GraphedSteps

if TYPE_CHECKING:
    from scaling_items import Stand


def unet(stand: "Stand") -> None:
    """An SDXL-shaped U-Net in DistriFusion's modes: one sample a step, graphs at the smaller size."""
    model, rest = sdxl(stand)
    for size in stand.options.unet_sizes:
        side, small = size // 8, size <= 2048
        sample_ = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(3))
        sample_, time_ = sample_.to(stand.device, stand.dtype), torch.tensor([500.0], device=stand.device)
        inputs = (sample_, time_, *rest)
        expected = call_unet(model, *inputs)
        alone_call = in_graph(lambda i=inputs: call_unet(model, *i), stand.device) if small else None
        repeats = stand.options.repeats if small else 4
        warm_up = 3 if small else 1
        alone = stand.timed(alone_call or (lambda i=inputs: call_unet(model, *i)), repeats, warm_up)
        one_ms = statistics.median(alone)
        stand.emit(item="unet", size=size, devices=1, mode="one device", ms=one_ms, raw_ms=alone)
        del alone_call
        stand.tidy()
        for count, group in stand.many():
            for mode, plan in unet_plans(count).items():
                if mode not in stand.options.unet_modes:
                    continue
                runner = parallelize(model, plan, group)
                if small:
                    runner = GraphedSteps(runner, call_unet)

                def run(runner: object = runner, inputs: tuple = inputs, small: bool = small) -> Tensor:
                    return runner(*inputs) if small else call_unet(runner, *inputs)  # pyright: ignore

                error = relative_error(run(), expected)
                taken = stand.timed(run, repeats, warm_up, group)
                stand.emit(item="unet", size=size, devices=count, mode=mode, ms=statistics.median(taken),
                           raw_ms=taken, speedup=one_ms / statistics.median(taken), graphed=small,
                           first_step_error=error)  # fmt: skip
                del runner, run
                stand.tidy()


UNET_MODES = ("corrected_async_gn", "full_sync", "naive", "stale_gn", "sync_gn", "separate_gn")


def unet_plans(count: int) -> dict[str, ParallelPlan]:
    """DistriFusion's modes, most telling first."""
    displaced = ParallelPlan(devices=count, mode="displaced", warmup_steps=0)
    return {
        "corrected_async_gn": displaced,
        "full_sync": ParallelPlan(devices=count, mode="sync"),
        "naive": ParallelPlan(devices=count, mode="naive"),
        "stale_gn": replace(displaced, norm_rule="stale"),
        "sync_gn": replace(displaced, norm_rule="sync"),
        "separate_gn": replace(displaced, norm_rule="separate"),
    }


def sdxl(stand: "Stand") -> tuple[nn.Module, tuple[Tensor, Tensor, Tensor]]:
    """Random weights in SDXL's shape, and its conditions: text, pooled text, sizes."""
    from diffusers import UNet2DConditionModel

    tiny = stand.options.shape == "tiny"
    widths = (8, 16, 16) if tiny else (320, 640, 1280)
    facts = {
        "block_out_channels": widths, "cross_attention_dim": 8 if tiny else 2048,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (1, 2, 2) if tiny else (5, 10, 20), "norm_num_groups": 4 if tiny else 32,
        "transformer_layers_per_block": (1, 1, 1) if tiny else (1, 2, 10), "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 8 if tiny else 256,
        "projection_class_embeddings_input_dim": 56 if tiny else 2816, "sample_size": 128,
    }  # fmt: skip
    model = build(lambda: UNet2DConditionModel(**facts), stand.device, stand.dtype)
    generator = torch.Generator().manual_seed(4)
    text = torch.randn(1, 77, facts["cross_attention_dim"], generator=generator)
    pooled = torch.randn(1, 8 if tiny else 1280, generator=generator)
    sizes = torch.tensor([[1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0]])
    return model, tuple(part.to(stand.device, stand.dtype) for part in (text, pooled, sizes))  # pyright: ignore


def call_unet(model: nn.Module, latents: Tensor, time_: Tensor, *rest: Tensor) -> Tensor:
    text, pooled, sizes = rest
    more = {"text_embeds": pooled, "time_ids": sizes}
    return model(latents, time_, text, added_cond_kwargs=more, return_dict=False)[0]
