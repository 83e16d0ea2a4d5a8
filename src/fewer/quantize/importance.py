"""What a package's writer must know of a network: what its layers read, and how much each row matters.

Two figures are taken while the user's function runs the network. Second moments of each layer's inputs say
which errors of a row cancel (GPTQ's curvature). And calls of the network are kept and repeated with
gradients: for random signs v of its output, the squares of d(v . output) / dW are, on average, what a unit of
noise on each weight adds to the squared error of the network's output (Hutchinson's estimate of the
Gauss-Newton matrix's diagonal). Their sums over rows tell how coarse a row may be.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewer.core.device import seeded
from fewer.core.errors import DataError
from fewer.generate.transformer import SanaTransformer
from fewer.generate.transformer.prepared_text import PreparedText

CALLS = {"cpu": 8, "cuda": 64}  # of the network, of all that the user's function makes
MOST_PICTURES = 4  # of one call
_ROUNDS = 2  # of random signs for each call


@dataclass(slots=True)
class Importance:
    """By layer or weight name."""

    moments: dict[str, Float[Tensor, "dim dim"]] = field(default_factory=dict)
    """Mean of x xᵀ over the rows x that a linear layer or 1x1 convolution read."""
    rows_read: dict[str, int] = field(default_factory=dict)
    """How many they were."""
    noise: dict[str, Float[Tensor, "rows"]] = field(default_factory=dict)
    """Squared error of the output per unit of noise on every number of a row, summed over the row."""


@dataclass(slots=True)
class Call:
    """One evaluation of the network, with the text as it was before any layer."""

    latents: Tensor
    timestep: Tensor
    text: Tensor
    mask: Tensor | None
    guidance: Tensor | None


def importance(network: SanaTransformer, calibrate: Callable[[], object], seed: int = 0) -> Importance:
    """Runs `calibrate()`, which evaluates `network` in any way, and then some of its calls with gradients.

    Raises `DataError` if it was never evaluated, or what it read or gave is not finite.
    """
    found = Importance()
    with _moments(network, found), _calls(network) as calls, torch.no_grad():
        calibrate()
    if not calls:
        raise DataError("the calibration did not evaluate the network; there is nothing to package it by")
    for name, total in found.moments.items():
        total /= found.rows_read[name]
        if not torch.isfinite(total).all():
            raise DataError(f"the calibration inputs of layer {name!r} have NaN or Inf; check the data")
    most = CALLS.get(calls[0].latents.device.type, CALLS["cpu"])
    _noise(network, some_of(calls, most, seed), found, seed)
    return found


def some_of(calls: list[Call], most: int, seed: int) -> list[Call]:
    """At most so many of them, drawn: even distances would find the same step of every picture."""
    order = torch.randperm(len(calls), generator=seeded(seed, 8))[:most]
    return [calls[place] for place in order.sort().values.tolist()]


def reads_rows(module: nn.Module) -> bool:
    """Whether a layer multiplies rows of channels by a matrix."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))


@contextmanager
def _moments(network: nn.Module, found: Importance) -> Iterator[None]:
    def watch(name: str, channels_first: bool) -> Callable[..., None]:
        def hook(_: nn.Module, positional: tuple[Tensor, ...]) -> None:
            inputs = positional[0].movedim(1, -1) if channels_first else positional[0]
            with torch.inference_mode(False):  # the sums are worked on afterwards
                rows = inputs.detach().flatten(0, -2).float()
                product = rows.mT @ rows
                found.moments[name] = found.moments[name].add_(product) if name in found.moments else product
            found.rows_read[name] = found.rows_read.get(name, 0) + len(rows)

        return hook

    handles = [
        module.register_forward_pre_hook(watch(name, isinstance(module, nn.Conv2d)))
        for name, module in network.named_modules()
        if reads_rows(module)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _calls(network: SanaTransformer) -> Iterator[list[Call]]:
    """Keeps what `denoise` is asked; texts are recognised by what `prepare` made of them."""
    calls: list[Call] = []
    texts: dict[int, tuple[PreparedText, Tensor, Tensor | None]] = {}
    prepare, denoise = network.prepare, network.denoise

    def prepared(text: Tensor, text_mask: Tensor | None = None, *, drop: bool = True) -> PreparedText:
        made = prepare(text, text_mask, drop=drop)
        texts[id(made)] = (made, text, text_mask)
        return made

    def denoised(
        latents: Tensor, timestep: Tensor, text: PreparedText, guidance: Tensor | None = None
    ) -> Tensor:
        if id(text) in texts:
            _, tokens, mask = texts[id(text)]
            calls.append(Call(latents, timestep, tokens, mask, guidance))
        return denoise(latents, timestep, text, guidance)

    network.prepare, network.denoise = prepared, denoised
    try:
        yield calls
    finally:
        del network.prepare, network.denoise


def _noise(network: SanaTransformer, calls: list[Call], found: Importance, seed: int) -> None:
    weights = {name: weight for name, weight in network.named_parameters() if weight.ndim >= 2}
    wanted = {name: weight.requires_grad for name, weight in network.named_parameters()}
    for name, weight in network.named_parameters():
        weight.requires_grad_(name in weights)
    total = {name: torch.zeros(len(weight), device=weight.device) for name, weight in weights.items()}
    generator, pictures = seeded(seed, 7), 0
    try:
        for call in calls:
            output = network(*_some_pictures(call))
            pictures += len(output)
            for number in range(_ROUNDS):
                signs = torch.randint(0, 2, output.shape, generator=generator).to(output) * 2 - 1
                gradients = torch.autograd.grad(
                    (output * signs).sum(), list(weights.values()), retain_graph=number + 1 < _ROUNDS
                )
                for name, gradient in zip(weights, gradients, strict=True):
                    total[name] += gradient.flatten(1).float().square().sum(dim=1)
    finally:
        for name, weight in network.named_parameters():
            weight.requires_grad_(wanted[name])
    for name, rows in total.items():
        if not torch.isfinite(rows).all():
            raise DataError(f"the gradients of {name!r} have NaN or Inf; check the model and the data")
        found.noise[name] = rows / max(1, pictures * _ROUNDS)


def _some_pictures(call: Call) -> tuple[Tensor | None, ...]:
    """The call's last pictures: those of prompts, behind guidance's empty ones; copies for gradients."""
    some = slice(max(0, len(call.latents) - MOST_PICTURES), None)
    parts = (call.latents, call.timestep, call.text, call.mask, call.guidance)
    return tuple(None if part is None else part[some].clone() for part in parts)
