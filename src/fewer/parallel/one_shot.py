"""Small sums between GPUs of one host without a ring: every rank reads all the others' buffers directly.

Symmetric memory of torch, plain loads over NVLink; NVLink multicast is never used. It wins where latency
counts, which is the size of a linear-attention state; from about a megabyte on NCCL is as good.
"""

import torch
from torch import Tensor, distributed

MOST_BYTES = 2**20


class OneShotSums:
    """Buffers that all ranks of a group on one host can read. Raises `RuntimeError` where there are none."""

    def __init__(self, handle: distributed.ProcessGroup | None, device: torch.device) -> None:
        import torch.distributed._symmetric_memory as symmetric

        self.group_name = (handle or distributed.group.WORLD).group_name  # pyright: ignore
        self.buffer = symmetric.empty(MOST_BYTES // 4, dtype=torch.float32, device=device)
        symmetric.rendezvous(self.buffer, self.group_name)

    def fits(self, tensor: Tensor) -> bool:
        """Whether `tensor` can go this way: fp32 on the GPU, small, in units of 16 bytes."""
        return (
            tensor.is_cuda
            and tensor.dtype == torch.float32
            and tensor.numel() % 4 == 0
            and 0 < tensor.nbytes <= MOST_BYTES
        )

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, in the same order on each of them; on the current stream."""
        flat = tensor.contiguous().view(-1)
        place = self.buffer[: flat.numel()]
        total = torch.ops.symm_mem.one_shot_all_reduce_copy(place, flat, "sum", self.group_name)
        return total.view(tensor.shape)
