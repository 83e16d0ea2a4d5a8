"""A FLUX-shaped joint block and single block: bf16 eager and compiled, NF4, torchao fp8, and our h8.

runs on: gpu. Random weights of the published widths (3072 wide, 24 heads, 4096 image and 512 text tokens).
The blocks are written here. Attention is torch's for every contender. What is elementwise is compiled for
the peers; for us it is part of our kernels, norm and rotation of queries and keys one of its own ("compiled
norms" is us without that one). NF4 is bitsandbytes where it is installed, and beside it the same arithmetic
(table look-up compiled, then cuBLAS).
Run: python benchmarks/engine_flux_block.py [--tiny --device cpu] [--output FILE.json]
"""
# bench: gpu, 2 min:

import argparse
import copy
import sys
from collections.abc import Callable
from typing import TypeVar

import torch
from four_bits import DequantizedNF4, h8_layer
from stopwatch import (
    Figures,
    captured,
    contest,
    finish,
    keeping,
    measure,
    needs_gpu,
    options,
    ratios,
    relative_error,
    weight_gib,
)
from torch import Tensor, nn
from torch.nn import functional

from fewer.core.modules import replace_modules
from fewer.kernels.rotary import norm_and_rotate
from fewer.kernels.scratch import WeightScratch
from fewer.quantize.fused import FusedH8, fuse
from fewer.quantize.linear import QuantizedLinear

T = TypeVar("T")


class Attention(nn.Module):
    """Rotary softmax attention of one joint sequence, with RMS norms on queries and keys."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_q, self.norm_k = (nn.RMSNorm(dim // heads, eps=1e-6) for _ in range(2))

    def forward(self, joint: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        query, key, value = self.prepare(joint, turn)
        return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)

    def prepare(self, joint: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Normed and rotated queries and keys, and values."""
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in joint.chunk(3, dim=2)
        )
        return _rotate(self.norm_q(query), turn), _rotate(self.norm_k(key), turn), value


