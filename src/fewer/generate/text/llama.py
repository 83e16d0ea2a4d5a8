"""Llama without transformers: the language model that reads prompts for the built-in model, in plain torch.

Importing transformers' model takes several seconds, more than drawing a picture in a few steps; the network
itself is a page. Only the wanted layers of a file are read. Names of modules and tensors are those of
transformers' `LlamaModel`, and so are the numbers (arXiv 2302.13971; grouped keys: 2305.13245).
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, scaled_dot_product_attention, silu

from fewer.core.errors import ConfigError, FileError
from fewer.core.files import read_json
from fewer.core.tensors import tensor_header

WEIGHTS = "model.safetensors"
_KNOWN_TO_BE_PLAIN: dict[str, tuple[object, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "quantization_config": (None,),
    "rope_scaling": (None,),
    "pretraining_tp": (1, None),
}
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Sizes, under the names of config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float


def llama_config(folder: Path) -> LlamaConfig | None:
    """What config.json says, or None where it describes anything but a plain Llama in one file."""
    if not (folder / WEIGHTS).is_file():
        return None
    given = read_json(folder / "config.json")
    if any(given.get(name) not in allowed for name, allowed in _KNOWN_TO_BE_PLAIN.items()):
        return None
    rope = given.get("rope_parameters") or {"rope_theta": given.get("rope_theta", 10000.0)}
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        return None
    sizes = {name: given.get(name) for name in _SIZES}
    heads = sizes["num_attention_heads"]
    sizes["num_key_value_heads"] = shared = given.get("num_key_value_heads") or heads
    if not all(type(size) is int and 0 < size < 2**24 for size in sizes.values()):
        return None
    assert isinstance(heads, int) and isinstance(shared, int) and isinstance(sizes["hidden_size"], int)
    head_dim = given.get("head_dim") or sizes["hidden_size"] // heads
    eps, theta = given.get("rms_norm_eps", 1e-6), rope.get("rope_theta")
    if type(head_dim) is not int or not 0 < head_dim < 2**16 or head_dim % 2 or heads % shared:
        return None
    if not all(type(real) in (int, float) for real in (eps, theta)):
        return None
    return LlamaConfig(**sizes, head_dim=head_dim, rms_norm_eps=eps, rope_theta=theta)  # type: ignore[arg-type]


class Llama(nn.Module):
    """Hidden states of the last layer, after the final norm. Made without values: `load_llama` gives them."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = _Weight(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = _Norm(config)

    def forward(
        self, input_ids: Int[Tensor, "batch positions"], **unused: object
    ) -> tuple[Float[Tensor, "batch positions dim"]]:
        """A position sees those before it alone, so padding on the right needs no mask."""
        states = embedding(input_ids, self.embed_tokens.weight)
        turn = _rotation(input_ids.shape[1], self.config, states)
        for layer in self.layers:
            states = layer(states, turn)
        return (self.norm(states),)


class _Weight(nn.Module):
    """A matrix without values yet. torch's own layers draw some first, and import seconds of code for it."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return linear(inputs, self.weight)


class _Layer(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = _Norm(config)
        self.self_attn = _Attention(config)
        self.post_attention_layernorm = _Norm(config)
        self.mlp = _MLP(config)

    def forward(self, states: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        states = states + self.self_attn(self.input_layernorm(states), turn)
        return states + self.mlp(self.post_attention_layernorm(states))


class _Attention(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        inner, shared = (
            heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads)
        )
        self.q_proj = _Weight(inner, config.hidden_size)
        self.k_proj = _Weight(shared, config.hidden_size)
        self.v_proj = _Weight(shared, config.hidden_size)
        self.o_proj = _Weight(config.hidden_size, inner)

    def forward(self, states: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        projected = (self.q_proj(states), self.k_proj(states), self.v_proj(states))
        query, key, value = (part.unflatten(2, (-1, self.head_dim)).transpose(1, 2) for part in projected)
        query, key = (part * turn[0] + _half_turned(part) * turn[1] for part in (query, key))
        each = query.shape[1] // key.shape[1]  # heads that share a key
        key, value = (part.repeat_interleave(each, dim=1) for part in (key, value))
        attended = scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.o_proj(attended.transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = _Weight(config.intermediate_size, config.hidden_size)
        self.up_proj = _Weight(config.intermediate_size, config.hidden_size)
        self.down_proj = _Weight(config.hidden_size, config.intermediate_size)

    def forward(self, states: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(states)) * self.up_proj(states))


class _Norm(nn.Module):
    """RMS norm in fp32; the weight is applied after rounding to the states' dtype."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.hidden_size, device="meta"), requires_grad=False)
        self.eps = config.rms_norm_eps

    def forward(self, states: Tensor) -> Tensor:
        wide = states.float()
        scaled = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(states.dtype)


def _rotation(positions: int, config: LlamaConfig, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions (arXiv 2104.09864), the two halves of a head alike."""
    steps = torch.arange(0, config.head_dim, 2, device=like.device, dtype=torch.float32) / config.head_dim
    places = torch.arange(positions, device=like.device, dtype=torch.float32)
    angles = torch.outer(places, 1.0 / config.rope_theta**steps).repeat(1, 2)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def _half_turned(heads: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def load_llama(folder: Path, config: LlamaConfig, dtype: torch.dtype, layers: int | None) -> Llama:
    """The first `layers` layers (None: all) and the final norm, read from `model.safetensors`.

    Raises `ConfigError` for layers that the model does not have, `FileError` naming tensors that are missing
    or of another shape, before any of them is read.
    """
    from safetensors import SafetensorError, safe_open

    have = config.num_hidden_layers
    if layers is not None and not 1 <= layers <= have:
        raise ConfigError(f"text_layers was {layers}; this language model has {have}")
    file = folder / WEIGHTS
    held, _ = tensor_header(file)
    before = "model." if "model.embed_tokens.weight" in held else ""  # a model with a head keeps it apart
    # Sizes that the file does not bear out must not become memory.
    counted = sum(1 for name in held if name.endswith("input_layernorm.weight"))
    if counted != have or before + "norm.weight" not in held:
        raise FileError(f"{folder.name!r} says {have} layers and holds {counted}; copy it again")
    model = Llama(replace(config, num_hidden_layers=layers or have))
    for name, parameter in model.state_dict().items():
        info = held.get(before + name)
        if info is None or info.shape != tuple(parameter.shape):
            found = "is missing" if info is None else f"has shape {list(info.shape)}"
            raise FileError(f"{folder.name!r}: {name} {found}; its config says {list(parameter.shape)}")
    try:
        with safe_open(file, framework="pt") as source:
            read = {name: source.get_tensor(before + name).to(dtype) for name in model.state_dict()}
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(f"{file.name!r} cannot be read: {error}") from error
    model.load_state_dict(read, assign=True)
    return model
