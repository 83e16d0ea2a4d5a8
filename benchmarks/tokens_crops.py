"""The pictures of fewer_tokens.py, 128-px crops of photographs, and what judges drawings of them."""
# bench: by hand: fewer_tokens.py draws from it

import argparse

import torch
from can_judge import Judge
from crop_pool import crop_pool
from graphed import Trainee
from torch import Tensor, nn

from fewer.core.device import isolated_randomness
from fewer.generate.autoencoder.report import RandomFeatures, frechet_distance


class Crops:
    """Pictures, their latents and what judges them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        device = options.device
        pool, numbers = crop_pool(128, options.each, 0, folder=options.pool)
        count = options.drawn
        self.train, self.labels = pool[:-count].to(device), numbers[:-count].to(device)
        self.fresh = pool[-count:].to(device)
        self.test = crop_pool(128, min(options.each, 80), 99, held_out=True, folder=options.pool)[0].to(
            device
        )
        self.classes = int(numbers.max()) + 1
        self.random = RandomFeatures().to(device)
        self.judge: nn.Module | None = None

    def judge_trainee(self) -> Trainee:
        device = self.train.device
        with isolated_randomness(0):
            judge = Judge(3, self.classes).to(device)
        self.judge = judge

        def loss(generator: torch.Generator) -> Tensor:
            rows = torch.randint(len(self.train), (128,), generator=generator, device=device)
            images = self.train[rows].float() / 127.5 - 1
            return nn.functional.cross_entropy(judge(images), self.labels[rows])

        groups = [{"params": list(judge.parameters()), "weight_decay": 0.05}]
        return Trainee(
            name="judge", model=judge, loss=loss, groups=groups, rate=2e-3, steps=self.options.judge_steps,
            warmup=20, final_rate=0.02, seed=0,
        )  # fmt: skip

    @torch.no_grad()
    def distances(self, images: Tensor, real: Tensor | None = None) -> dict[str, float]:
        """Of pictures in [-1, 1], or as bytes, to the fresh crops or to others."""
        judge = self.judge
        assert isinstance(judge, Judge)
        result = {}
        for name, features in (("judge", judge.features), ("random", self.random)):
            two = []
            for pictures in (images, self.fresh if real is None else real):
                parts = (p.float() / 127.5 - 1 if p.dtype == torch.uint8 else p for p in pictures.split(512))
                two.append(torch.cat([features(part).float().cpu() for part in parts]))
            result[f"frechet_{name}"] = round(frechet_distance(*two), 4)
        return result

    def distance_to_choose_with(self, autoencoder: nn.Module) -> float:
        """Of some training crops' reconstructions to other training crops: nothing of the fresh ones."""
        count = min(2048, len(self.train) // 2)
        back = reconstructed(autoencoder, self.train[:count])
        return self.distances(back, self.train[count : 2 * count])["frechet_judge"]


@torch.no_grad()
def reconstructed(model: nn.Module, pictures: Tensor) -> Tensor:
    """The same pictures as the autoencoder gives them back, as bytes."""
    parts = (model(part.float() / 127.5 - 1).float() for part in pictures.split(256))
    return torch.cat([((part + 1) * 127.5).round().clamp(0, 255).byte() for part in parts])