class Stream(nn.Module):
    """One stream of a joint block: its projections and its feed-forward."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def finish(self, x: Tensor, attended: Tensor, six: Tensor) -> Tensor:
        x = x + six[2] * self.out(attended)
        hidden = functional.gelu(self.up(_modulate(x, six[3], six[4])), approximate="tanh")
        return x + six[5] * self.down(hidden)


class JointBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.image, self.text, self.attention = Stream(dim), Stream(dim), Attention(dim, heads)

    def forward(self, image: Tensor, text: Tensor, six: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        streams = ((self.text, text), (self.image, image))
        joint = torch.cat([s.qkv(_modulate(x, six[0], six[1])) for s, x in streams], dim=1)
        attended = self.attention(joint, turn)
        parts = attended.split([text.shape[1], image.shape[1]], dim=1)
        return torch.cat([s.finish(x, a, six) for (s, x), a in zip(streams, parts, strict=True)], dim=1)


class SingleBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(dim, heads)
        self.qkv, self.up = nn.Linear(dim, 3 * dim), nn.Linear(dim, 4 * dim)
        self.attention_out, self.down = nn.Linear(dim, dim), nn.Linear(4 * dim, dim)

    def forward(self, image: Tensor, text: Tensor, six: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        x = torch.cat([text, image], dim=1)
        normed = _modulate(x, six[0], six[1])
        hidden = functional.gelu(self.up(normed), approximate="tanh")
        return x + six[2] * (self.attention_out(self.attention(self.qkv(normed), turn)) + self.down(hidden))


class EngineBlock(nn.Module):
    """A block's layers in h8 through the engine: norms and gates in their kernels, the rest as it was.

    Like a block among others: beside its last product the first weight of the next block is expanded.
    """

    def __init__(
        self, block: nn.Module, dtype: torch.dtype, compiled: bool, fold: bool, rotate: bool = True
    ) -> None:
        """`rotate` takes our kernel for norm and rotation, if it runs here and gives what torch does."""
        super().__init__()
        self.block, self.fold = copy.deepcopy(block), fold
        # Text and image run side by side, so each has buffers of its own.
        self.scratches = {"text": WeightScratch(), "image": WeightScratch()}
        self.side = torch.cuda.Stream() if compiled else None
        self.products: dict[str, FusedH8] = {}
        replace_modules(self.block, lambda name, module: self._build(name, module, dtype))
        orders = [("up", "qkv", "attention_out", "down")]
        if isinstance(self.block, JointBlock):
            orders = [
                tuple(f"{stream}.{name}" for name in ("qkv", "out", "up", "down"))
                for stream in self.scratches
            ]
        for order in orders:
            for name, following in zip(order, (*order[1:], order[0]), strict=True):
                self.products[name].following = self.products[following]
        attention = self.block.attention
        self.rotate = rotate and rotates_rightly(attention, dtype, "cuda" if compiled else "cpu")

        def prepare(parts: list[Tensor], turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            return attention.prepare(torch.cat(parts)[None], turn)

        def add(rows: list[Tensor], updates: list[tuple[Tensor, ...]], gate: Tensor) -> Tensor:
            return torch.cat([x + gate * sum(u) for x, u in zip(rows, updates, strict=True)])[None]

        self.prepare, self.add = (torch.compile(f) if compiled else f for f in (prepare, add))

    def _build(self, name: str, module: nn.Module, dtype: torch.dtype) -> nn.Module | None:
        if type(module) is not nn.Linear:
            return None
        layer = h8_layer(module)
        scratch = self.scratches["text" if name.startswith("text") else "image"]
        product = fuse([layer], scratch, dtype, fold=self.fold)
        assert product is not None
        self.products[name] = product
        return layer

    def attend(self, joint: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """Of the whole sequence's joint products, (rows, 3 · dim), which are changed in place."""
        if self.rotate:
            query, key, value = prepare_in_place(self.block.attention, joint, turn)
        else:
            query, key, value = self.prepare([joint], turn)
        return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)[0]

    def forward(self, image: Tensor, text: Tensor, six: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        result = self.run(image, text, six, turn)
        for scratch in self.scratches.values():
            scratch.join(image.device)
        return result

    def run(self, image: Tensor, text: Tensor, six: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        six, p = six.flatten(1, 2), self.products
        if isinstance(self.block, SingleBlock):
            rows = torch.cat([text, image], dim=1)[0]
            if self.fold:  # which share smoothing, so without a branch of its own each reads the same codes
                quantized, _ = p["up"].read(rows, shift=six[0], scale=six[1])
                hidden = p["up"].multiply(quantized, rows.dtype, "gelu")
                joint = p["qkv"].multiply(quantized, rows.dtype)
            else:
                hidden, _ = p["up"](rows, activation="gelu", shift=six[0], scale=six[1])
                joint, _ = p["qkv"](rows, shift=six[0], scale=six[1])
            attended, _ = p["attention_out"](self.attend(joint, turn))
            return self.add([rows], [(attended, p["down"](hidden)[0])], six[2])
        streams = {"text": text[0], "image": image[0]}
        lengths = [text.shape[1], image.shape[1]]
        joint = text.new_empty(sum(lengths), 3 * text.shape[2])
        places = dict(zip(streams, joint.split(lengths), strict=True))
        self.both(
            lambda name: p[f"{name}.qkv"](streams[name], shift=six[0], scale=six[1], out=places[name])[0]
        )
        attended = self.attend(joint, turn).split(lengths)
        parts = dict(zip(streams, attended, strict=True))

        def finish(name: str) -> tuple[Tensor, tuple[Tensor]]:
            update, _ = p[f"{name}.out"](parts[name])
            hidden, rows = p[f"{name}.up"](
                streams[name], update=update, gate=six[2], shift=six[3], scale=six[4], activation="gelu"
            )
            return rows, (p[f"{name}.down"](hidden)[0],)

        found = self.both(finish)
        return self.add([rows for rows, _ in found], [update for _, update in found], six[5])

    def both(self, run: Callable[[str], T]) -> list[T]:
        """Of text and image; on a GPU the few rows of the text beside those of the image."""
        if self.side is None:
            return [run("text"), run("image")]
        current = torch.cuda.current_stream()
        self.side.wait_stream(current)
        with torch.cuda.stream(self.side):
            text = run("text")
        image = run("image")
        current.wait_stream(self.side)
        return [text, image]

    def weight_gib(self) -> float:
        """Of the layers as they rest: codes, scales, branches, biases."""
        tensors = [b for m in self.block.modules() if isinstance(m, QuantizedLinear) for b in m.buffers()]
        return sum(tensor.nbytes for tensor in tensors) / 2**30


def prepare_in_place(
    attention: Attention, joint: Tensor, turn: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """As `Attention.prepare` for one sequence, by our kernel: three views of `joint`, which it changes."""
    norms, heads = (attention.norm_q, attention.norm_k), attention.heads
    norm_and_rotate(joint, *(norm.weight for norm in norms), *turn, heads, norms[0].eps)
    query, key, value = joint.view(len(joint), 3, heads, -1).unbind(1)
    return tuple(part[None].transpose(1, 2) for part in (query, key, value))  # type: ignore[return-value]


def rotates_rightly(attention: Attention, dtype: torch.dtype, device: str) -> bool:
    """Whether the kernel compiles here and agrees with torch on a few rows."""
    dim = attention.norm_q.weight.shape[0]
    joint, angles = torch.randn(5, 3 * attention.heads * dim), torch.randn(5, dim // 2)
    joint, angles = joint.to(device, dtype), angles.to(device, dtype)
    turn = (angles.cos(), angles.sin())
    wanted = attention.prepare(joint[None].clone(), turn)
    try:
        found = prepare_in_place(attention, joint.clone(), turn)
        error = max(relative_error(a, b) for a, b in zip(found, wanted, strict=True))
    except Exception as problem:  # of a compiler, a driver or a launch
        error = float("nan")
        print(f"norm and rotation stay torch's: {problem}", file=sys.stderr)
    return error < 2e-2


def in_nf4(block: nn.Module) -> nn.Module:
    """The arithmetic of bitsandbytes for many rows, compiled."""
    block = copy.deepcopy(block)
    replace_modules(block, lambda name, module: DequantizedNF4(module) if type(module) is nn.Linear else None)
    return torch.compile(block)


def in_bitsandbytes(block: nn.Module, dtype: torch.dtype, device: str) -> nn.Module:
    import bitsandbytes

    def build(name: str, module: nn.Module) -> nn.Module | None:
        if type(module) is not nn.Linear:
            return None
        layer = bitsandbytes.nn.Linear4bit(
            module.in_features, module.out_features, compute_dtype=dtype, quant_type="nf4"
        )
        layer.load_state_dict(module.state_dict())
        return layer

    block = copy.deepcopy(block)
    replace_modules(block, build)
    return block.to(device)


def in_fp8(block: nn.Module) -> nn.Module:
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    block = copy.deepcopy(block)
    quantize_(block, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()))
    return torch.compile(block)


def contenders(
    block: nn.Module, inputs: tuple, dtype: torch.dtype, given: argparse.Namespace
) -> dict[str, Callable[[], Figures]]:
    expected = block(*inputs)

    def row(build: Callable[[], nn.Module], graph: bool = True) -> Figures:
        model = build()
        call = lambda: model(*inputs)  # noqa: E731
        facts = measure(captured(call, given.device) if graph else call, given.device, given.runs)
        weights = model.weight_gib() if isinstance(model, EngineBlock) else weight_gib(model)
        return {**facts, "weights_gib": weights, "relative_error": relative_error(call(), expected)}

    gpu = given.device.startswith("cuda")

    def ours(fold: bool, rotate: bool) -> Figures:
        built: list[EngineBlock] = []

        def build() -> nn.Module:
            built.append(EngineBlock(block, dtype, gpu, fold, rotate))
            return built[0]

        return {**row(build), "norm_and_rotation_in_one_kernel": built[0].rotate}

    forms = {
        "h8 fewer": (False, True),
        "h8 fewer, branch folded": (True, True),
        "h8 fewer, compiled norms": (False, False),
    }
    ways: dict[str, Callable[[], Figures]] = {
        name: lambda form=form: ours(*form) for name, form in forms.items()
    }
    others: dict[str, Callable[[], Figures]] = {
        "bf16 compiled": lambda: row(lambda: torch.compile(block)),
        "nf4, its arithmetic compiled": lambda: row(lambda: in_nf4(block)),
        "nf4 bitsandbytes": lambda: row(lambda: in_bitsandbytes(block, dtype, given.device)),
        "fp8 torchao compiled": lambda: row(lambda: in_fp8(block)),
    }
    ways |= {name: needs_gpu(given.device, run) for name, run in others.items()}
    ways["bf16 eager"] = lambda: row(lambda: block)
    return ways


def inputs_of(given: argparse.Namespace, dtype: torch.dtype) -> tuple[int, int, tuple]:
    """Width, heads, and the inputs of a block."""
    dim, heads, image, text = (64, 2, 5, 3) if given.tiny else (3072, 24, 4096, 512)

    def tensor(*shape: int) -> Tensor:
        return torch.randn(shape).to(given.device, dtype)

    angles = tensor(image + text, dim // heads // 2)
    turn = (angles.cos(), angles.sin())
    return dim, heads, (tensor(1, image, dim), tensor(1, text, dim), 0.1 * tensor(6, 1, 1, dim), turn)


@torch.no_grad()
def main() -> None:
    given = options("engine_flux_block")
    dtype = torch.bfloat16 if given.device.startswith("cuda") else torch.float32
    torch.manual_seed(0)
    dim, heads, inputs = inputs_of(given, dtype)
    results: dict[str, object] = {}
    for name, kind in (("joint block", JointBlock), ("single block", SingleBlock)):
        block = kind(dim, heads).to(given.device, dtype)
        keep = keeping("engine_flux_block", results, name, given)
        rows = contest(contenders(block, inputs, dtype, given), None, given.only, keep)
        results[name] = {
            "contenders": rows,
            "times_as_long_as_h8": ratios(rows, "h8 fewer"),
            "times_as_long_as_h8_folded": ratios(rows, "h8 fewer, branch folded"),
        }
    finish("engine_flux_block", results, given)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    (cos, sin), (even, odd) = turn, x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


if __name__ == "__main__":
    main()
