"""Teach a tiny network five classes of stripes, by tokens alone and with weights that follow the class."""

import torch

from fewer.generate.conditional import ClassConditionalParams, ConditionPlan
from fewer.generate.conditional.accounting import profile
from fewer.generate.conditional.build import build
from fewer.generate.conditional.draw import draw_class
from fewer.generate.conditional.pictures import LabelledPictures
from fewer.generate.conditional.training import TrainingOptions, train_class_conditional, validation_error


def stripes(count: int) -> LabelledPictures:
    """Class k is a bright line in row k; for files use `read_labelled` of conditional.pictures."""
    labels = torch.arange(count) % 5
    images = torch.full((count, 1, 8, 8), -1.0)
    images[torch.arange(count), :, labels] = 1.0
    return LabelledPictures(images, labels, ("first", "second", "third", "fourth", "fifth"))


def main() -> None:
    params = ClassConditionalParams(
        channels=1, out_channels=1, size=8, patch=2, width=32, depth=2, heads=2, ffn_ratio=2.0, classes=5
    )
    for name, plan in (("tokens", None), ("tokens and generated weights", ConditionPlan(rank=8))):
        model = build(params, plan, seed=0)
        train_class_conditional(
            model, stripes(100), TrainingOptions(steps=200, batch=16, rate=5e-3, warmup=5)
        )
        model.eval()
        cost = profile(model, torch.zeros(1, 1, 8, 8), torch.tensor([500.0]), torch.tensor([0]))
        print(f"{name}: flow error {validation_error(model, stripes(50)):.3f}, {cost}")
    *_, last = draw_class(model, 2, seeds=[0], steps=10, guidance=2.0)
    print("brightest row of a picture of class third:", int(last.latents[0, 0].mean(1).argmax()))


if __name__ == "__main__":
    main()
