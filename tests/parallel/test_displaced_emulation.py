"""Displaced bands of diffusers' models against an emulation on the whole picture that shares no code.

Rank i is one run of the untouched model on the whole picture, in which every layer that looks beyond its
token finds, outside band i, what the other ranks had there in the step before. Only band i of it counts.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm

from fewer.parallel.attach import parallelize
from fewer.parallel.group import Group
from fewer.parallel.plan import ParallelPlan
from fewer.parallel.simulated import run_simulated
from tests.parallel.test_for_diffusers import MODELS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
TIMES = (900.0, 600.0, 300.0, 100.0)


class Emulation:
    """`stale` holds what every such layer read in the step before, for the whole picture."""

    def __init__(self, model: nn.Module, parts: int) -> None:
        self.parts, self.rank, self.exact, self.texts = parts, 0, True, 0
        self.stale: dict[str, Tensor] = {}
        self.fresh: dict[str, Tensor] = {}
        self.moments: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.GroupNorm):
                module.forward = self._normed(name, module)
            elif isinstance(module, nn.Conv2d) and max(module.padding) > 0 and name != "conv_in":
                module.register_forward_pre_hook(self._mixed(name, 2), with_kwargs=True)
            elif name.endswith("attn1") or type(module).__name__ == "FluxAttention":
                module.register_forward_pre_hook(self._mixed(name, 1), with_kwargs=True)

    def own(self, length: int) -> slice:
        """Band of this rank along an axis of so many rows or tokens; the first bands take one more."""
        small, larger = divmod(length, self.parts)
        starts = [rank * small + min(rank, larger) for rank in range(self.parts + 1)]
        return slice(starts[self.rank], starts[self.rank + 1])

    def _mixed(self, name: str, axis: int) -> Callable:
        def hook(module: nn.Module, arguments: tuple, options: dict) -> tuple[tuple, dict]:
            whole = arguments[0] if arguments else options["hidden_states"]
            first = self.texts if "single" in name else 0  # FLUX's single blocks: texts stand before images
            images = whole.narrow(axis, first, whole.shape[axis] - first)
            place = [slice(None)] * axis + [self.own(images.shape[axis])]
            self.fresh.setdefault(name, images.clone())[tuple(place)] = images[tuple(place)]
            if not self.exact:
                mixed = self.stale[name].clone()
                mixed[tuple(place)] = images[tuple(place)]
                whole = torch.cat([whole.narrow(axis, 0, first), mixed], dim=axis)
            return (
                ((whole, *arguments[1:]), options) if arguments else ((), options | {"hidden_states": whole})
            )

        return hook

    def _normed(self, name: str, module: nn.GroupNorm) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            def moments(part: Tensor) -> Tensor:
                grouped = part.double().reshape(len(part), module.num_groups, -1)
                return torch.stack([grouped.mean(-1), grouped.square().mean(-1)])

            own, whole = moments(x[:, :, self.own(x.shape[2])]), moments(x)
            if self.exact:
                used, result = whole, group_norm(x, module.num_groups, module.weight, module.bias, module.eps)
            else:
                before, own_before = self.moments[name, self.rank]
                used = before + own - own_before
                variance = used[1] - used[0].square()
                variance = torch.where(variance < 0, own[1] - own[0].square(), variance)
                grouped = x.double().reshape(len(x), module.num_groups, -1)
                flat = (grouped - used[0][..., None]) / (variance[..., None] + module.eps).sqrt()
                result = (
                    flat.reshape(x.shape).float() * module.weight[:, None, None] + module.bias[:, None, None]
                )
            self.fresh[f"{name} own {self.rank}"] = own
            return result

        return forward

    def step(self, call: Callable[[], Tensor], counts: Callable[[Tensor], Tensor], exact: bool) -> Tensor:
        """All ranks one after the other; `counts` says to which place in the cut an output belongs."""
        self.exact, self.fresh, whole = exact, {}, torch.zeros(())
        for rank in range(self.parts):
            self.rank = rank
            out = call()
            places = counts(out)
            band = self.own(int(places.max()) + 1)
            whole = whole + out * ((places >= band.start) & (places < band.stop))
        for name, value in list(self.fresh.items()):
            layer, _, rank = name.partition(" own ")
            if rank:  # every rank's own moments, and their mean over (equal) bands
                everyone = [self.fresh[f"{layer} own {each}"] for each in range(self.parts)]
                self.moments[layer, int(rank)] = (torch.stack(everyone).mean(0), value)
            else:
                self.stale[name] = value
        return whole


PLACES = {
    "unet": lambda out: torch.arange(out.shape[2])[:, None],  # rows
    "flux": lambda out: torch.arange(out.shape[1])[:, None],  # tokens
    # tokens of 2 x 2 latents
    "pixart": lambda out: torch.arange(out[0, 0].numel() // 4).view(-1, out.shape[3] // 2).repeat_interleave(
        2, 0).repeat_interleave(2, 1),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "devices"), [("unet", 2), ("unet", 4), ("pixart", 2), ("pixart", 3), ("flux", 3)]
)
@torch.no_grad()
def test_displaced_steps_equal_the_emulation(name: str, devices: int) -> None:
    model, start, call = MODELS[name]()
    plan = ParallelPlan(devices=devices, mode="displaced", warmup_steps=0)

    def rank_main(group: Group) -> Tensor:
        latents, parallel = start, parallelize(model, plan, group)
        for time in TIMES:
            latents = latents - 0.1 * call(parallel, latents, time)
        return latents

    found = run_simulated(devices, rank_main)[0]
    emulation, expected, exactly = Emulation(model, devices), start, start
    emulation.texts = 3
    for index, time in enumerate(TIMES):
        expected = expected - 0.1 * emulation.step(
            lambda x=expected, t=time: call(model, x, t), PLACES[name], exact=index == 0
        )
    emulation.exact = True
    for time in TIMES:
        exactly = exactly - 0.1 * call(model, exactly, time)
    apart, stale = (float((other - expected).norm()) for other in (found, exactly))
    assert stale > 1e-4 * float(expected.norm())
    assert apart <= 1e-5 * float(expected.norm())
    assert apart < stale / 30
