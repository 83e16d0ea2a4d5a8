"""What it saves that an empty negative prompt is one token: processor time of a guided step with and without.

python benchmarks/empty_prompt.py [--steps 24] writes benchmarks/results/empty_prompt.json. The softmax over
one token is 1, so cross-attention to it needs no queries, and one row of its output projection, not 256.
Steps with and without take turns in one process and one thread, so that whatever else the machine does
weighs on both; processor time, smallest and median. The velocities' largest difference comes beside.
"""
# bench: cpu, 1 min:

import argparse
import statistics
import time

import torch
from record import record

from fewer.generate.model_folder import DEFAULT_MODEL
from fewer.generate.transformer.sana import SanaTransformer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=24)
    options = parser.parse_args()
    torch.set_num_threads(1)
    network = SanaTransformer.load(DEFAULT_MODEL, torch.float32, "cpu").requires_grad_(False).eval()
    side, channels = network.params.sample_size, network.params.in_channels
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, channels, side, side, generator=generator).repeat(2, 1, 1, 1)
    text = torch.randn(2, 40, network.params.caption_channels, generator=generator)
    mask = torch.zeros(2, 40)
    mask[0, :1] = mask[1, :8] = 1  # the empty prompt, and one of eight tokens
    times = torch.full((2,), 500.0)
    seconds: dict[str, list[float]] = {"asking all": [], "as it is": []}
    with torch.inference_mode():
        quick = network.prepare(text, mask)
        forms = {"asking all": quick.asking_all(), "as it is": quick}
        found = {name: network.denoise(latents, times, form) for name, form in forms.items()}
        for _ in range(options.steps // 2):
            for name, form in forms.items():
                began = time.process_time()
                network.denoise(latents, times, form)
                seconds[name].append(time.process_time() - began)
    rows = {
        name: {"smallest": round(min(each), 4), "median": round(statistics.median(each), 4)}
        for name, each in seconds.items()
    }
    saved = 1 - min(seconds["as it is"]) / min(seconds["asking all"])
    apart = float((found["asking all"] - found["as it is"]).abs().max())
    figures = {"steps": rows, "saved": round(saved, 4), "largest_difference": apart}
    record("empty_prompt", figures)
    print(figures)


if __name__ == "__main__":
    main()
