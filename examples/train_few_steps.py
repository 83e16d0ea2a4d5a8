"""Makes a few-step edition of the built-in model from three prompts, in two steps of training.

A real run has thousands of prompts and a few minutes of a GPU:
fewer train few-steps --preset emoji --seconds 150 --output DIR.
"""

import tempfile
from pathlib import Path

from fewer.core.progress import SilentProgress
from fewer.generate.training.command_few_steps import TrainFewStepsRequest, train_few_steps_command


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prompts = folder / "prompts.txt"
        prompts.write_text("a cat on a red background\ntwo lemons\na glossy rocket\n")
        request = TrainFewStepsRequest(
            output=folder,
            prompts=prompts,
            steps=2,
            batch=1,
            parts=2,
            reuse=1,
            rank=8,
            teacher_steps=2,
            device="cpu",
        )
        report = train_few_steps_command(request, SilentProgress())
        print(f"{report['steps']} steps, loss {report['loss']:.3f}, {int(str(report['bytes'])) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
