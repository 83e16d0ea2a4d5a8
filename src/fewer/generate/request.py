"""What someone asks for: one frozen request for the command line, the server and the picture's metadata."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import tyro
from pydantic import ConfigDict, Field

from fewer.core.errors import ConfigError
from fewer.generate.sampling.few_steps import FewSteps

_BUILT_IN = ("negative", "guidance", "guidance_start", "guidance_end", "sampler", "order", "shift")
"""What a few-step edition has decided when it was trained."""
Side = Annotated[int, Field(ge=1, le=16384)]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """Everything that decides a picture, apart from the machine that draws it."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    prompt: Annotated[tyro.conf.Positional[tuple[str, ...]], Field(max_length=1000)] = ()
    """What to draw; several prompts give several pictures."""
    negative: Annotated[str, Field(max_length=10_000)] = ""
    """What to move away from."""
    model: Annotated[str, Field(max_length=4096)] = "default"
    """`default`, a folder in diffusers' SanaPipeline layout, or a transformer's safetensors file."""
    width: Side | None = None
    """Pixels; the model's own size if absent."""
    height: Side | None = None
    """Pixels; the model's own size if absent."""
    size: Side | None = None
    """Width and height at once."""
    binning: Literal["auto", "on", "off"] = "auto"
    """Draw at the nearest trained size and resize; `auto`: where the model has a table of sizes."""
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Evaluations of the network: 20 if absent, 2 for Sprint models."""
    guidance: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    """How strongly to follow the prompt; 1 turns it off, absent means the model's own (4.5)."""
    guidance_start: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Lowest noise level with guidance; steps outside the interval cost half."""
    guidance_end: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Highest noise level with guidance."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """The first picture's seed; each further picture of a prompt takes the next number."""
    count: Annotated[int, Field(ge=1, le=1000)] = 1
    """Pictures per prompt."""
    sampler: Literal["flow-dpm", "flow-euler"] = "flow-dpm"
    """How the flow equation is solved (Sprint models have their own)."""
    order: Literal[1, 2, 3] = 2
    """Order of flow-dpm."""
    shift: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = None
    """Moves the noise levels towards noise; absent means the model's own (3.0)."""
    instruction: bool = True
    """Read the complex human instruction before the prompt, where the model was trained with it."""
    as_written: bool = False
    """Draw the prompt word for word. Else a model with words of its own, as the built-in one, is given the
    nearest sentence in them; captions as it was trained on stay as they are."""
    edition: Literal["auto", "few-steps", "full"] = "auto"
    """`few-steps` draws in 1 to 4 steps, guidance built in, where the model has such an edition; `auto` takes
    it there unless guidance, a negative prompt, sampler, order or shift are given."""
    lora: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A PEFT file and its strength, FILE[:SCALE]; may be given several times."""
    style: Annotated[str, Field(max_length=4096)] = ""
    """A file of `fewer train style` and its strength, FILE[:SCALE]."""

    def sides(self, default: tuple[int, int]) -> tuple[int, int]:
        """(height, width) asked for. Raises `ConfigError` when `size` contradicts the sides."""
        if self.size is not None:
            if self.width is not None or self.height is not None:
                raise ConfigError(f"size {self.size} was given beside width or height; give one or the other")
            return self.size, self.size
        if self.width is None and self.height is None:
            return default
        return self.height or self.width, self.width or self.height  # pyright: ignore[reportReturnType]

    def singles(self) -> list["GenerateRequest"]:
        """One request per picture, prompt by prompt, each with its own seed. Raises `ConfigError`."""
        if not self.prompt:
            raise ConfigError(
                "no prompt was given; say what to draw, for example: fewer generate 'a red apple'"
            )
        if self.seed + self.count > 2**63:
            raise ConfigError(
                f"seed {self.seed} leaves no room for {self.count} pictures; choose a smaller one"
            )
        negative = as_text("the negative prompt", self.negative)
        singles: list[GenerateRequest] = [  # pyright: ignore
            replace(self, prompt=(prompt,), negative=negative, seed=self.seed + index, count=1)
            for prompt in [as_text("the prompt", prompt) for prompt in self.prompt]
            for index in range(self.count)
        ]
        return singles


def as_text(what: str, text: str) -> str:
    """The same, fit for a tokenizer. Where a locale knows ASCII alone, a command line's other bytes come as
    lone surrogates: they are read as UTF-8. Raises `ConfigError` for bytes and surrogates that are no text.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError as error:
        raise ConfigError(
            f"{what} holds what is no text ({error.reason}); write it in UTF-8, without half characters"
        ) from error


def batches(singles: Sequence[GenerateRequest], together: int) -> list[list[tuple[int, GenerateRequest]]]:
    """Neighbours that may share a batch, at most `together` of them, each with its place in `singles`."""
    groups: list[list[tuple[int, GenerateRequest]]] = []
    for index, single in enumerate(singles):
        alike = groups and len(groups[-1]) < together and shared(groups[-1][0][1]) == shared(single)
        if not alike:
            groups.append([])
        groups[-1].append((index, single))
    return groups


def shared(request: GenerateRequest) -> GenerateRequest:
    """A request without what pictures of one batch may differ in: requests are alike if this is equal."""
    return replace(request, prompt=(), negative="", seed=0)


def as_prompts(prompt: str | Sequence[str]) -> tuple[str, ...]:
    """One prompt or several as a tuple. Raises `ConfigError` for anything else."""
    if not isinstance(prompt, Iterable):
        raise ConfigError(f"the prompt was {prompt!r}; give a text, or a list of texts")
    return (prompt,) if isinstance(prompt, str) else tuple(prompt)


def with_edition(request: GenerateRequest, few_steps: FewSteps | None) -> GenerateRequest:
    """The same with the edition decided where there are few steps.

    Requests of more steps stay as they are. Raises `ConfigError` if the few-step edition is asked for and
    the model has none, or an option beside it has no effect there.
    """
    most = few_steps.most if few_steps is not None else 4
    steps = request.steps or (2 if request.edition == "few-steps" else 20)
    untouched = GenerateRequest()
    given = [name for name in _BUILT_IN if getattr(request, name) != getattr(untouched, name)]
    if request.edition == "auto":
        if steps > most:
            return request
        fits = few_steps is not None and not given
        request = replace(request, edition="few-steps" if fits else "full")
    if request.edition != "few-steps":
        return request
    if few_steps is None:
        raise ConfigError("this model has no few-step edition; make one with: fewer train few-steps")
    if steps > most:
        raise ConfigError(f"steps was {steps}; the few-step edition takes 1 to {most}, --edition full more")
    if given:
        raise ConfigError(
            f"{given[0]} has no effect in few steps (guidance {few_steps.guidance:g} is built in); "
            f"leave it out, or add --edition full"
        )
    return replace(request, steps=steps)
