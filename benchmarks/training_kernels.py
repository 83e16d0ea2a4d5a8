"""The kernels of the transformer's training step one by one, and the gradients of the whole step.

python benchmarks/training_kernels.py writes benchmarks/results/training_kernels.json: milliseconds of each at
the built-in transformer's sizes (batch 256, 256 tokens, width 384), the older kernel beside it, relative
distances from fp64 on a few pictures, and how far the gradients of all parameters are from fp32's.
"""
# bench: gpu, 1 min:

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from record import record
from torch import Tensor
from training_step import of_width, random_batch

from fewer.generate.scenes.recipe import fresh_transformer
from fewer.generate.training.flow import flow_loss
from fewer.generate.training.quick_step import precision
from fewer.kernels import gated_depthwise, joint_attention, joint_text_attention, modulation
from fewer.kernels.triton import gated_depthwise as older_middle
from fewer.kernels.triton import short_attention, text_attention

FEW = 4
"""On so many pictures the results are compared with fp64's."""


@dataclass(frozen=True)
class Sizes:
    """Of the tensors."""

    batch: int
    side: int
    heads: int
    dim: int
    length: int

    @property
    def width(self) -> int:
        return self.heads * self.dim


def distance(ours: Tensor, exact: Tensor) -> float:
    return float(f"{float((ours.double() - exact).norm() / exact.norm()):.2e}")


def milliseconds(call: Callable[[], object], device: torch.device) -> float | None:
    call()
    if device.type != "cuda":
        return None
    from triton.testing import do_bench

    return round(float(do_bench(call, warmup=10, rep=60, return_mode="median")), 4)  # type: ignore[arg-type]


def kernels(s: Sizes, device: torch.device) -> Iterator[tuple[str, Callable[[], object], float | None]]:
    """Name, call, and its distance from fp64 (`None` for what is only timed)."""
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    tokens, wide = s.side**2, 5 * s.width

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, device=device) * scale).to(kind)

    x, g = draw(s.batch, s.side, s.side, wide), draw(s.batch, s.side, s.side, wide // 2)
    weight, bias = draw(wide, 1, 3, 3, scale=0.4), draw(wide, scale=0.3)
    few = [g[:FEW].contiguous(), x[:FEW].contiguous(), weight, bias, True]
    exact = gated_depthwise.reference_backward(*(t.double() for t in few[:4]), True)
    off = distance(gated_depthwise.gated_depthwise_backward(*few)[0], exact[0])  # type: ignore[arg-type]
    yield "middle backward", lambda: gated_depthwise.gated_depthwise_backward(g, x, weight, bias, True), off
    if device.type == "cuda":
        older = older_middle.launch_gated_depthwise_backward
        yield "middle backward, older", lambda: older(g, x, weight, bias, True), None

    rows = [draw(s.batch, tokens, s.width) for _ in range(4)]
    gate, scale = draw(s.batch, s.width), draw(s.batch, s.width)
    arguments = (*rows, gate, scale, 1e-6)
    exact = modulation.reference_gated_norm_backward(*(t[:FEW].double() for t in arguments[:6]), 1e-6)
    off = distance(modulation.gated_norm_backward(*(t[:FEW] for t in arguments[:6]), 1e-6)[0], exact[0])
    yield "norm backward", lambda: modulation.gated_norm_backward(*arguments), off

    joint, above = draw(s.batch, tokens, 3 * s.width), draw(s.batch, tokens, s.width)
    norms = (draw(s.width).abs() + 0.5, draw(s.width).abs() + 0.5)
    inverse = joint_attention.inverse_roots(joint.flatten(0, 1), s.width, 2)
    _, states = joint_attention.joint_attention(joint, inverse, norms, s.heads)
    attention = joint_attention.joint_attention_backward
    exact = joint_attention.reference_joint_attention_backward(
        above[:FEW].double(), joint[:FEW].double(), inverse[: FEW * tokens].double(), norms, s.heads, 1e-15
    )
    off = distance(attention(above, joint, inverse, norms, states)[:FEW], exact)
    yield "linear attention backward", lambda: attention(above, joint, inverse, norms, states), off
    apart = [part.unflatten(2, (s.heads, s.dim)).contiguous() for part in (above, *joint.chunk(3, 2))]
    if device.type == "cuda":
        older = short_attention.launch_short_attention_backward
        yield "linear attention backward, older (no norms)", lambda: older(*apart, 1e-15), None

    keys, values = draw(s.batch, s.length, s.width), draw(s.batch, s.length, s.width)
    visible = torch.rand(s.batch, s.length, device=device) < 0.5
    visible[:, 0] = True
    text = (rows[0], inverse[:, 0].contiguous(), norms[0], keys, values, visible)
    found = torch.empty_like(keys), torch.empty_like(values)
    wide_text = [t[:FEW].double() for t in (text[0], keys, values)]
    exact = joint_text_attention.reference_joint_text_attention_backward(
        above[:FEW].double(), wide_text[0], text[1][: FEW * tokens].double(), norms[0].double(),
        *wide_text[1:], visible[:FEW], s.heads,
    )  # fmt: skip
    reading = joint_text_attention.joint_text_attention_backward
    off = distance(reading(above, *text, s.heads, found)[:FEW], exact[0])
    yield "text attention backward", lambda: reading(above, *text, s.heads, found), off
    if device.type == "cuda":
        older = text_attention.launch_text_attention_backward
        words = [part.unflatten(2, (s.heads, s.dim)) for part in (keys, values)]
        yield (
            "text attention backward, older (no norm)",
            lambda: older(apart[0], apart[1], *words, visible),
            None,
        )

    flat, three = rows[0].flatten(0, 1), draw(3 * s.width, s.width)
    yield "q, k, v as one product", lambda: flat @ three.t(), None
    yield "q, k, v as three", lambda: [flat @ part.t() for part in three.chunk(3)], None


def gradients_off(device: torch.device, width: int, pictures: int, length: int) -> dict[str, float]:
    """Distances of all parameters' gradients in bf16 from those in fp32, by the form of the step."""
    torch.manual_seed(0)
    net = fresh_transformer(of_width(width), 0).to(device).train()
    torch.nn.init.normal_(net.proj_out.weight, std=0.05)  # zeros at a start, which no gradient passes
    batch = random_batch(net, pictures, length, device)

    def gradients(dtype: torch.dtype) -> Tensor:
        with precision(dtype, device):
            loss = flow_loss(net, batch)
        return torch.cat(
            [part.flatten().double() for part in torch.autograd.grad(loss, list(net.parameters()))]
        )

    exact = gradients(torch.float32)
    modules = distance(gradients(torch.bfloat16), exact)
    net.whole = True
    return {"modules": modules, "whole": distance(gradients(torch.bfloat16), exact)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    device = torch.device(options.device)
    large = device.type == "cuda"
    sizes = Sizes(256, 16, 12, 32, 32) if large else Sizes(FEW, 4, 2, 16, 5)
    torch.manual_seed(0)
    rows: dict[str, object] = {}
    for name, call, off in kernels(sizes, device):
        rows[name] = {"ms": milliseconds(call, device), "off": off}
        print(name, rows[name], flush=True)
    off = gradients_off(device, 384 if large else 32, 32 if large else 2, sizes.length)
    print("gradients against fp32", off)
    record("training_kernels", {"kernels": rows, "gradients_off_fp32": off})


if __name__ == "__main__":
    main()
