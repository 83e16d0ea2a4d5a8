"""DistriFusion's GroupNorm rules on a U-Net that has learned something. runs on: cpu and gpu

The paper (section 5.3, SDXL, 8 devices, LPIPS to one device): synchronous 0.207, corrected 0.211, stale
0.247, separate 0.317. Here: a small U-Net with softmax attention, trained on handwritten digits by flow
matching; pictures from the same noise on 2, 4 and 8 simulated devices; relative L2 to one device, mean over
the seeds. The seeds are 0 to 7, fixed before anything was measured.
"""
# bench: gpu, 6 min: --device cuda

import argparse
import time
from pathlib import Path

import torch
from record import record
from torch import Tensor, nn

from fewer.core.device import pick_device
from fewer.core.progress import make_progress
from fewer.core.tensors import read_tensors, write_tensors
from fewer.core.train import FitPlan, fit
from fewer.learn.data import load_images
from fewer.parallel import Group, ParallelPlan, parallelize, run_simulated

SIDE, SEEDS = 32, 8
DATA = Path(__file__).parents[1] / "data" / "mnist10k" / "mnist10k.npz"
RULES = ("sync", "corrected", "stale", "separate")


def unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=SIDE, in_channels=1, out_channels=1, block_out_channels=(32, 64), layers_per_block=1,
        norm_num_groups=8, cross_attention_dim=16, attention_head_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=1,
    )  # fmt: skip


class Digits(nn.Module):
    """The U-Net and a vector for each digit, which it attends to."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.table = unet(), nn.Embedding(10, 16)

    def forward(self, pictures: Tensor, time_: Tensor | float, labels: Tensor) -> Tensor:
        return self.net(pictures, time_, self.table(labels)[:, None], return_dict=False)[0]


def pictures_and_labels() -> tuple[Tensor, Tensor]:
    train = load_images(DATA).train
    pictures = train.as_float() * 2 - 1
    return nn.functional.pad(pictures, (2, 2, 2, 2), value=-1.0), train.labels


def train(model: Digits, steps: int, device: torch.device) -> float:
    pictures, labels = (tensor.to(device) for tensor in pictures_and_labels())

    def batch_at(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(labels), (32,), generator=generator).to(device)
        return pictures[rows], labels[rows]

    def loss(batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        clean, chosen = batch
        noise = torch.randn(clean.shape, generator=generator).to(device)
        sigma = torch.rand(len(clean), generator=generator).to(device)
        mixed = clean + sigma[:, None, None, None] * (noise - clean)
        return (model(mixed, 1000 * sigma, chosen) - (noise - clean)).square().mean()

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    plan = FitPlan(steps=steps, warmup=20)
    result = fit(plan, {"model": model}, optimizer, loss, batch_at, make_progress("auto"))
    return sum(result.losses[-50:]) / len(result.losses[-50:])


@torch.no_grad()
def draw(model: Digits, net: nn.Module, steps: int) -> Tensor:
    """All seeds side by side, each with its own noise: Euler's method from noise to picture."""
    noises = [
        torch.randn(1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) for seed in range(SEEDS)
    ]
    device = model.table.weight.device
    pictures, labels = torch.stack(noises).to(device), torch.arange(SEEDS, device=device) % 10
    text = model.table(labels)[:, None]
    for step in range(steps):
        sigma = 1 - step / steps
        pictures = pictures - net(pictures, 1000 * sigma, text, return_dict=False)[0] / steps
    return pictures


def errors(pictures: Tensor, expected: Tensor) -> Tensor:
    return (pictures - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train-steps", type=int, default=600)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--warm-up", type=int, default=4)
    parser.add_argument("--devices", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--weights", type=Path, help="kept here after training; used if it is there")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "auto"))
    options = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False  # or convolutions on a GPU would round to ten bits
    device = pick_device(options.device)
    model, began, loss = Digits().to(device), time.monotonic(), None
    if options.weights and options.weights.is_file():
        model.load_state_dict(read_tensors(options.weights))
    else:
        loss = train(model, options.train_steps, device)
        if options.weights:
            write_tensors(options.weights, model.state_dict())
    model.eval().requires_grad_(False)
    figures = {
        "train_steps": options.train_steps, "loss": loss, "seconds_of_training": time.monotonic() - began,
        "steps": options.steps, "warm_up": options.warm_up, "seeds": SEEDS,
    }  # fmt: skip
    expected = draw(model, model.net, options.steps)
    rows: list[dict[str, object]] = []
    for devices in options.devices:
        plans = {"full sync": ParallelPlan(devices=devices, mode="sync")} | {
            rule: ParallelPlan(
                devices=devices, mode="displaced", warmup_steps=options.warm_up, norm_rule=rule
            )
            for rule in RULES
        }
        for name, plan in plans.items():

            def rank_main(group: Group, plan: ParallelPlan = plan) -> Tensor:
                return draw(model, parallelize(model.net, plan, group), options.steps)

            found = errors(run_simulated(devices, rank_main, timeout=600.0)[0], expected).cpu()
            rows.append(
                {"devices": devices, "rule": name, "error": float(found.mean()),
                 "standard_error": float(found.std() / SEEDS**0.5), "each": found.tolist()}
            )  # fmt: skip
            print({key: value for key, value in rows[-1].items() if key != "each"}, flush=True)
            record("group_norm_order", {**figures, "rows": rows})
        order = sorted(RULES, key=lambda rule: next(
            float(row["error"]) for row in rows if row["devices"] == devices and row["rule"] == rule  # type: ignore[arg-type]
        ))  # fmt: skip
        print(f"{devices} devices, best first: {', '.join(order)}")


if __name__ == "__main__":
    main()
