"""The whole journey against diffusers' pipeline, and what a user may count on."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import SanaPipeline
from PIL import Image

from fewer.core.errors import ConfigError, FewerError
from fewer.generate import TextToImage
from fewer.generate.lora import fresh, write_lora
from fewer.generate.picture import read_request
from fewer.generate.pipeline import Denoised, Finished, batches
from fewer.generate.request import GenerateRequest


@pytest.fixture(scope="module")
def pipe(pipeline_folder) -> TextToImage:
    return TextToImage.load(pipeline_folder, device="cpu")


def request(**changes: object) -> GenerateRequest:
    return GenerateRequest(**({"prompt": ("a cat",), "steps": 2} | changes))


def finished(pipe: TextToImage, wanted: GenerateRequest) -> list[Finished]:
    return [event for event in pipe.iterate(wanted) if isinstance(event, Finished)]


def difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())


@pytest.mark.parametrize("guidance", [4.5, 1.0])
@pytest.mark.parametrize("steps", [1, 6])
def test_equals_diffusers_with_the_same_seed(pipe, pipeline_folder, guidance, steps):
    theirs = SanaPipeline.from_pretrained(pipeline_folder)
    theirs.set_progress_bar_config(disable=True)
    options = {
        "prompt": "a cat",
        "negative_prompt": "Blurred",
        "guidance_scale": guidance,
        "num_inference_steps": steps,
        "height": 32,
        "width": 64,
        "use_resolution_binning": False,
    }
    latents = theirs(**options, generator=torch.Generator().manual_seed(7), output_type="latent").images
    image = theirs(**options, generator=torch.Generator().manual_seed(7)).images[0]
    ours = finished(
        pipe,
        request(negative="Blurred", guidance=guidance, steps=steps, height=32, width=64, seed=7),
    )[0]
    assert (ours.latents - latents).abs().max() <= 1e-4
    assert difference(ours.picture.image, image) <= 1


def test_binned_sizes_equal_diffusers(binned_folder):
    theirs = SanaPipeline.from_pretrained(binned_folder)
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        "a cat", height=300, width=500, num_inference_steps=1, generator=torch.Generator().manual_seed(3)
    ).images[0]
    pipe = TextToImage.load(binned_folder, device="cpu")
    drawn = finished(pipe, request(height=300, width=500, steps=1, seed=3))[0]
    assert drawn.picture.image.size == expected.size == (500, 300)
    assert tuple(drawn.latents.shape[-2:]) == (12, 20)
    assert difference(drawn.picture.image, expected) <= 1
    assert finished(pipe, request(binning="off", size=64, steps=1))[0].latents.shape[-2:] == (2, 2)
    with pytest.raises(ConfigError, match="multiples of 32; try 288 and 512"):
        finished(pipe, request(height=300, width=500, binning="off"))


def test_one_seed_one_picture_whatever_its_neighbours(pipe):
    together = pipe(["a cat", "a dog"], seed=5, count=2, steps=2)
    assert [picture.seed for picture in together.pictures] == [5, 6, 5, 6]
    assert len(together.images) == 4
    for picture in together.pictures:
        alone = pipe(picture.request.prompt, seed=picture.seed, steps=2).images[0]
        assert difference(alone, picture.image) == 0
    assert difference(together.images[0], together.images[1]) > 0
    assert difference(together.images[0], together.images[2]) > 0


@pytest.mark.parametrize("guidance", [4.5, 1.0])
def test_side_by_side_they_are_the_same_pictures_in_fewer_evaluations(pipe, guidance):
    wanted = request(prompt=("a cat", "a dog"), count=2, negative="Blurred", guidance=guidance)
    alone, calls = finished(pipe, wanted), []
    handle = pipe.transformer.proj_out.register_forward_hook(lambda *_: calls.append(1))
    events = list(pipe.iterate(wanted, together=3))
    handle.remove()
    assert len(calls) == 2 * 2, "two steps for three pictures, two for the fourth"
    ends = [event for event in events if isinstance(event, Finished)]
    assert [event.index for event in ends] == [0, 1, 2, 3]
    for one, other in zip(alone, ends, strict=True):
        assert other.picture.request == one.picture.request
        assert (other.latents - one.latents).abs().max() <= 1e-4
        assert difference(other.picture.image, one.picture.image) <= 1
    assert all(event.step.latents.shape[0] == 1 for event in events if isinstance(event, Denoised))


def test_only_alike_neighbours_share_a_batch(pipe):
    one, small, two = request(), request(size=32), request(prompt=("a dog",), seed=9)
    assert [len(group) for group in batches([one, two, small, one], 8)] == [2, 1, 1]
    assert [len(group) for group in batches([one] * 5, 2)] == [2, 2, 1]
    ends = [event for event in pipe.draw([small, one, two], together=8) if isinstance(event, Finished)]
    assert ends[0].picture.image.size[0] == 32
    assert difference(ends[1].picture.image, finished(pipe, one)[0].picture.image) <= 1


def test_a_prompt_is_read_once_however_often_it_is_drawn(pipeline_folder):
    pipe, read = TextToImage.load(pipeline_folder, device="cpu"), []
    pipe.encoder.model.register_forward_hook(lambda *_: read.append(1))
    pipe(["a cat", "a dog", "a cat"], count=2, steps=1)
    assert len(read) == 3, "two prompts and the empty negative one"


def test_a_model_with_words_of_its_own_draws_what_it_read(pipeline_folder, tmp_path):
    folder = tmp_path / "worded"
    shutil.copytree(pipeline_folder, folder)
    (folder / "fewer.json").write_text('{"words": "emoji", "chi": false}')
    pipe = TextToImage.load(folder, device="cpu")
    said, other = "a snowman", "A snowman in winter, 4k"
    plain, read, kept = (
        pipe(prompt, steps=2, as_written=word_for_word).pictures[0]
        for prompt, word_for_word in ((said, False), (other, False), (other, True))
    )
    assert (plain.read, read.read, kept.read) == (None, said, None)
    assert difference(plain.image, read.image) == 0 and difference(read.image, kept.image) > 0
    assert plain.image == pipe(said, steps=2, as_written=True).images[0]
    for picture in (read, kept):  # each is drawn again as it was
        stored, _ = read_request(picture.save(tmp_path / "a.png"))
        assert stored.prompt == (other,) and stored.as_written == picture.request.as_written
        again = finished(pipe, stored)[0].picture
        assert difference(again.image, picture.image) == 0
    write_lora(tmp_path / "a.safetensors", fresh(pipe.transformer, 2, torch.Generator(), targets=("to_q",)))
    taught = pipe(other, steps=2, lora=(str(tmp_path / "a.safetensors"),)).pictures[0]
    assert taught.read is None, "an adapter has words of its own"


def test_events_come_in_order_and_breaking_off_stops_the_work(pipe):
    events = list(pipe.iterate(request(count=2, steps=3)))
    kinds = [(type(event).__name__, event.index) for event in events]
    assert kinds == [("Denoised", 0)] * 3 + [("Finished", 0)] + [("Denoised", 1)] * 3 + [("Finished", 1)]
    assert [event.step.index for event in events if isinstance(event, Denoised)] == [0, 1, 2, 0, 1, 2]
    calls = []
    handle = pipe.transformer.proj_out.register_forward_hook(lambda *_: calls.append(1))
    for event in pipe.iterate(request(steps=10)):
        if event.step.index == 2:
            break
    handle.remove()
    assert len(calls) == 3


def test_every_option_reaches_the_picture(pipe):
    plain = pipe("a cat", steps=3).images[0]
    for change in (
        {"seed": 1},
        {"negative": "red"},
        {"guidance": 9.0},
        {"guidance_start": 0.9},
        {"guidance_end": 0.5},
        {"sampler": "flow-euler"},
        {"order": 1},
        {"shift": 1.0},
        {"instruction": False},
        {"steps": 4},
    ):
        assert difference(pipe("a cat", **({"steps": 3} | change)).images[0], plain) > 0, change


def test_outside_its_interval_guidance_costs_nothing(pipe):
    rows = []
    handle = pipe.transformer.proj_out.register_forward_hook(lambda *given: rows.append(len(given[2])))
    pipe("a cat", steps=4, guidance_start=0.6, guidance_end=0.95)
    handle.remove()
    assert rows == [1, 2, 2, 1]


def test_adapters_come_and_go_with_the_request(pipe, tmp_path):
    adapter = fresh(pipe.transformer, 2, torch.Generator().manual_seed(0))
    for low_rank in adapter.values():
        low_rank.up.normal_(generator=torch.Generator().manual_seed(1))
    path = write_lora(tmp_path / "lora.safetensors", adapter)
    plain = pipe("a cat", steps=2).images[0]
    worn = pipe("a cat", steps=2, lora=(str(path),)).images[0]
    assert difference(worn, plain) > 0
    assert difference(pipe("a cat", steps=2, lora=(f"{path}:0",)).images[0], plain) == 0
    assert difference(pipe("a cat", steps=2, lora=(f"{path}:1.0",)).images[0], worn) == 0
    assert difference(pipe("a cat", steps=2).images[0], plain) == 0


def test_a_sprint_model_has_its_own_steps(pipeline_folder, gemma_folder, tmp_path):
    from diffusers import SanaSprintPipeline, SCMScheduler

    from fewer.generate.transformer import SanaParams, SanaTransformer, initialise

    params = SanaParams(
        in_channels=4, out_channels=4, heads=2, head_dim=8, depth=1, cross_heads=2, cross_head_dim=8,
        caption_channels=12, sample_size=8, qk_norm=True, guidance_embeds=True,
    )  # fmt: skip
    base = SanaPipeline.from_pretrained(pipeline_folder)
    initialise(SanaTransformer(params), zero_output=False).save(tmp_path / "transformer")
    theirs = SanaSprintPipeline(
        tokenizer=base.tokenizer,
        text_encoder=base.text_encoder,
        vae=base.vae,
        transformer=type(base.transformer).from_pretrained(tmp_path / "transformer"),
        scheduler=SCMScheduler(prediction_type="trigflow", sigma_data=0.5),
    )
    theirs.save_pretrained(tmp_path)
    theirs.set_progress_bar_config(disable=True)
    latents = theirs(
        "a cat", height=32, width=32, generator=torch.Generator().manual_seed(2),
        use_resolution_binning=False, output_type="latent",
    ).images  # fmt: skip
    drawn = finished(TextToImage.load(tmp_path, device="cpu"), GenerateRequest(prompt=("a cat",), seed=2))[0]
    assert drawn.picture.request.steps == 2
    assert (drawn.latents - latents).abs().max() <= 1e-4


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": ()},
        {"size": 33},
        {"width": 32, "size": 32},
        {"guidance": -1.0},
        {"guidance": float("nan")},
        {"steps": 0},
        {"steps": -3},
        {"count": 0},
        {"seed": -1},
        {"seed": 2**63},
        {"shift": 0.0},
        {"guidance_start": 0.9, "guidance_end": 0.1},
        {"binning": "on"},
        {"sampler": "ddim"},
        {"stranger": 1},
        {"lora": ("absent.safetensors",)},
        {"lora": ("a.safetensors:much",)},
    ],
)
def test_wrong_requests_are_named_before_anything_is_drawn(pipe, wrong):
    with pytest.raises(FewerError) as caught:
        pipe(wrong.pop("prompt", "a cat"), **wrong)
    assert caught.value.exit_code in (2, 4)
    assert len(str(caught.value)) > 20


def test_weights_that_give_nan_are_an_error_and_no_picture(pipeline_folder):
    pipe = TextToImage.load(pipeline_folder, device="cpu")
    pipe.transformer.proj_out.weight.data.fill_(float("nan"))
    with pytest.raises(ConfigError, match="NaN"):
        pipe("a cat", steps=1)


def test_options_are_the_fields_of_the_request(pipe):
    assert pipe("a cat", steps=1, size=64).images[0].size == (64, 64)
    assert json.loads(json.dumps(pipe.complete(request()).steps)) == 2


def test_the_engine_draws_the_same_pictures(pipe: TextToImage, pipeline_folder) -> None:
    fast = TextToImage.load(pipeline_folder, device="cpu")
    kind = type(fast.transformer)
    assert type(fast.accelerate().transformer) is kind, "a CPU gains nothing"
    assert type(fast.accelerate(anywhere=True).transformer) is not kind
    for wanted in (request(count=2), request(width=40, height=24, seed=5), request(guidance=1.0)):
        for one, other in zip(finished(pipe, wanted), finished(fast, wanted), strict=True):
            assert difference(one.picture.image, other.picture.image) <= 1


def test_few_steps_take_the_few_step_edition_and_no_guidance(pipe, quick_folder):
    quick, rows = TextToImage.load(quick_folder, device="cpu"), []
    few = finished(quick, request(steps=2))[0]
    handle = quick.transformer.proj_out.register_forward_hook(lambda *given: rows.append(len(given[2])))
    again = finished(quick, request(steps=2))[0]
    handle.remove()
    assert rows == [1, 1], "one picture a step: nothing is doubled"
    assert few.picture.request.edition == "few-steps"
    assert difference(few.picture.image, again.picture.image) == 0
    assert difference(few.picture.image, finished(pipe, request(steps=2))[0].picture.image) > 0
    full = finished(quick, request(steps=2, edition="full"))[0]
    assert difference(full.picture.image, finished(pipe, request(steps=2))[0].picture.image) == 0


@pytest.mark.parametrize(
    "change", [{"steps": 5}, {"guidance": 2.0}, {"negative": "red"}, {"sampler": "flow-euler"}]
)
def test_more_steps_and_options_of_ones_own_take_the_full_model(pipe, quick_folder, change):
    quick = TextToImage.load(quick_folder, device="cpu")
    finished(quick, request(steps=2))
    drawn, plain = (finished(one, request(**({"steps": 3} | change)))[0].picture for one in (quick, pipe))
    assert drawn.png() == plain.png(), "pixels and metadata"


def test_a_few_step_picture_is_drawn_again_byte_for_byte(quick_folder, tmp_path):
    quick = TextToImage.load(quick_folder, device="cpu")
    first = finished(quick, request(steps=4, seed=3))[0].picture
    stored, _ = read_request(first.save(tmp_path / "first.png"))
    assert finished(quick, stored)[0].picture.png() == first.png()
    assert "Edition: few-steps" in Image.open(tmp_path / "first.png").info["parameters"]


def test_the_engine_draws_few_steps_too(quick_folder):
    plain, fast = (TextToImage.load(quick_folder, device="cpu") for _ in range(2))
    fast.accelerate(anywhere=True)
    for steps in (2, 6, 1):
        one, other = (finished(pipe, request(steps=steps))[0].picture.image for pipe in (plain, fast))
        assert difference(one, other) <= 1


@pytest.mark.parametrize(
    ("change", "says"), [({"steps": 9}, "1 to 4"), ({"negative": "red"}, "negative has no effect")]
)
def test_what_few_steps_cannot_do_is_said(quick_folder, change, says):
    quick = TextToImage.load(quick_folder, device="cpu")
    with pytest.raises(ConfigError, match=says):
        finished(quick, request(edition="few-steps", **change))


def test_a_model_without_a_few_step_edition_says_so(pipe):
    with pytest.raises(ConfigError, match="no few-step edition"):
        finished(pipe, request(edition="few-steps"))
