"""Networks as functions of their parameters, several at once.

A network is a module that is never stepped; its parameters are a dictionary of tensors. With a leading axis
("stacked") they are many networks, which `torch.func.vmap` runs as one: twenty experts or ten classes for
a few kernel launches. The same results come from a plain loop; `batched=None` chooses by device and size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fewer.learn.distillation.architectures import Classifier

Parameters = dict[str, Tensor]


def fresh_parameters(
    network: Classifier, generator: torch.Generator, device: torch.device | str = "cpu"
) -> Parameters:
    """New starting values: PyTorch's default, uniform within 1/sqrt(fan-in); norms start at 1 and 0.

    Drawn on the CPU, so that one seed gives one network on every device.
    """
    parameters: Parameters = {}
    for name, module in network.named_modules():
        own = dict(module.named_parameters(recurse=False))
        bound = 1.0
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            bound = 1.0 / sqrt(module.weight[0].numel())
        for leaf, value in own.items():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                start = (torch.rand(value.shape, generator=generator) * 2 - 1) * bound
            else:
                start = torch.ones(value.shape) if leaf == "weight" else torch.zeros(value.shape)
            parameters[f"{name}.{leaf}" if name else leaf] = start.to(device)
    return parameters


def stack(parameters: Sequence[Parameters]) -> Parameters:
    """Many networks as one dictionary whose tensors have a leading axis."""
    return {name: torch.stack([one[name] for one in parameters]) for name in parameters[0]}


def member(stacked: Parameters, index: int) -> Parameters:
    """The parameters of one network of a stack (views, no copies)."""
    return {name: value[index] for name, value in stacked.items()}


def stack_size(stacked: Parameters) -> int:
    return len(next(iter(stacked.values())))


def logits(
    network: Classifier, parameters: Parameters, images: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch classes"]:
    """What the network with these parameters answers."""
    return functional_call(network, parameters, (images,))


def embedding(
    network: Classifier, parameters: Parameters, images: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch features"]:
    """What the head gets: the body's output."""
    body = {name[5:]: value for name, value in parameters.items() if name.startswith("body.")}
    return functional_call(network.body, body, (images,))


def classification_loss(
    outputs: Float[Tensor, "batch classes"], labels: Shaped[Tensor, " batch ..."]
) -> Tensor:
    """Mean cross-entropy against class numbers (batch,) or class probabilities (batch, classes)."""
    return nn.functional.cross_entropy(outputs, labels)


def gradients(
    network: Classifier,
    parameters: Parameters,
    images: Float[Tensor, "batch channels height width"],
    labels: Shaped[Tensor, " batch ..."],
) -> Parameters:
    """Gradient of the mean loss by parameter; differentiable in images, labels and parameters."""

    def loss(values: Parameters) -> Tensor:
        return classification_loss(functional_call(network, values, (images,)), labels)

    return grad(loss)(parameters)


def class_gradients(
    network: Classifier,
    parameters: Parameters,
    images: Float[Tensor, "classes batch channels height width"],
    labels: Shaped[Tensor, "classes batch ..."],
    batched: bool | None = None,
) -> Parameters:
    """One gradient per class: tensors (classes, …), the same parameters for all."""

    def one(values: Parameters, pictures: Tensor, targets: Tensor) -> Parameters:
        def loss(inner: Parameters) -> Tensor:
            return nn.functional.cross_entropy(functional_call(network, inner, (pictures,)), targets)

        return grad(loss)(values)

    if _batched(batched, images, images.shape[0] * images.shape[1]):
        return vmap(one, in_dims=(None, 0, 0))(parameters, images, labels)
    return stack(
        [one(parameters, pictures, targets) for pictures, targets in zip(images, labels, strict=True)]
    )


def over_stack(
    function: Callable[..., Parameters],
    stacked: Parameters,
    *inputs: Tensor,
    batched: bool | None = None,
) -> Parameters:
    """`function(parameters, *inputs[i])` for every network i of the stack; each input has that leading
    axis.
    """
    if _batched(batched, inputs[0], inputs[0].shape[0] * inputs[0].shape[1]):
        return vmap(function)(stacked, *inputs)
    count = stack_size(stacked)
    return stack(
        [function(member(stacked, index), *(one[index] for one in inputs)) for index in range(count)]
    )


def _batched(choice: bool | None, images: Tensor, pictures: int) -> bool:
    # Measured on a CPU: vmap wins below some tens of pictures, the loop by 1.5 to 2 times above. On a GPU the
    # loop is recorded as a graph, so that its launches cost nothing, and its convolutions are not grouped.
    return choice if choice is not None else images.device.type == "cpu" and pictures <= 32
