"""Steps a second of InstanT: WRN-28-2, 32 x 32 x 3, batch 64 x (1 + 7), augmentation included.

runs on: gpu (one H100, about a minute). `--device cpu --small` proves the script.

    python benchmarks/instant_speed.py

Peer: FixMatch's recipe as the field's benchmark code has it, written plainly: Pillow's augmentation picture
by picture in the workers of a DataLoader, float32, launched kernel by kernel; the same network, pictures and
batch. `peer, views ready` is its loop alone, as if augmentation and transfers cost nothing. Ours goes through
`semi_supervised` as a user calls it: the views are a CUDA graph, the network is launched (recorded as well it
was slower). `one view` and `flattened` are InstanT with one and no other view; `launched` is ours without any
graph. The pictures are noise: no figure of accuracy comes from here.
"""
# bench: gpu, 2 min:

import argparse
import json
import logging
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fewer.core.files import write_json
from fewer.learn import SemiSupervisedPlan, pick_labels, semi_supervised
from fewer.learn.data import LabelledImages, make_labelled_images
from fewer.learn.few_labels.randaugment import COLOUR_POOL, RANGES
from fewer.learn.few_labels.views import Views
from fewer.learn.graphed import GraphedFunction
from fewer.learn.networks import NetworkPlan, build_network

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.learn.few_labels.one_by_one import pillow


class Clock:
    """Notes when the loss of which step was on the host; between two looks at it a GPU works on."""

    def __init__(self) -> None:
        self.looks: list[tuple[int, float]] = []

    def start(self, what: str, total: int) -> None: ...
    def stop(self) -> None: ...
    def say(self, text: str) -> None: ...

    def advance(self, steps: int = 1, **figures: float) -> None:
        done = self.looks[-1][0] if self.looks else 0
        self.looks.append((done + steps, time.perf_counter()))

    def rates(self, skip: int) -> list[float]:
        """Steps a second over stretches of at least a tenth of what follows the first `skip` steps."""
        kept = [look for look in self.looks if look[0] >= skip]
        length = (kept[-1][0] - kept[0][0]) / 10
        found, start = [], kept[0]
        for look in kept[1:]:
            if look[0] - start[0] >= length:
                found.append((look[0] - start[0]) / (look[1] - start[1]))
                start = look
        return found


def pictures(count: int) -> LabelledImages:
    generator = np.random.default_rng(0)
    return make_labelled_images(
        generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), np.arange(count) % 10
    )


def ours(
    train: LabelledImages, method: str, steps: int, skip: int, options: argparse.Namespace, **more: object
) -> dict:
    plan = SemiSupervisedPlan(
        method=method,  # pyright: ignore
        network="small-cnn" if options.small else "wrn-28-2",
        steps=steps,
        batch=4 if options.small else 64,
        ratio=7,
        flip=True,
        device=options.device,
        **more,  # pyright: ignore
    )
    clock = Clock()
    semi_supervised(train, pick_labels(train.labels, 4, 10, 0), plan=plan, progress=clock)
    rates = clock.rates(skip)
    return {"steps_per_second": statistics.median(rates), "raw": rates}


def augmentation(train: LabelledImages, device: str, repeats: int) -> dict:
    """Milliseconds of the views of one step alone."""
    views = Views(
        train.images.permute(0, 3, 1, 2).contiguous().to(device),
        *train.mean_and_deviation(),
        True,
        COLOUR_POOL,
    )
    generator, times = torch.Generator().manual_seed(0), []
    for _ in range(repeats + 3):
        rows = torch.randint(len(train), (448,), generator=generator)
        began = time.perf_counter()
        views(rows[:64], rows, generator)
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - began))
    return {"milliseconds": statistics.median(times[3:]), "raw": times[3:]}


