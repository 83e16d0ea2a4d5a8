"""One picture of the built-in model on a CPU with the model in memory: 20 steps with guidance, and few steps.

python benchmarks/picture_seconds.py [--threads 2] [--steps 20 2 1] [--repeats 3]
writes benchmarks/results/picture_seconds.json: for each number of steps the seconds on the clock, the seconds
of processor time (all threads together), and of the clock's a step and the decoding. Each picture has its own
prompt, so the text is read each time. A first picture is not counted.
"""
# bench: cpu, 2 min:

import argparse
import statistics
import time

import torch
from record import record

from fewer.generate import TextToImage
from fewer.generate.request import GenerateRequest

THINGS = ("red apple", "cat", "rocket", "owl", "guitar", "whale", "cactus", "bus", "castle", "frog")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 2, 1])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    began = time.perf_counter()
    pipe = TextToImage.load(options.model, device="cpu")
    loaded = time.perf_counter() - began
    pipe("a warm-up", steps=1)
    rows: dict[str, dict[str, object]] = {}
    for steps in options.steps:
        pictures = [one_picture(pipe, steps, number) for number in range(options.repeats)]
        rows[str(steps)] = {
            name: round(statistics.median(picture[name] for picture in pictures), 3) for name in pictures[0]
        } | {"raw": [round(picture["seconds"], 3) for picture in pictures]}
        print(steps, rows[str(steps)], flush=True)
    record("picture_seconds", {"loading": round(loaded, 2), "steps": rows})


def one_picture(pipe: TextToImage, steps: int, number: int) -> dict[str, float]:
    """Draws one and says where the time went."""
    prompt = f"a {THINGS[number % len(THINGS)]} on a blue background, picture {steps} {number}"
    request = GenerateRequest(prompt=(prompt,), model=pipe.name, steps=steps, seed=number)
    clock, processor = time.perf_counter(), time.process_time()
    # one event a step, and one for the finished picture
    marks = [clock, *(time.perf_counter() for _ in pipe.iterate(request))]
    step = (marks[-2] - marks[1]) / max(1, steps - 1) if steps > 1 else marks[1] - marks[0]
    return {
        "seconds": marks[-1] - clock,
        "processor_seconds": time.process_time() - processor,
        "a_step": step,
        "decoding": marks[-1] - marks[-2],
    }


if __name__ == "__main__":
    main()
