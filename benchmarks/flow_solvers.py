"""Errors of the samplers where the answer is known, beside diffusers' schedulers in the same run.

Data N(0.7, 0.3^2) per element has a velocity in closed form, and the exact flow maps noise e to 0.7 + 0.3 e.
Reported: worst error over 16 elements (seed 0, shift 3), of both. Run: python benchmarks/flow_solvers.py
"""
# bench: cpu, 1 min:

import json
import platform
from pathlib import Path

import diffusers
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from fewer.generate.sampling import flow_dpm_levels, flow_euler_levels, sample

MEAN, STD = 0.7, 0.3
STEPS = (4, 8, 14, 20, 28, 50)


def velocity(latents: torch.Tensor, level: float) -> torch.Tensor:
    alpha = 1 - level
    gain = alpha * STD**2 / (alpha**2 * STD**2 + level**2)
    return (latents - MEAN - gain * (latents - alpha * MEAN)) / level


def ours(noise: torch.Tensor, method: str, steps: int, order: int) -> float:
    levels = (flow_dpm_levels if method == "flow-dpm" else flow_euler_levels)(steps, 3.0).tolist()
    done = list(sample(velocity, noise, method=method, levels=levels, order=order, time="unit"))
    return worst(done[-1].latents, noise)


def peer(noise: torch.Tensor, method: str, steps: int, order: int) -> float:
    if method == "flow-dpm":
        scheduler = DPMSolverMultistepScheduler(
            use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction", solver_order=order
        )
    else:
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    latents = noise
    for index, timestep in enumerate(scheduler.timesteps):
        level = float(scheduler.sigmas[index])
        latents = scheduler.step(velocity(latents, level), timestep, latents, return_dict=False)[0]
    return worst(latents, noise)


def worst(latents: torch.Tensor, noise: torch.Tensor) -> float:
    return float((latents - (MEAN + STD * noise)).abs().max())


def main() -> None:
    torch.manual_seed(0)
    noise = torch.randn(1, 1, 4, 4)
    rows = []
    for method, order in (("flow-dpm", 1), ("flow-dpm", 2), ("flow-dpm", 3), ("flow-euler", 1)):
        for steps in STEPS:
            row = {"method": method, "order": order, "steps": steps}
            row |= {
                "worst_error": ours(noise, method, steps, order),
                "diffusers": peer(noise, method, steps, order),
            }
            rows.append(row)
    machine = {"machine": platform.machine(), "python": platform.python_version()}
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    path = Path(__file__).parent / "results" / "flow_solvers.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**machine, **versions, "rows": rows}, indent=1) + "\n")
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