class OneByOne(Dataset):
    """A weak and a strong view of one picture through Pillow."""

    def __init__(self, data: LabelledImages, rows: list[int], strong: bool) -> None:
        self.images, self.labels, self.rows, self.strong = data.images.numpy(), data.labels, rows, strong

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        row = self.rows[index]
        draw = np.random.default_rng()
        views = [self.weak(self.images[row], draw)]
        if self.strong:
            views.append(self.hard(self.weak(self.images[row], draw), draw))
        made = [torch.from_numpy(view.copy()).permute(2, 0, 1).float() / 255 for view in views]
        return (*made, self.labels[row])

    @staticmethod
    def weak(pixels: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        padded = np.pad(pixels, ((4, 4), (4, 4), (0, 0)), mode="reflect")
        y, x = draw.integers(0, 9, 2)
        window = padded[y : y + 32, x : x + 32]
        return window[:, ::-1] if draw.random() < 0.5 else window

    @staticmethod
    def hard(pixels: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        picture = Image.fromarray(pixels)
        for name in draw.choice(COLOUR_POOL, 3):
            picture = pillow(name, picture, float(draw.uniform(*RANGES[name])))
        out = np.array(picture)
        side, y, x = int(draw.uniform(0, 16)), *draw.integers(0, 32, 2)
        out[max(0, y - side // 2) : y + side // 2, max(0, x - side // 2) : x + side // 2] = (125, 123, 114)
        return out


def loaders(train: LabelledImages, options: argparse.Namespace, steps: int, workers: int) -> Iterator[tuple]:
    """(labelled, labels, weak, strong) of each step on the host, from workers."""
    batch, generator = (4 if options.small else 64), np.random.default_rng(0)
    needed = (steps + 1) * batch
    known = OneByOne(train, [int(r) for r in generator.integers(0, 40, needed)], False)
    unknown = OneByOne(train, [int(r) for r in generator.integers(0, len(train), 7 * needed)], True)
    both = [
        iter(DataLoader(data, size, num_workers=n, drop_last=True, pin_memory=options.device != "cpu"))
        for data, size, n in ((known, batch, min(2, workers)), (unknown, 7 * batch, workers))
    ]
    for (images, labels), (weak, strong, _) in zip(*both, strict=False):
        yield images, labels, weak, strong


def peer(train: LabelledImages, options: argparse.Namespace, steps: int, workers: int) -> dict:
    """The plain loop; without workers on one batch that is ready on the device."""
    device = torch.device(options.device)
    name = "small-cnn" if options.small else "wrn-28-2"
    network = build_network(NetworkPlan(name=name, channels=3, height=32, width=32)).to(device)
    optimizer = torch.optim.SGD(network.parameters(), 0.03, 0.9, weight_decay=5e-4, nesterov=True)
    average = {key: value.detach().clone() for key, value in network.named_parameters()}
    drawn = loaders(train, options, steps, workers or 1)
    if not workers:
        drawn = repeat(tuple(x.to(device) for x in next(drawn)))
    clock = Clock()
    for _ in range(steps):
        images, labels, weak, strong = (x.to(device, non_blocking=True) for x in next(drawn))
        logits = network(torch.cat([images, weak, strong]))
        own, easy, hard = logits.split([len(images), len(weak), len(strong)])
        confidence, pseudo = easy.detach().softmax(1).max(1)
        unlabelled = (F.cross_entropy(hard, pseudo, reduction="none") * (confidence >= 0.95)).mean()
        loss = F.cross_entropy(own, labels) + unlabelled
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for key, value in network.named_parameters():
                average[key].lerp_(value, 0.001)
        clock.advance(loss=float(loss.detach()))
    rates = clock.rates(steps // 3)
    return {"steps_per_second": statistics.median(rates), "raw": rates, "workers": workers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--peer-steps", type=int, default=60)
    parser.add_argument("--contenders", nargs="+", help="of those in the file; default all")
    parser.add_argument("--workers", type=int, default=min(12, os.cpu_count() or 1))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/instant_speed.json"))
    options = parser.parse_args()
    logging.getLogger("fewer.learn.graphed").setLevel(logging.DEBUG)
    logging.basicConfig()
    train = pictures(400 if options.small else 20_000)
    skip = options.steps // 4
    card = platform.machine() if options.device == "cpu" else torch.cuda.get_device_name()
    found: dict[str, object] = {
        "device": card,
        "torch": torch.__version__,
        "settings": {"network": "wrn-28-2", "side": 32, "batch": 64, "ratio": 7, "steps": options.steps},
    }
    own, other = (train, options.steps, skip, options), (train, options, options.peer_steps)
    contenders = {
        "instant": lambda: ours(own[0], "instant", *own[1:]),
        "peer, views ready": lambda: peer(*other, 0),
        "peer": lambda: peer(*other, options.workers),
        "fixmatch": lambda: ours(own[0], "fixmatch", *own[1:]),
        "instant, one view": lambda: ours(own[0], "instant", *own[1:], views=1),
        "instant, flattened": lambda: ours(own[0], "instant", *own[1:], posterior="flattened"),
        "augmentation, ms": lambda: augmentation(train, options.device, 50),
        "instant, launched": lambda: launched(train, options),
        "peer, 4 workers": lambda: peer(*other, 4),
    }
    for name, contender in contenders.items():
        if options.contenders and name not in options.contenders:
            continue
        try:
            found[name] = contender()
        except Exception as error:  # one that fails must not cost the others
            found[name] = {"failed": repr(error)}
        write_json(options.output, found)
        print(name, {k: v for k, v in found[name].items() if k != "raw"}, flush=True)  # pyright: ignore
    print(json.dumps({k: v for k, v in found.items() if isinstance(v, str)}))


def launched(train: LabelledImages, options: argparse.Namespace) -> dict:
    """Ours without graphs."""
    call = GraphedFunction.__call__
    GraphedFunction.__call__ = lambda own, *inputs: own.function(*inputs)  # type: ignore[method-assign]
    try:
        return ours(train, "instant", options.steps // 3, options.steps // 10, options)
    finally:
        GraphedFunction.__call__ = call  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
