import logging
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fewer.generate import TextToImage
from fewer.generate.engine import accelerate
from fewer.generate.engine.trust import relative_error, trusted
from fewer.generate.transformer import SanaTransformer


@pytest.mark.parametrize("guidance_embeds", [False, True])
def test_what_agrees_is_kept(tiny: Callable[..., SanaTransformer], guidance_embeds: bool) -> None:
    plain = tiny(guidance_embeds=guidance_embeds)
    fast = accelerate(plain)
    assert fast is not plain and trusted(plain, fast) is fast
    assert trusted(fast, fast) is fast, "accelerated before"


def test_a_wrong_kernel_is_found_and_the_plain_network_kept(
    tiny: Callable[..., SanaTransformer], caplog: pytest.LogCaptureFixture
) -> None:
    plain = tiny()
    wrong = accelerate(tiny())
    wrong.proj_out.weight = nn.Parameter(wrong.proj_out.weight * 1.5)
    with caplog.at_level(logging.WARNING):
        assert trusted(plain, wrong) is plain
    assert "off by" in caplog.text


def test_a_kernel_that_does_not_run_is_left_out(
    tiny: Callable[..., SanaTransformer], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tiny()
    fast = accelerate(plain)

    def broken(*arguments: object) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(type(fast), "denoise", broken)
    with caplog.at_level(logging.WARNING):
        assert trusted(plain, fast) is plain
    assert "no kernel image" in caplog.text


def test_the_error_sees_what_is_not_a_number() -> None:
    good = torch.ones(4)
    assert relative_error(good, good) == 0 and relative_error(torch.zeros(4), torch.zeros(4)) == 0
    assert not relative_error(torch.tensor([1.0, torch.nan, 1, 1]), good) <= 0.1


def test_both_networks_of_a_pipeline_are_looked_at(pipeline_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = TextToImage.load(pipeline_folder, device="cpu")
    decoder = pipe.autoencoder
    pipe.accelerate(anywhere=True)
    assert type(pipe.transformer) is not SanaTransformer and pipe.autoencoder is not decoder

    import fewer.generate.engine.autoencoder as engine

    monkeypatch.setattr(engine.FusedDecoder, "forward", lambda self, latents: latents)
    other = TextToImage.load(pipeline_folder, device="cpu").accelerate(anywhere=True)
    assert not isinstance(other.autoencoder.decoder, engine.FusedDecoder)
