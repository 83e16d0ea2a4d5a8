"""The same training step in several forms, of which the fastest on this machine is taken: memory with
channels last or first, and norms over channels as torch's fused kernel or as the model writes them.
"""
# bench: by hand: residual_curve.py and fewer_tokens.py choose with it (--form fastest)

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from graphed import Trainee, advance_all
from torch import Tensor, nn
from torch.nn import functional

from fewer.generate.autoencoder.blocks import EPSILON, ChannelRMSNorm


@dataclass(frozen=True, slots=True)
class Form:
    """How a network's step is laid out; what it computes is the same up to rounding."""

    name: str
    channels_last: bool
    fused_norms: bool


FORMS = (
    Form("as written", False, False),
    Form("channels last", True, False),
    Form("channels last, fused norms", True, True),
)


def put_in_form(model: nn.Module, form: Form) -> nn.Module:
    """The model itself, its memory and its norms in this form; names of parameters stay."""
    if form.fused_norms:
        for module in model.modules():
            if isinstance(module, ChannelRMSNorm):
                module.forward = partial(fused_norm, module)
    return model.to(memory_format=torch.channels_last) if form.channels_last else model


def fused_norm(module: ChannelRMSNorm, x: Tensor) -> Tensor:
    """As `ChannelRMSNorm.forward`, with sums in fp32 inside torch's kernel, for channels last."""
    with torch.autocast(x.device.type, enabled=False):
        weight, bias = module.weight.to(x.dtype), module.bias.to(x.dtype)
        rows = functional.rms_norm(x.permute(0, 2, 3, 1), (x.shape[1],), weight, EPSILON) + bias
        return rows.permute(0, 3, 1, 2)


def fastest(trainee_in: Callable[[Form], Trainee]) -> Form:
    """The form whose step takes least time; one that fails is passed over and said."""
    found: list[tuple[float, Form]] = []
    rounds = 20 if torch.cuda.is_available() else 1
    for form in FORMS:
        try:
            trainee = trainee_in(form)
            trainee.prepare()
            advance_all([trainee], 3 if rounds > 1 else 0)
            began = time.monotonic()
            advance_all([trainee], rounds)
        except RuntimeError as error:
            print(f"{form.name}: {str(error)[:200]}", flush=True)
            continue
        found.append(((time.monotonic() - began) / rounds, form))
        print(f"{form.name}: {1e3 * found[-1][0]:.2f} ms a step", flush=True)
    return min(found, key=lambda pair: pair[0])[1]
