"""From a sentence to a picture: the journey, in the order of the code.

prompt -> a caption in the model's own words, where it has such (`reading/`)
-> tokens -> hidden states of a language model (`text/prompt.py`)
-> keys and values of the transformer's text, once per prompt (`transformer/sana.py`)
-> noise from the seed -> a velocity in each step, guided away from the negative prompt (`sampling/`)
-> latents without noise -> pixels (`autoencoder/`) -> the size that was asked for -> a `Picture`.

`TextToImage.iterate` is the whole of it. It yields after every step, so showing progress is a loop and
cancelling is a `break`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from fewer.core.config import validate
from fewer.core.device import pick_device, pick_dtype, seeded
from fewer.core.errors import ConfigError
from fewer.generate.autoencoder.dc_ae import DCAutoencoder
from fewer.generate.lora import attach, detach, in_dtype, parse_lora, read_lora, set_scale
from fewer.generate.model_folder import ModelSettings, Parts, open_parts, open_styled
from fewer.generate.picture import Picture
from fewer.generate.reading import reader_of
from fewer.generate.request import GenerateRequest, as_prompts, batches, with_edition
from fewer.generate.sampling import (
    Guidance,
    Step,
    VelocityFn,
    bin_table,
    guided_velocity,
    nearest_bin,
    resize_to_cover,
    sample,
    sample_trigflow,
)
from fewer.generate.text import PromptEncoder, TextEmbedding
from fewer.generate.transformer import SanaTransformer

_DTYPES: dict[torch.dtype, Literal["fp32", "bf16", "fp16"]] = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}


_PIXELS_DECODED_TOGETHER = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Denoised:
    """One step of one picture is done."""

    index: int
    """Which picture, from 0."""
    total: int
    """Number of pictures asked for."""
    step: Step


@dataclass(frozen=True, slots=True)
class Finished:
    """One picture is done."""

    index: int
    total: int
    picture: Picture
    latents: Float[Tensor, "1 channels lat_h lat_w"]
    seconds: float


@dataclass(frozen=True, slots=True)
class Pictures:
    """What a call returns."""

    pictures: tuple[Picture, ...]

    @property
    def images(self) -> list[Image.Image]:
        """The images alone, prompt by prompt."""
        return [picture.image for picture in self.pictures]


class TextToImage:
    """A transformer, an autoencoder and a text encoder that draw pictures together."""

    def __init__(self, parts: Parts, *, name: str = "custom", style: str = "") -> None:
        self.transformer = parts.transformer
        self.autoencoder = parts.autoencoder
        self.encoder = parts.encoder
        self.settings: ModelSettings = parts.settings
        self.few_steps = parts.few_steps
        self.large = parts.large
        self._base_autoencoder = parts.autoencoder
        self._larger: DCAutoencoder | None = None
        self.name = name
        self.style = style
        self._attached: tuple[Path, ...] = ()
        self._accelerated = False
        # A prompt drawn several times, and the empty negative prompt, are read once.
        self._encode_once = lru_cache(maxsize=16)(_encode)
        reader = reader_of(parts.settings.words, parts.encoder)
        self._read_once = lru_cache(maxsize=256)(reader.read) if reader is not None else None

    @classmethod
    def load(
        cls,
        model: str | Path = "default",
        *,
        device: str = "auto",
        dtype: str = "auto",
        text_encoder: Path | None = None,
        autoencoder: Path | None = None,
        cache: Path | None = None,
        style: str = "",
        transformer: SanaTransformer | None = None,
    ) -> "TextToImage":
        """Opens the built-in model or a folder in diffusers' SanaPipeline layout. Nothing is downloaded.

        `transformer` takes the place of the folder's own (a quantized one, say).
        `style` is FILE[:SCALE] of `fewer train style`: its weights are merged once and for all. Raises
        `FileError` and `ConfigError` as `open_parts` and `wear_style` do.
        """
        place = pick_device(device)
        parts = open_parts(
            model,
            dtype=pick_dtype(dtype, place),
            device=place,
            text_encoder=text_encoder,
            autoencoder=autoencoder,
            cache=cache,
            transformer=transformer,
        )
        if style:
            parts = replace(parts, transformer=open_styled(model, style, pick_dtype(dtype, place), place))
        return cls(parts, name=str(model), style=style)

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        on_event: Callable[[Denoised | Finished], None] | None = None,
        **options: object,
    ) -> Pictures:
        """Draws all pictures of a request; `options` are the other fields of `GenerateRequest`.

        Raises `ConfigError` naming the field that is wrong.
        """
        request = validate(GenerateRequest, {"prompt": as_prompts(prompt), "model": self.name, **options})
        finished = []
        for event in self.iterate(request):
            if on_event is not None:
                on_event(event)
            if isinstance(event, Finished):
                finished.append(event.picture)
        return Pictures(tuple(finished))

    @property
    def warm_up_seconds(self) -> float:
        """Spent so far on compiling kernels and capturing graphs; Triton keeps compiled kernels on disk."""
        decoder = getattr(self.autoencoder, "decoder", None)
        graphs = (getattr(part, "graphs", None) for part in (self.transformer, decoder))
        return sum(getattr(each, "warm_up_seconds", 0.0) for each in graphs)

    def accelerate(self, *, anywhere: bool = False, fold_branch: bool = False) -> "TextToImage":
        """Lets the engine run both networks from now on, on a GPU (`anywhere`: on a CPU too, for tests).

        Quantize before; networks that are spread over devices stay as they are. `fold_branch`: see
        `fewer.generate.engine.accelerate`. Returns itself.
        """
        if anywhere or self.transformer.proj_out.weight.is_cuda:
            from fewer.generate.engine import accelerate
            from fewer.generate.engine.trust import trusted

            graphs = True if anywhere else None
            fast = accelerate(self.transformer, graphs=graphs, fold_branch=fold_branch)
            self.transformer = trusted(self.transformer, fast)
            self.autoencoder = trusted(self.autoencoder, accelerate(self.autoencoder))
            self._accelerated = True
        return self

    def iterate(self, request: GenerateRequest, *, together: int = 1) -> Iterator[Denoised | Finished]:
        """Draws the pictures of a request, `together` of them side by side; see `draw`."""
        yield from self.draw(request.singles(), together=together)

    @torch.inference_mode()
    def draw(self, singles: Sequence[GenerateRequest], *, together: int = 1) -> Iterator[Denoised | Finished]:
        """Draws requests of one picture each, in their order; `index` counts them.

        With `together` above 1, neighbours that differ only in prompt, negative prompt and seed share every
        evaluation of the network: faster on a GPU, and each the same picture as alone up to rounding. With 1
        a picture never depends on its neighbours, not by a bit. Raises `ConfigError` before drawing any.
        """
        singles = [self.complete(single) for single in singles]
        for members in batches(singles, together):
            began = time.perf_counter()
            self._wear(members[0][1])
            step = None
            for step in self._denoise([single for _, single in members]):
                for row, (index, _) in enumerate(members):
                    yield Denoised(index, len(singles), _row(step, row))
            assert step is not None
            images = self._decode(step.latents, members[0][1])
            for row, ((index, single), image) in enumerate(zip(members, images, strict=True)):
                latents, sentence = step.latents[row : row + 1], self.sentence(single)
                picture = Picture(
                    image=image,
                    request=single,
                    dtype=_DTYPES[self.transformer.proj_out.weight.dtype],
                    drawn=self.drawn_size(single) if self.is_large(single) else None,
                    read=None if sentence == single.prompt[0] else sentence,
                )
                yield Finished(index, len(singles), picture, latents.cpu(), time.perf_counter() - began)

    def complete(self, request: GenerateRequest) -> GenerateRequest:
        """The same request with the model's own choices filled in, checked against the model."""
        if request.style not in ("", self.style):
            raise ConfigError(f"style {request.style!r}: the pipeline was loaded with {self.style!r}")
        request = replace(request, style=self.style)
        sprint = self.transformer.params.guidance_embeds
        request = with_edition(request, None if sprint else self.few_steps)
        if request.edition != "few-steps":  # which has guidance and levels of its own
            request = replace(
                request,
                steps=request.steps or (2 if sprint else 20),
                guidance=self.settings.guidance if request.guidance is None else request.guidance,
                shift=request.shift or self.settings.shift,
            )
            _guidance_of(request).check()
        self.drawn_size(request)
        return request

    def sentence(self, request: GenerateRequest) -> str:
        """What is drawn: the prompt, or how the model's reader says it in the words of its captions.

        Adapters and styles have words of their own: with them a prompt is drawn as it is written.
        """
        if self._read_once is None or request.as_written or request.lora or request.style:
            return request.prompt[0]
        return self._read_once(request.prompt[0])

    def drawn_size(self, request: GenerateRequest) -> tuple[int, int]:
        """(height, width) in which the transformer draws: the nearest trained size, or what was asked.

        Raises `ConfigError` if the model has no table of sizes and one is demanded, or sides don't divide.
        """
        height, width = request.sides(self._default_size)
        if self.large is not None and self.is_large(request):
            return self.large.nearest(height, width)
        ratio = self.autoencoder.config.spatial_compression_ratio
        base, tables = self.transformer.params.sample_size * ratio, (512, 1024, 2048, 4096)
        if request.binning == "on" or (request.binning == "auto" and base in tables):
            bin_table(base)
            height, width = nearest_bin(height, width, base)
        unit = ratio * self.transformer.params.patch_size
        if height % unit or width % unit:
            near = [max(unit, round(side / unit) * unit) for side in (height, width)]
            raise ConfigError(
                f"height {height} and width {width} must be multiples of {unit}; try {near[0]} and {near[1]}"
            )
        return height, width

    def is_large(self, request: GenerateRequest) -> bool:
        """Whether the large edition draws it: the model has one, and a side is longer than its own."""
        if self.large is None or request.binning == "off":
            return False
        own = self.transformer.params.sample_size * self.autoencoder.config.spatial_compression_ratio
        return max(request.sides(self._default_size)) > own

    def grid(self, request: GenerateRequest) -> tuple[int, int]:
        """(rows, columns) of the latents that are drawn."""
        ratio = self.autoencoder.config.spatial_compression_ratio * (2 if self.is_large(request) else 1)
        height, width = self.drawn_size(request)
        return height // ratio, width // ratio

    def _denoise(self, group: list[GenerateRequest]) -> Iterator[Step]:
        first = group[0]
        shape = (1, self.transformer.params.in_channels, *self.grid(first))
        generators = [seeded(single.seed) for single in group]
        device = self.transformer.proj_out.weight.device

        def draw() -> Tensor:
            return torch.cat([torch.randn(shape, generator=own) for own in generators]).to(device)

        assert first.steps is not None
        if self.transformer.params.guidance_embeds:
            return sample_trigflow(self._sprint_velocity(group), draw(), draw, first.steps)
        if first.edition == "few-steps":
            assert self.few_steps is not None
            levels = self.few_steps.levels[first.steps - 1]
            return sample(self._evaluator(self._prompts(group)), draw(), levels=levels, order=1)
        assert first.shift is not None
        return sample(
            self._velocity(group), draw(), first.steps, first.shift, first.sampler, order=first.order
        )

    def _velocity(self, group: list[GenerateRequest]) -> VelocityFn:
        """The guided velocity of a batch: text is encoded and projected here, once for all steps."""
        guidance = _guidance_of(group[0])
        prompts = self._prompts(group)
        alone = self._evaluator(prompts)
        if not guidance.wanted:
            return alone
        negatives = [self._encode_once(self.encoder, one.negative, False) for one in group]
        return guided_velocity(alone, self._evaluator([*negatives, *prompts]), guidance)

    def _prompts(self, group: list[GenerateRequest]) -> list[TextEmbedding]:
        return [self._encode_once(self.encoder, self.sentence(one), one.instruction) for one in group]

    def _evaluator(self, texts: list[TextEmbedding], guidance: float | None = None) -> VelocityFn:
        weight = self.transformer.proj_out.weight
        tokens, mask = torch.cat([one.tokens for one in texts]), torch.cat([one.mask for one in texts])
        text = self.transformer.prepare(tokens.to(weight.dtype), mask)
        scale = 1.0 if guidance is not None else self.transformer.params.timestep_scale

        def velocity(latents: Tensor, timestep: float) -> Tensor:
            times = torch.full((len(latents),), timestep * scale, device=latents.device)
            strength = None if guidance is None else torch.full_like(times, guidance)
            return self.transformer.denoise(latents.to(weight.dtype), times, text, strength)

        return velocity

    def _sprint_velocity(self, group: list[GenerateRequest]) -> VelocityFn:
        return self._evaluator(self._prompts(group), group[0].guidance)

    def _decode(
        self, latents: Float[Tensor, "batch channels lat_h lat_w"], request: GenerateRequest
    ) -> Iterator[Image.Image]:
        """One picture after another; a GPU decodes several small ones together as fast as one."""
        autoencoder = self.larger if self.is_large(request) else self.autoencoder
        dtype = next(autoencoder.parameters()).dtype
        ratio = autoencoder.config.spatial_compression_ratio
        area = latents.shape[2] * latents.shape[3] * ratio**2
        for some in latents.split(max(1, _PIXELS_DECODED_TOGETHER // area)):
            pixels = autoencoder.decode(some.to(dtype), tile="auto").float()
            pixels = resize_to_cover(pixels, *request.sides(self._default_size))
            levels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
            for picture in levels.permute(0, 2, 3, 1).cpu().numpy():
                yield Image.fromarray(picture)

    @property
    def larger(self) -> DCAutoencoder:
        """The large edition's autoencoder, opened when it is first needed."""
        if self._larger is None:
            assert self.large is not None
            self._larger = self.large.autoencoder(self._base_autoencoder, accelerated=self._accelerated)
        return self._larger

    def _wear(self, request: GenerateRequest) -> None:
        """Attaches the adapters of this request; the same files at other strengths are not read again."""
        wanted = [parse_lora(text) for text in request.lora]
        if request.edition == "few-steps":
            assert self.few_steps is not None and self.few_steps.weights is not None
            wanted = [(self.few_steps.weights, 1.0), *wanted]
        if self.large is not None and self.is_large(request):
            rows, columns = self.grid(request)
            wanted += [] if rows == columns else [(self.large.adapter, 1.0)]
        files = tuple(path for path, _ in wanted)
        if files != self._attached:
            detach(self.transformer)
            self._attached = ()
            for number, path in enumerate(files):
                # in the network's dtype at once: else every step would convert the factors again
                adapter = in_dtype(read_lora(path), self.transformer.proj_out.weight.dtype)
                attach(self.transformer, adapter, name=f"lora{number}")
            self._attached = files
        for number, (_, scale) in enumerate(wanted):
            set_scale(self.transformer, f"lora{number}", scale)

    @property
    def _default_size(self) -> tuple[int, int]:
        assert self.settings.default_size is not None
        return self.settings.default_size


def _guidance_of(request: GenerateRequest) -> Guidance:
    assert request.guidance is not None
    return Guidance(scale=request.guidance, start=request.guidance_start, end=request.guidance_end)


def _row(step: Step, row: int) -> Step:
    return replace(step, latents=step.latents[row : row + 1], clean=step.clean[row : row + 1])


def _encode(encoder: PromptEncoder, prompt: str, instruct: bool) -> TextEmbedding:
    return encoder.encode([prompt], instruct=instruct)
