"""`parallelize`: Module -> Module that computes its band and exchanges what couples the bands.

The result shares every tensor with the original and keeps all tensor names; the original stays as it was.
"""

import copy
from collections.abc import Iterator

from torch import Tensor, nn

from fewer.core.errors import ConfigError
from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.conditional.cat import CaT
from fewer.generate.conditional.condition import ConditionAware
from fewer.generate.conditional.dit import DiT
from fewer.generate.conditional.for_sana import ConditionedSana
from fewer.generate.conditional.u_vit import UViT
from fewer.generate.engine.sana import FusedSana
from fewer.generate.transformer.sana import SanaTransformer
from fewer.parallel.agreement import check_agreement
from fewer.parallel.group import Group
from fewer.parallel.own_group import own_group
from fewer.parallel.plan import ParallelPlan

_DIFFUSERS = ("UNet2DConditionModel", "PixArtTransformer2DModel", "FluxTransformer2DModel")
_SPREAD = ("spread", "session", "band_session")
"""What a module has after `parallelize`."""


def parallelize(module: nn.Module, plan: ParallelPlan, group: Group | None = None) -> nn.Module:
    """Spreads `module` over the ranks of `group`. All ranks must call it, with equal weights and plan.

    Without `group` these are all ranks of torch.distributed, or those that torchrun started.

    For our Sana and DC-AE, plain or accelerated (exact), our DiT, U-ViT and CaT, with condition-aware weights
    or without, and for diffusers' SDXL U-Net, PixArt and FLUX transformers (exact or displaced).
    Raises `ConfigError` for other models, or where ranks, plan and group do not fit together.
    """
    plan = plan.check()
    group = own_group(plan.devices) if group is None else group
    if plan.devices != group.size:
        raise ConfigError(f"the plan is for {plan.devices} devices, the group has {group.size}")
    if any(hasattr(module, name) for name in _SPREAD):
        raise ConfigError("this model is spread over devices already; parallelize the model it was made of")
    check_agreement(group, {"plan": plan}, module)
    if isinstance(module, FusedSana):
        from fewer.parallel.fused_sana import ParallelFusedSana

        return ParallelFusedSana.of_bands(module, plan, group)
    if isinstance(module, SanaTransformer):
        from fewer.parallel.sana import ParallelSana

        return ParallelSana.around(module, plan, group)
    if isinstance(module, DCAutoencoder):
        from fewer.parallel.autoencoder import ParallelAutoencoder

        return ParallelAutoencoder.around(module, plan, group)
    if isinstance(module, DiT | UViT | CaT):
        from fewer.parallel.conditional import parallel_conditional

        return parallel_conditional(module, plan, group)
    if isinstance(module, ConditionAware | ConditionedSana):
        from fewer.parallel.conditional import parallel_conditioned

        return parallel_conditioned(module, plan, lambda base: parallelize(base, plan, group))
    name = type(module).__name__
    if name in _DIFFUSERS:
        from fewer.parallel.for_diffusers import parallel_diffusers

        return parallel_diffusers(module, plan, group)
    raise ConfigError(
        f"{name} cannot be spread; known: SanaTransformer, DCAutoencoder, DiT, UViT, CaT, "
        f"{', '.join(_DIFFUSERS)}"
    )


def structural_copy(module: nn.Module) -> nn.Module:
    """A copy of the module tree that shares its tensors: parameters, buffers, and what a layer has cached."""
    tensors = [*module.parameters(), *module.buffers()]
    for part in module.modules():
        tensors += [tensor for value in vars(part).values() for tensor in _tensors_in(value)]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def _tensors_in(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(each)
