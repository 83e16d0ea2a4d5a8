"""The built-in model's transformer on disk: four bits a weight in several ways, at about the same bytes.

Every way rounds the dense weights, and the network is then drawn with as ordinary weights again. Compared are
bytes, the relative error of the network's output along the dense network's own path (every fifth evaluation),
and the pictures at the same noise: PSNR, SSIM, and what the judge of builtin_model.py finds in them. Prompts
are of the validation split, calibration takes captions of training scenes. Run:
python benchmarks/four_bits_package.py [--device cuda --prompts 200 --batch 100] [--model FOLDER]
"""
# bench: gpu, 3 min: --device cuda --prompts 200 --batch 100

import argparse
import copy
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from math import isfinite
from pathlib import Path

import torch
from builtin_model import JUDGE
from quantize_peers import BLOCK, nf4_reference
from quantize_pictures import Model, Prompts, against, judge_of, pictures
from torch import Tensor, nn

from fewer.core.device import pick_device
from fewer.core.files import write_json
from fewer.generate.compact import compact, expand, is_large
from fewer.generate.scenes.captions import full_caption
from fewer.generate.scenes.judges import SpriteJudge, judge_pictures
from fewer.generate.scenes.pool import draw_scenes
from fewer.quantize.formats import FORMATS, round_weight
from fewer.quantize.importance import Importance, importance
from fewer.quantize.package import packed

EVERY, ALONG = 5, 8  # evaluations of the path, and pictures of each, that the output's error is taken on
SCALE_BITS = 16
Tensors = dict[str, Tensor]


def plain_int4(tensors: Tensors, known: Importance) -> tuple[Tensors, int]:
    """Nearest of 15 levels in groups of 64 with 16-bit scales."""
    return in_groups(tensors, lambda rows: round_weight(rows, FORMATS["w4a16"]))


def nf4(tensors: Tensors, known: Importance) -> tuple[Tensors, int]:
    """NF4 in blocks of 64 with 16-bit scales."""
    return in_groups(tensors, nf4_reference)


