"""What stands between two evaluations of a network: guidance and one step of a solver, in one pass.

With velocities n (negative prompt) and p, latents x at noise level s, and the guess c' of the step before:
v = n + g (p - n);  c = x - s v;  x ← a x + b c + d c'.  Every solver of first and second order on the flow
path is such a sum of three, with numbers that depend on the levels alone.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def guided_step(
    state: Float[Tensor, "two batch *shape"],
    network: Float[Tensor, "rows *shape"],
    velocity: Float[Tensor, "rows *shape"],
    facts: Float[Tensor, " five"],
) -> None:
    """Changes `state`, latents and guess in fp32, and `network`, the latents as the network reads them.

    `rows` is the batch, or twice it where `velocity` begins with the negative prompts'. `facts` are
    (s, a, b, d, g) on the device, so that a captured graph can be given those of each step. All contiguous.
    """
    torch.ops.fewer.guided_step(state, network, velocity, facts)


def reference_guided_step(state: Tensor, network: Tensor, velocity: Tensor, facts: Tensor) -> None:
    """Plain torch: the oracle."""
    latents, guess = state[0], state[1]
    v = velocity.to(state.dtype)
    if len(velocity) > len(latents):
        negative, positive = v.chunk(2)
        v = negative + facts[4] * (positive - negative)
    clean = latents - facts[0] * v
    after = facts[1] * latents + facts[2] * clean + facts[3] * guess
    latents.copy_(after)
    guess.copy_(clean)
    network.view(-1, *after.shape).copy_(after)


_operator = torch.library.custom_op(
    "fewer::guided_step", reference_guided_step, mutates_args=("state", "network"), device_types="cpu"
)


@_operator.register_fake
def _(*tensors: Tensor) -> None:
    return None


@_operator.register_kernel("cuda")
def _(state: Tensor, network: Tensor, velocity: Tensor, facts: Tensor) -> None:
    from fewer.kernels.triton.solver import launch_guided_step

    launch_guided_step(state, network, velocity, facts)
