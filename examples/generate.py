"""A picture from a sentence, with its progress, and the same picture again from its own PNG.

Run: python examples/generate.py
"""

import tempfile
from pathlib import Path

from fewer.core.errors import FileError
from fewer.generate import TextToImage
from fewer.generate.picture import read_request
from fewer.generate.pipeline import Finished
from fewer.generate.request import GenerateRequest


def main(model: str = "default") -> None:
    try:
        pipe = TextToImage.load(model, device="cpu")
    except FileError as error:
        if not error.missing:
            raise
        print(f"cannot draw here: {error}")
        return

    # The short form: a call, a list of images.
    image = pipe("a red apple on a blue background", seed=7, steps=2).images[0]
    print(f"drew {image.width}x{image.height} pixels")

    # The long form: iterate, show each step, stop whenever you like.
    folder = Path(tempfile.mkdtemp())
    request = GenerateRequest(prompt=("two stars on a black background",), seed=1, steps=2)
    for event in pipe.iterate(request):
        if isinstance(event, Finished):
            path = event.picture.save(folder / "stars.png")
            print(f"done in {event.seconds:.1f} s")
        else:
            print(f"step {event.step.index + 1} of {event.step.total}, noise level {event.step.sigma:.2f}")

    # The picture carries its request: drawing it again gives the same bytes.
    stored, _ = read_request(path)
    again = next(event for event in pipe.iterate(stored) if isinstance(event, Finished))
    assert again.picture.png() == path.read_bytes()
    print("drawn again, byte for byte")


if __name__ == "__main__":
    main()
