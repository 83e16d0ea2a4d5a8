"""Displaced bands before the built-in model's judges, on real devices: an item of scaling.py.

See parallel_quality.py, which encodes the prompts. In fp32, so that nothing but the staleness differs.
"""

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from parallel_pictures import Texts, decoded, drawn_latents, psnr, scenes_of
from torch import Tensor, nn

from fewer.generate.autoencoder import DCAutoencoder
from fewer.generate.model_folder import DEFAULT_MODEL
from fewer.generate.scenes.judges import SpriteJudge, judge_pictures
from fewer.generate.scenes.pool import Vocabulary
from fewer.generate.scenes.presets import preset
from fewer.generate.transformer import SanaTransformer
from fewer.parallel import ParallelPlan, parallelize

if TYPE_CHECKING:
    from scaling_items import Stand

NOISES, STEPS, BATCH = 3, 20, 60


def quality(stand: "Stand") -> None:
    """One device, then 2 and 4 bands that are displaced after 4 warm-up steps: judges and PSNR."""
    options = stand.options
    if options.texts is None or options.judge is None:
        stand.emit(item="quality", skipped="needs --texts and --judge, see parallel_quality.py")
        return
    texts = Texts(options.texts, stand.device)
    torch.backends.cudnn.allow_tf32 = False
    transformer = SanaTransformer.load(DEFAULT_MODEL, torch.float32, stand.device).eval()
    autoencoder = DCAutoencoder.load(DEFAULT_MODEL / "vae", torch.float32, stand.device).eval()
    judge, scenes = judge_and_scenes(stand, len(texts))
    steps = min(STEPS, options.steps)

    def draw(network: nn.Module) -> tuple[Tensor, float]:
        began = time.monotonic()
        latents = drawn_latents(network, texts, NOISES, steps, BATCH)
        pictures = decoded(autoencoder, latents, BATCH)
        return pictures, time.monotonic() - began

    expected, seconds = draw(transformer)
    add(stand, "one device", 1, judge, scenes, expected, seconds, None)
    for count, group in stand.many():
        if count > 4:
            continue
        plan = ParallelPlan(devices=count, mode="displaced", warmup_steps=4)
        pictures, seconds = draw(parallelize(transformer, plan, group))
        add(stand, "displaced", count, judge, scenes, pictures, seconds, expected)


def judge_and_scenes(stand: "Stand", prompts: int) -> tuple[SpriteJudge, list]:
    """The judge from its file, and the scenes that the prompts describe."""
    chosen = preset("emoji")
    vocabulary = Vocabulary(tuple((chosen.concepts or {}).values()), tuple(chosen.styles))
    judge = SpriteJudge.load(stand.options.judge, vocabulary.words, vocabulary.styles)
    scenes = scenes_of(vocabulary, prompts)
    return judge, [scene for scene in scenes for _ in range(NOISES)]


@torch.no_grad()
def add(
    stand: "Stand",
    mode: str,
    devices: int,
    judge: SpriteJudge,
    scenes: list,
    pictures: Tensor,
    seconds: float,
    expected: Tensor | None,
) -> None:
    """Judged on rank 0 alone, whose row counts."""
    row: dict[str, object] = {"item": "quality", "devices": devices, "mode": mode, "pictures": len(pictures)}
    if stand.world.rank == 0:
        row |= asdict(judge_pictures(judge, pictures, scenes))
        if expected is not None:
            found = psnr(pictures, expected)
            row |= {"psnr_median": float(found.median()), "psnr_worst": float(found.min())}
    stand.emit(**row, drawing_seconds=round(seconds, 1), said=f"{devices} x {mode}: {row}")
