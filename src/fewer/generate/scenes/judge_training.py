"""Trains a judge on rendered truth, where the renderer is: a minute on a CPU, seconds on a GPU."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewer.core.device import isolated_randomness
from fewer.core.progress import Progress, SilentProgress, track
from fewer.generate.scenes.compose import Placement, SceneRenderer
from fewer.generate.scenes.judges import AROUND, SpriteJudge, cutout_loss, shrink
from fewer.generate.scenes.measures import sizes_present
from fewer.generate.scenes.pool import signed
from fewer.generate.scenes.table import SceneTable


def train_judge(
    renderer: SceneRenderer,
    table: SceneTable,
    *,
    steps: int,
    batch: int,
    width: int = 32,
    learning_rate: float = 3e-3,
    seed: int = 0,
    progress: Progress | None = None,
) -> SpriteJudge:
    """A judge of all concepts and styles of a table's vocabulary (of any split: judges know no held-out)."""
    device = renderer.device
    with isolated_randomness(seed):
        judge = SpriteJudge(table.vocabulary.words, table.vocabulary.styles, width).to(device).train()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    placed = table.placed(renderer)
    concepts = torch.from_numpy(table.concepts).to(device)
    styles = torch.from_numpy(table.style).to(device)
    where = {size: (placed.size == size).nonzero() for size in sizes_present(placed.size)}
    sizes = list(where)
    generator = torch.Generator(device).manual_seed(seed)
    random = np.random.default_rng(seed)
    for _ in track(range(steps), progress or SilentProgress(), "judge", steps):
        # One size a step, so that all windows of a batch are equal.
        objects = where[sizes[random.integers(len(sizes))]]
        chosen = torch.randint(len(objects), (batch,), generator=generator, device=device)
        rows, slots = objects[chosen].unbind(dim=1)
        cutouts = cut_windows(renderer, placed.rows(rows), slots)
        loss = cutout_loss(judge, cutouts, concepts[rows, slots], styles[rows], generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge.eval()


def cut_windows(
    renderer: SceneRenderer, placed: Placement, slots: Int[Tensor, " scenes"]
) -> Float[Tensor, "scenes 3 crop crop"]:
    """One object of each scene, all of one size, as `cut_objects` cuts it."""
    size = int(placed.size[0, slots[0]])
    window = min(renderer.side, round(AROUND * size))
    top, left = (
        (edge.gather(1, slots[:, None])[:, 0] + (size - window) // 2).clamp(0, length - window)
        for edge, length in ((placed.top, renderer.height), (placed.left, renderer.width))
    )
    return shrink(signed(renderer.render(placed, top, left, window)))
