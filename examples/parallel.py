"""One denoising step cut into three bands, on ranks simulated in this process: the same velocity, exactly.

On real devices use `run_on_devices(rank_main, N)` or torchrun instead of `run_simulated`.
"""

import torch

from fewer.generate.transformer.params import SanaParams
from fewer.generate.transformer.sana import SanaTransformer
from fewer.parallel import Group, ParallelPlan, parallelize, run_simulated


def main() -> None:
    torch.manual_seed(0)
    params = SanaParams(
        in_channels=4, out_channels=4, heads=2, head_dim=16, depth=2, cross_heads=2, cross_head_dim=16,
        caption_channels=8, sample_size=16,
    )  # fmt: skip
    model = SanaTransformer(params).eval()
    latents, text, time = torch.randn(1, 4, 16, 8), torch.randn(1, 5, 8), torch.tensor([500.0])
    with torch.no_grad():
        alone = model(latents, time, text)

    def rank_main(group: Group) -> torch.Tensor:
        plan = ParallelPlan(devices=group.size, mode="sync")
        if group.rank == 0:
            print(plan.explain())
        return parallelize(model, plan, group)(latents, time, text)

    together = run_simulated(3, rank_main)[0]
    print(f"largest difference to one device: {(together - alone).abs().max():.1e}")
    assert torch.allclose(together, alone, atol=1e-5)


if __name__ == "__main__":
    main()
