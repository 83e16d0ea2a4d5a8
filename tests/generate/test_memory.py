import pytest
import torch

from fewer.core.errors import CapacityError
from fewer.generate import TextToImage
from fewer.generate.memory import require_room, step_bytes
from fewer.generate.request import GenerateRequest

from .autoencoder.live_memory import LiveMemory


@pytest.fixture(scope="module")
def pipe(pipeline_folder) -> TextToImage:
    return TextToImage.load(pipeline_folder, device="cpu")


@pytest.mark.parametrize(("size", "together"), [(256, 1), (256, 3), (512, 2)])
def test_the_estimate_covers_what_a_step_takes_and_not_much_more(pipe, size, together) -> None:
    wanted = GenerateRequest(prompt=("a cat",), size=size, binning="off")
    latent = size // pipe.autoencoder.config.spatial_compression_ratio
    rows = 2 * together
    with torch.inference_mode():
        texts = torch.zeros(rows, 8, pipe.transformer.params.caption_channels)
        text = pipe.transformer.prepare(texts, torch.ones(rows, 8, dtype=torch.bool))
        latents = torch.zeros(rows, pipe.transformer.params.in_channels, latent, latent)
        with LiveMemory() as live:
            pipe.transformer.denoise(latents, torch.zeros(rows), text)
    estimate = step_bytes(pipe, wanted, together)
    assert 0.8 * live.peak <= estimate <= 3 * live.peak, (live.peak, estimate)


def test_it_grows_with_pictures_and_pixels(pipe) -> None:
    small = GenerateRequest(prompt=("a cat",), size=64, binning="off")
    large = GenerateRequest(prompt=("a cat",), size=128, binning="off")
    assert step_bytes(pipe, large) == 4 * step_bytes(pipe, small)
    assert step_bytes(pipe, small, 8) == 8 * step_bytes(pipe, small)
    alone = GenerateRequest(prompt=("a cat",), size=64, binning="off", guidance=1.0)
    assert 2 * step_bytes(pipe, alone) == step_bytes(pipe, small)


def test_what_cannot_fit_is_refused_with_advice(pipe, monkeypatch) -> None:
    import fewer.core.device as device

    monkeypatch.setattr(device, "available_memory", lambda place: 1000)
    with pytest.raises(CapacityError, match="smaller size"):
        require_room(pipe, GenerateRequest(prompt=("a cat",), size=64, binning="off"))
