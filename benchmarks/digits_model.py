"""The small class-conditional model that is shipped: digits of data/mnist10k, adaLN with generated weights.

python benchmarks/digits_model.py [--steps 8000] [--output FOLDER]
trains it on a GPU in seconds (28 px, patch 4, width 64, 4 blocks, rank 12, 0.4 M parameters), writes the
model's folder with 16-bit weights, a contact sheet and benchmarks/results/digits_model.json: flow error
on test digits, and for 1,000 drawn digits the accuracy of a classifier trained on real ones and the Fréchet
distance in its features, beside the same figures of real test digits.
"""
# bench: gpu, 2 min:

import argparse
from pathlib import Path

import torch
from can_judge import Judge, draw, judge_trainee, judged
from can_quality import mnist
from graphed import Trainee, train_side_by_side
from PIL import Image
from record import record
from torch import Tensor

from fewer.generate.autoencoder.report import frechet_distance
from fewer.generate.conditional import ClassConditionalParams, ConditionPlan
from fewer.generate.conditional.build import build
from fewer.generate.conditional.formats import save_folder
from fewer.generate.conditional.training import flow_error, parameter_groups, validation_error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--judge-steps", type=int, default=800)
    parser.add_argument("--drawn", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=Path("outputs/digits"))
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    parts = list(mnist())
    for part in parts:
        object.__setattr__(part, "images", part.images.to(options.device))
        object.__setattr__(part, "labels", part.labels.to(options.device))
    train, _, test = parts
    params = ClassConditionalParams(
        architecture="dit", channels=1, out_channels=1, size=28, patch=4, width=64, depth=4, heads=4,
        ffn_ratio=2.0, classes=10, adaln=True, tokens=False,
    )  # fmt: skip
    model = build(params, ConditionPlan(rank=12), 0).to(options.device)
    if options.device == "cuda":
        for names in model.layers.values():
            for name in names:
                layer = model.layer(name)
                layer.form = "fused" if layer.static.weight.shape[-1] == 3 else layer.form

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(train.labels), (128,), generator=generator, device=options.device)
        level = torch.sigmoid(torch.randn(128, generator=generator, device=options.device))
        noise = torch.randn(128, 1, 28, 28, generator=generator, device=options.device)
        dropped = torch.rand(128, generator=generator, device=options.device) < 0.1
        labels = train.labels[rows].masked_fill(dropped, 10)
        return flow_error(model, train.images[rows], labels, level, noise).mean()

    trainee = Trainee(
        name="digits", model=model, loss=loss, groups=parameter_groups(model, 0.01), rate=2e-3,
        steps=options.steps, warmup=min(100, options.steps // 2), final_rate=0.01, seed=0,
    )  # fmt: skip
    judge = judge_trainee(train, options.judge_steps)
    train_side_by_side([trainee, judge])
    net = judge.model
    assert isinstance(net, Judge)
    with torch.no_grad():
        right = float((net(test.images).argmax(1) == test.labels).float().mean())
        rows = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(3))[: options.drawn]
        real = net.features(train.images[rows.to(options.device)]).cpu()
        truth = frechet_distance(net.features(test.images[: options.drawn]).cpu(), real)
        labels = torch.arange(40, device=options.device) % 10
        sheet = draw(model, labels, (1, 28, 28), 10)
    figures = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(trainee.seconds, 1),
        "test_error": validation_error(model, test),
        "drawn": judged(model, net, train, options.drawn),
        "real_test_digits": {"class_accuracy": right, "frechet": truth},
    }
    print(figures)
    record("digits_model", {"steps": options.steps, **figures})
    for names in model.layers.values():
        for name in names:
            model.layer(name).form = "split"
    save_folder(model.cpu().half(), options.output, tuple("0123456789"))
    levels = ((sheet[:, 0] + 1) * 127.5).round().to(torch.uint8).cpu()
    picture = torch.cat([torch.cat(list(levels[row * 10 : row * 10 + 10]), 1) for row in range(4)])
    Image.fromarray(picture.numpy()).save(options.output / "sheet.png")


if __name__ == "__main__":
    main()