def in_groups(tensors: Tensors, rounded: Callable[[Tensor], Tensor]) -> tuple[Tensors, int]:
    """Matrices whose rows divide into blocks in four bits, every other large weight in a byte."""
    rest = {name: t for name, t in tensors.items() if not (is_large(t) and t[0].numel() % BLOCK == 0)}
    four = {name: rounded(t.flatten(1)).view(t.shape) for name, t in tensors.items() if name not in rest}
    small = compact(rest)
    bits = sum(t.numel() * 4 + t.numel() // BLOCK * SCALE_BITS for t in four.values())
    return four | expand(small, torch.float32), bits // 8 + byte_count(small)


def one_byte(tensors: Tensors, known: Importance) -> tuple[Tensors, int]:
    """A byte a weight, one scale a row."""
    small = compact(tensors)
    return expand(small, torch.float32), byte_count(small)


def in_bits(
    bits: float, *, feedback: bool = True, important: bool = True
) -> Callable[..., tuple[Tensors, int]]:
    """Our package, with or without its two halves: error feedback, and rows by their importance."""

    def pack(tensors: Tensors, known: Importance) -> tuple[Tensors, int]:
        even = {
            name: 1 / t.float().flatten(1).square().mean(1).clamp_min(1e-12)
            for name, t in tensors.items()
            if is_large(t)
        }
        noise = known.noise if important else even
        small = packed(tensors, Importance(known.moments if feedback else {}, known.rows_read, noise), bits)
        return expand(small, torch.float32), byte_count(small)

    return pack


WAYS: dict[str, Callable[[Tensors, Importance], tuple[Tensors, int]]] = {
    "a byte a weight": one_byte,
    "int4, groups of 64": plain_int4,
    "NF4, blocks of 64": nf4,
    "Huffman, all rows alike": in_bits(4.1, feedback=False, important=False),
    "Huffman, error feedback": in_bits(4.1, important=False),
    "Huffman, by importance": in_bits(4.1, feedback=False),
    "package, 4.1 bits": in_bits(4.1),
    "package, 3.5 bits": in_bits(3.5),
}


def byte_count(tensors: Tensors) -> int:
    """Bytes of all tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


class Way:
    """Evaluations of the dense network along its own way from noise to pictures."""

    def __init__(self, prompts: Prompts) -> None:
        self.prompts, self.seen = prompts, []

    def record(self, network: nn.Module, steps: int) -> Tensor:
        """Draws with `network` and keeps some of its evaluations; returns the latents."""
        plain, count = network.denoise, [0]

        def denoise(latents: Tensor, times: Tensor, text: object) -> Tensor:
            output = plain(latents, times, text)
            batch, place = divmod(count[0], steps)
            if batch == 0 and place % EVERY == EVERY // 2:
                rows = self.rows(len(latents))
                self.seen.append((latents[rows].clone(), times[rows].clone(), output[rows].clone()))
            count[0] += 1
            return output

        network.denoise = denoise
        try:
            return self.prompts.latents(network, steps, torch.float32)
        finally:
            del network.denoise

    @staticmethod
    def rows(batch: int) -> Tensor:
        """Some pictures of a guided batch, their empty prompts first."""
        half = batch // 2
        some = torch.arange(min(ALONG, half))
        return torch.cat([some, half + some])

    def error(self, network: nn.Module) -> float:
        """Relative error of the network's output, all evaluations together."""
        tokens, mask, _ = self.prompts.batches[0]
        rows = self.rows(len(tokens))
        text = network.prepare(tokens[rows], mask[rows])
        lost = whole = 0.0
        for latents, times, expected in self.seen:
            lost += (network.denoise(latents, times, text) - expected).square().sum().item()
            whole += expected.square().sum().item()
        return (lost / whole) ** 0.5


def main() -> None:
    options = arguments()
    model = Model(options.model, pick_device(options.device))
    vocabulary, judge = judge_of(options.judge, model.device)
    scenes = draw_scenes(vocabulary, options.prompts, "validation", options.seed + 3)
    drawn = Prompts(options, model, "held-out", [full_caption(scene) for scene in scenes])
    read = [full_caption(scene) for scene in draw_scenes(vocabulary, 512, "train", 100)]
    calibration = Prompts(options, model, "calibration", read[: options.calibration_prompts])
    texts = Prompts(options, model, "texts", read)

    def calibrate() -> None:
        with torch.inference_mode():
            calibration.latents(model.transformer, 8, torch.float32)
            for tokens, mask, _ in texts.batches:
                half = len(tokens) // 2
                for row in range(half, len(tokens)):
                    model.transformer.prepare(tokens[row : row + 1], mask[row : row + 1])

    began = time.perf_counter()
    known = importance(model.transformer, calibrate)
    seconds = {"calibrate": round(time.perf_counter() - began, 1)}
    with torch.inference_mode():
        path = Way(drawn)
        expected = pictures(model.autoencoder, path.record(model.transformer, options.steps))
    ways = {
        "dense": {
            "bytes_in_bf16": 2 * sum(p.numel() for p in model.transformer.parameters()),
            "judges": judged(judge, expected, scenes),
        }
    }
    for name in options.ways:
        ways[name] = row(name, model, known, path, expected, judge, scenes, options.steps)
        print(name, ways[name], flush=True)
        write_json(options.output, facts(options, model, seconds) | {"ways": ways})


def row(
    name: str,
    model: Model,
    known: Importance,
    path: Way,
    expected: Tensor,
    judge: SpriteJudge,
    scenes: list,
    steps: int,
) -> dict[str, object]:
    """One way of the table."""
    began = time.perf_counter()
    tensors, size = WAYS[name](dict(model.transformer.state_dict()), known)
    took = time.perf_counter() - began
    network = copy.deepcopy(model.transformer)
    network.load_state_dict({key: tensor.to(model.device) for key, tensor in tensors.items()})
    with torch.inference_mode():
        error = path.error(network)
        found = pictures(model.autoencoder, path.prompts.latents(network, steps, torch.float32))
    parameters = sum(tensor.numel() for tensor in tensors.values())
    return {
        "bytes": size,
        "bits_a_parameter": round(8 * size / parameters, 3),
        "output_error": round(error, 5),
        "seconds_to_round": round(took, 1),
        **against(found, expected),
        "judges": judged(judge, found, scenes),
    }


def judged(judge: SpriteJudge, found: Tensor, scenes: list) -> dict[str, float]:
    """Per cent of what was asked."""
    verdict = asdict(judge_pictures(judge, found, scenes))
    names = ("colour", "count", "left_right", "order", "style", "identity")
    return {name: round(100 * verdict[name], 2) for name in names if isfinite(verdict[name])}


def facts(options: argparse.Namespace, model: Model, seconds: dict[str, float]) -> dict[str, object]:
    """What the table is of."""
    cuda = model.device.type == "cuda"
    return {
        "model": str(options.model),
        "parameters": sum(p.numel() for p in model.transformer.parameters()),
        "prompts": f"{options.prompts} of the validation split, {options.steps} steps",
        "calibration": f"{options.calibration_prompts} drawn in 8 steps, 512 read",
        "seconds": seconds,
        "machine": torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {options.machine}",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="default")
    parser.add_argument("--judge", type=Path, default=JUDGE)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--machine", default="CPU, shared", help="noted beside the figures")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--calibration-prompts", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text", type=Path, help="folder where the prompts' embeddings are kept")
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/four_bits_package.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
