"""From prompts to the hidden states of a decoder-only language model.

prompt -> lower case -> instruction before it -> tokens, padded on the right -> the model's last hidden
states -> position 0 (the beginning token) and the last `length - 1` positions. Those are the last token of
the instruction and up to `length - 2` tokens of the prompt: the instruction itself is read but not kept.
Negative prompts are encoded without the instruction (arXiv 2410.10629, section 2.3; layout of diffusers).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fewer.core.errors import ConfigError, FileError
from fewer.generate.text.instruction import INSTRUCTION
from fewer.generate.text.llama import llama_config, load_llama
from fewer.generate.text.tokens import plain_tokenizer


@dataclass(frozen=True, slots=True)
class TextEmbedding:
    """What a transformer reads of some prompts."""

    tokens: Float[Tensor, "batch length dim"]
    """Zero where the mask is false."""
    mask: Bool[Tensor, "prompts positions"]

    def __post_init__(self) -> None:
        if self.mask.shape != self.tokens.shape[:2]:
            raise ConfigError(
                f"text of {tuple(self.tokens.shape[:2])} (batch, length) and mask of "
                f"{tuple(self.mask.shape)} differ"
            )


@runtime_checkable
class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used here.

    Its ids are for type checkers alone: transformers computes them, and from Python 3.12 on `isinstance` sees
    only attributes that are stored.
    """

    if TYPE_CHECKING:
        bos_token_id: int | None
        eos_token_id: int | None
        pad_token_id: int | None

    def encode(self, text: str) -> list[int]: ...


class PromptEncoder:
    """A decoder-only language model, its tokenizer, and how prompts are laid out for it."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        *,
        length: int = 300,
        instruction: Sequence[str] | None = INSTRUCTION,
    ) -> None:
        """`length` is the number of positions kept; no instruction means plain prompts.

        Raises `ConfigError` if the tokenizer has no beginning token, which position 0 must hold.
        """
        if length < 2:
            raise ConfigError(f"text length was {length}; it must be at least 2, 300 is usual")
        if tokenizer.bos_token_id is None:
            raise ConfigError("the tokenizer has no beginning-of-text token; use one of a decoder-only model")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.length = length
        self.instruction = "\n".join(instruction or ())

    @classmethod
    def load(
        cls,
        folder: str | Path,
        tokenizer: str | Path | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        length: int = 300,
        instruction: Sequence[str] | None = INSTRUCTION,
        layers: int | None = None,
    ) -> "PromptEncoder":
        """Opens any decoder-only model that transformers knows from a local folder; nothing is downloaded.

        A plain Llama (as the built-in model has) is read without transformers, which takes seconds to import.
        `layers` keeps the first blocks only (and the final norm). fp16 is read as bf16, because the hidden
        states of such models overflow it. Raises `FileError` if the folder holds no such model.
        """
        model = _open_model(Path(folder), torch.bfloat16 if dtype == torch.float16 else dtype, layers)
        opened = _open_tokenizer(Path(tokenizer or folder))
        return cls(model.to(device), opened, length=length, instruction=instruction)

    @property
    def channels(self) -> int:
        """Width of the hidden states, the transformer's `caption_channels`."""
        return int(self.model.config.hidden_size)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], *, instruct: bool = True) -> TextEmbedding:
        """Hidden states of (batch, length, channels) and which of them are text.

        `instruct=False` is for negative prompts. Raises `ConfigError` for an empty list.
        """
        if not prompts:
            raise ConfigError("the list of prompts is empty; give at least one, which may be ''")
        ids, mask = self.layout(prompts, instruct=instruct)
        device = next(self.model.parameters()).device
        # A causal model's padding on the right changes nothing before it: leave out what is padding for all.
        longest = int(mask.sum(dim=1).max())
        output = self.model(
            input_ids=ids[:, :longest].to(device),
            attention_mask=mask[:, :longest].to(device),
            use_cache=False,
        )
        states = output[0] * mask[:, :longest, None].to(device)
        whole = states.new_zeros(len(prompts), ids.shape[1], states.shape[-1])
        whole[:, :longest] = states
        kept = torch.tensor([0, *range(ids.shape[1] - self.length + 1, ids.shape[1])])
        return TextEmbedding(whole[:, kept.to(device)], mask[:, kept].bool().to(device))

    def layout(
        self, prompts: Sequence[str], *, instruct: bool = True
    ) -> tuple[Int[Tensor, "batch all_positions"], Int[Tensor, "batch all_positions"]]:
        """Token ids and mask of all positions, the instruction's included."""
        before = self.instruction if instruct else ""
        positions = self.length
        if before:
            positions += len(self._tokens(before)) - 2
        rows = self._rows([before + prompt.lower().strip() for prompt in prompts])
        rows = [row[:positions] for row in rows]
        padding = self.tokenizer.pad_token_id
        if padding is None:
            padding = self.tokenizer.eos_token_id or 0
        ids = torch.full((len(rows), positions), padding, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = 1
        return ids, mask

    def _tokens(self, text: str) -> list[int]:
        return self._rows([text])[0]

    def _rows(self, texts: list[str]) -> list[list[int]]:
        """Token ids behind exactly one beginning token; some tokenizers add it themselves, some don't."""
        if callable(self.tokenizer):  # transformers' own reads many at once, on all cores
            rows = self.tokenizer(texts)["input_ids"]
        else:
            rows = [list(self.tokenizer.encode(text)) for text in texts]
        begin = self.tokenizer.bos_token_id
        assert begin is not None
        return [ids if ids[:1] == [begin] else [begin, *ids] for ids in rows]


def _open_model(folder: Path, dtype: torch.dtype, layers: int | None) -> nn.Module:
    _require_config(folder)
    if (plain := llama_config(folder)) is not None:
        return load_llama(folder, plain, dtype, layers)
    from transformers import AutoModel

    with silence_transformers():
        try:
            model = AutoModel.from_pretrained(
                folder, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            raise FileError(f"{folder.name!r} holds no language model that opens: {error}") from error
    if not hasattr(model, "layers") or not hasattr(model.config, "hidden_size"):
        raise FileError(f"{folder.name!r} holds a {type(model).__name__}, not a decoder-only language model")
    if layers is not None:
        _keep_layers(model, layers)
    return model


def _open_tokenizer(folder: Path) -> Tokenizer:
    if not folder.is_dir():
        raise FileError(f"the tokenizer's folder {folder.name!r} is not there", missing=True)
    if (plain := plain_tokenizer(folder)) is not None:
        return plain
    from transformers import AutoTokenizer

    with silence_transformers():
        try:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise FileError(f"{folder.name!r} holds no tokenizer that opens: {error}") from error


def _require_config(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise FileError(f"the text encoder's folder {folder.name!r} has no config.json", missing=True)


class silence_transformers:
    """transformers draws its own progress bars while it loads; ours is the only one that shows."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self.was_on, self.level = logging.is_progress_bar_enabled(), logging.get_verbosity()
        logging.disable_progress_bar()
        logging.set_verbosity_error()

    def __exit__(self, *problem: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self.level)
        if self.was_on:
            logging.enable_progress_bar()


def _keep_layers(model: nn.Module, layers: int) -> None:
    have = len(model.layers)
    if not 1 <= layers <= have:
        raise ConfigError(f"text_layers was {layers}; this language model has {have}")
    model.layers = model.layers[:layers]
    model.config.num_hidden_layers = layers
