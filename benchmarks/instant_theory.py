"""The bars of InstanT that need no training run: guarantee, estimators, and batched augmentation.

    python benchmarks/instant_theory.py

The guarantee by 10^5 draws (random and worst-case errors), the class estimator's error over five seeds, and
the time of a strong view of 448 pictures of 32x32x3 beside Pillow picture by picture, the field's usual way.
"""
# bench: cpu, 2 min:

import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fewer.core.files import write_json
from fewer.learn.few_labels.augment import strong_view, weak_view
from fewer.learn.few_labels.randaugment import COLOUR_POOL, RANGES
from fewer.learn.thresholds.guarantee import monte_carlo_check
from fewer.learn.thresholds.transition import ClassTransition, forward_corrected_loss

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.learn.few_labels.one_by_one import pillow


def estimator_error(seed: int) -> float:
    """5 separable Gaussians, 5,000 points, 20 % flipped to the next class; mean error of T's entries."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (5000,), generator=generator)
    points = 8 * torch.eye(5)[labels] + torch.randn(5000, 5, generator=generator)
    truth = 0.8 * torch.eye(5) + 0.2 * torch.eye(5).roll(1, 1)
    noisy = torch.multinomial(truth[labels], 1, generator=generator)[:, 0]
    torch.manual_seed(seed)
    network, transition = torch.nn.Linear(5, 5), ClassTransition(5)
    groups = [{"params": network.parameters(), "lr": 0.1}, {"params": transition.parameters(), "lr": 0.3}]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    for _ in range(400):
        optimizer.zero_grad()
        forward_corrected_loss(network(points), transition(), noisy).mean().backward()
        optimizer.step()
    return float((transition() - truth).abs().mean().detach())


def augmentation_seconds() -> dict[str, list[float]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (448, 3, 32, 32), generator=generator).to(torch.uint8)
    ours, theirs = [], []
    for _ in range(6):
        began = time.process_time()
        strong_view(weak_view(images, generator, flip=True), generator, COLOUR_POOL)
        ours.append(time.process_time() - began)
        began = time.process_time()
        one_by_one(images)
        theirs.append(time.process_time() - began)
    return {"batched": ours[1:], "pillow_one_by_one": theirs[1:]}


def one_by_one(images: torch.Tensor) -> None:
    """Three operations a picture through Pillow, without Cutout and crop (in the peer's favour)."""
    draw = np.random.default_rng(0)
    for image in images:
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        for name in draw.choice(COLOUR_POOL, 3):
            low, high = RANGES[name]
            picture = pillow(name, picture, float(draw.uniform(low, high)))
        torch.from_numpy(np.array(picture))


def main() -> None:
    torch.set_num_threads(1)
    checks = {
        f"error_{error}_{'worst' if worst else 'random'}": asdict(
            monte_carlo_check(100_000, 5, error, adversarial=worst, seed=7)
        )
        for error in (0.0, 0.02, 0.1)
        for worst in (False, True)
    }
    result = {
        "machine": {"cpu": platform.machine(), "threads": 1, "torch": torch.__version__},
        "guarantee": checks,
        "class_estimator_mean_error": [estimator_error(seed) for seed in range(3)],
        "augmentation_cpu_seconds": augmentation_seconds(),
    }
    write_json(Path("benchmarks/results/instant_theory.json"), result)


if __name__ == "__main__":
    main()
