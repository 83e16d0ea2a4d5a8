"""Which layers of a model become 4-bit, which share their smoothing scales, and which stay in 16 bits.

Known models have a table of rules below, one line per role (SVDQuant's own choices). Any other model falls
under the documented rule of `_unknown_rules`. `plan_layers` only looks at names, types and shapes, so it is
also the dry run.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn

from fewer.core.errors import ConfigError

Method = Literal["svdquant", "w4a16", "keep"]


@dataclass(frozen=True, slots=True)
class Rule:
    """Layers whose whole name matches `pattern` get `method`; {1}, {2} in the other fields are its groups."""

    pattern: str
    method: Method = "svdquant"
    group: str = ""
    """Layers with the same group share smoothing scales; empty is a group of its own."""
    part: str = ""
    """Layers of a group with the same part also share one low-rank branch and read one input."""
    block: str = ""
    """Submodule whose output the smoothing search compares; empty is the layer's own output."""
    unsigned: bool = False
    """The input is a GELU's output."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What happens to one layer, and why."""

    name: str
    shape: tuple[int, int]
    method: Method
    reason: str
    unsigned: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that share smoothing scales, in parts that share an input and a branch."""

    key: str
    parts: tuple[tuple[str, ...], ...]
    block: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that will be done to a model: the dry run of `fewer quantize --dry-run`."""

    model: str
    choices: tuple[Choice, ...]
    groups: tuple[Group, ...]
    splits: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """Layers first cut along their input channels into one layer per piece (FLUX single blocks' proj_out)."""

    def names(self, method: Method) -> list[str]:
        """The layers that get `method`."""
        return [choice.name for choice in self.choices if choice.method == method]

    def choice(self, name: str) -> Choice:
        """The choice for one layer."""
        return next(choice for choice in self.choices if choice.name == name)


def _transformer_rules(prefix: str, gelu: bool) -> tuple[Rule, ...]:
    """diffusers' BasicTransformerBlock: self-attention, cross-attention q and out, feed-forward."""
    return (
        Rule(rf"({prefix})\.attn1\.to_[qkv]", group="{1}.qkv", part="qkv", block="{1}.attn1"),
        Rule(rf"{prefix}\.attn1\.to_out\.0"),
        Rule(rf"{prefix}\.attn2\.to_q"),
        Rule(rf"{prefix}\.attn2\.to_out\.0"),
        Rule(rf"{prefix}\.ff\.net\.0\.proj"),
        Rule(rf"{prefix}\.ff\.net\.2", unsigned=gelu),
    )


_SANA = (
    Rule(r"(transformer_blocks\.\d+)\.attn1\.to_[qkv]", group="{1}.qkv", part="qkv", block="{1}.attn1"),
    Rule(r"transformer_blocks\.\d+\.attn1\.to_out\.0"),
    Rule(r"transformer_blocks\.\d+\.attn2\.to_q"),
    Rule(r"transformer_blocks\.\d+\.attn2\.to_out\.0"),
    Rule(r"transformer_blocks\.\d+\.ff\.conv_(inverted|point)"),
)
_FLUX_JOINT, _FLUX_SINGLE = r"transformer_blocks\.\d+", r"single_transformer_blocks\.\d+"
_FLUX = (
    Rule(rf"({_FLUX_JOINT})\.attn\.to_[qkv]", group="{1}.qkv", part="qkv", block="{1}.attn"),
    Rule(rf"({_FLUX_JOINT})\.attn\.add_[qkv]_proj", group="{1}.add_qkv", part="qkv", block="{1}.attn"),
    Rule(rf"({_FLUX_JOINT})\.attn\.to_out\.0", group="{1}.out", part="image"),
    Rule(rf"({_FLUX_JOINT})\.attn\.to_add_out", group="{1}.out", part="text"),
    Rule(rf"{_FLUX_JOINT}\.ff(_context)?\.net\.0\.proj"),
    Rule(rf"{_FLUX_JOINT}\.ff(_context)?\.net\.2", unsigned=True),
    Rule(rf"{_FLUX_JOINT}\.norm1(_context)?\.linear", "w4a16"),
    Rule(rf"({_FLUX_SINGLE})\.attn\.to_[qkv]", group="{1}.in", part="qkv", block="{1}"),
    Rule(rf"({_FLUX_SINGLE})\.proj_mlp", group="{1}.in", part="mlp", block="{1}"),
    Rule(rf"{_FLUX_SINGLE}\.proj_out\.attention"),
    Rule(rf"{_FLUX_SINGLE}\.proj_out\.mlp", unsigned=True),
    Rule(rf"{_FLUX_SINGLE}\.norm\.linear", "w4a16"),
)
_AUTOENCODER = (
    Rule(r"(.*)\.attn\.to_[qkv]", group="{1}.qkv", part="qkv", block="{1}.attn"),
    Rule(r".*\.attn\.to_out(\.0)?"),
    Rule(r".*\.conv_(inverted|point)"),
)

# Class-conditional transformers of ours, bare or inside a condition-aware model. Layers that get generated
# weights (they end in .static there) stay in 16 bits: merging adds to their weight at every step.
_IN = r"(?:base\.)?"
_DIT = (
    Rule(rf"({_IN}blocks\.\d+)\.attn\.qkv", block="{1}.attn"),
    Rule(rf"{_IN}blocks\.\d+\.attn\.proj"),
    Rule(rf"{_IN}blocks\.\d+\.mlp\.fc1"),
    Rule(rf"{_IN}blocks\.\d+\.mlp\.fc2", unsigned=True),
    Rule(rf"{_IN}blocks\.\d+\.adaLN_modulation\.1", "w4a16"),
)
_UVIT_BLOCK = rf"{_IN}(?:in_blocks\.\d+|mid_block|out_blocks\.\d+)"
_UVIT = (
    Rule(rf"({_UVIT_BLOCK})\.attn\.qkv", block="{1}.attn"),
    Rule(rf"{_UVIT_BLOCK}\.(attn\.proj|mlp\.fc1|skip_linear)"),
    Rule(rf"{_UVIT_BLOCK}\.mlp\.fc2", unsigned=True),
)
_CAT = (
    Rule(rf"({_IN}blocks\.\d+)\.attn\.to_[qkv]", group="{1}.qkv", part="qkv", block="{1}.attn"),
    Rule(rf"{_IN}blocks\.\d+\.attn\.to_out\.0"),
    Rule(rf"{_IN}blocks\.\d+\.ffn\.conv_(inverted|point)"),
    Rule(rf"{_IN}blocks\.\d+\.adaLN_modulation\.1", "w4a16"),
)

KNOWN: dict[str, tuple[Rule, ...]] = {
    "SanaTransformer2DModel": _SANA,
    "SanaTransformer": _SANA,
    "DiT": _DIT,
    "UViT": _UVIT,
    "CaT": _CAT,
    "ConditionAware": (*_DIT, *_UVIT, *_CAT),
    "PixArtTransformer2DModel": _transformer_rules(r"transformer_blocks\.\d+", gelu=True),
    "UNet2DConditionModel": _transformer_rules(r".*\.transformer_blocks\.\d+", gelu=False),
    "FluxTransformer2DModel": _FLUX,
    "AutoencoderDC": _AUTOENCODER,
    # our attention multiplies by its projections' weights itself: as modules they are never called
    "DCAutoencoder": _AUTOENCODER[2:],
}

SMALLEST = 64  # channels; below this the branch and the scales cost as much as the weight saves
_EDGES = re.compile(
    r"(^|[._])(lm_head|head|heads|classifier|embed\w*|\w*embed|\w*embedder|pos|time\w*|router)([._]|$)"
)
_MODULATION = re.compile(r"(adaln|ada_ln|modulation|norm\w*\.linear)", re.IGNORECASE)
_CROSS = re.compile(r"(attn2|cross|encoder_attn)", re.IGNORECASE)
_SIBLINGS = (
    ("to_q", "to_k", "to_v"), ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"),
    ("query", "key", "value"), ("q", "k", "v"), ("wq", "wk", "wv"),
    ("add_q_proj", "add_k_proj", "add_v_proj"),
)  # fmt: skip


def plan_layers(module: nn.Module, rules: tuple[Rule, ...] | None = None) -> Plan:
    """What would be quantized in `module`; nothing is changed. Own `rules` replace the model's.

    Raises `ConfigError` for a rule that is none, or if no layer at all would be quantized.
    """
    model = type(module).__name__
    _check_rules(rules or ())
    known = rules if rules is not None else KNOWN.get(model)
    splits = _splits(module) if known is _FLUX else ()
    sizes = dict(_linear_layers(module, dict(splits)))
    chosen = (
        [_match(name, shape, known) for name, shape in sizes.items()]
        if known is not None
        else list(_unknown_rules(module, sizes))
    )
    if not any(choice.method != "keep" for choice, _ in chosen):
        raise ConfigError(
            f"no layer of {model} would be quantized: it has {len(sizes)} linear layers, none in a "
            f"known role or at least {SMALLEST} channels wide in a repeated block; pass rules of your own"
        )
    chosen += _matrices_of_no_layer(module)
    return Plan(model, tuple(choice for choice, _ in chosen), _groups(chosen), splits)


def _check_rules(rules: tuple[Rule, ...]) -> None:
    for rule in rules:
        try:
            re.compile(rule.pattern)
        except re.error as error:
            raise ConfigError(f"the pattern {rule.pattern!r} is no regular expression: {error}") from error
        if rule.method not in get_args(Method):
            raise ConfigError(f"method {rule.method!r} is not known; allowed: {', '.join(get_args(Method))}")


def eligible(module: nn.Module) -> bool:
    """Plain linear layers, GPT-2's transposed ones, and 1x1 convolutions (stride 1, one group); subclasses
    have their own forward."""
    if type(module) is nn.Linear or transposed(module):
        return True
    return (
        type(module) is nn.Conv2d
        and set(module.kernel_size) == {1}
        and set(module.stride) == {1}
        and module.groups == 1
        and set(module.padding) == {0}
    )


def transposed(module: nn.Module) -> bool:
    """Whether it is the `Conv1D` of transformers (GPT-2): a linear layer whose weight is [in, out]."""
    kind = type(module)
    return (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")


def weight_of(module: nn.Module) -> Float[Tensor, "out dim"]:
    """The weight of an eligible layer, however it is stored."""
    weight: Tensor = module.weight.detach().flatten(1)  # pyright: ignore
    return weight.mT.contiguous() if transposed(module) else weight


def _matrices_of_no_layer(module: nn.Module) -> Iterator[tuple[Choice, Rule]]:
    """What would be quantized if it were linear layers that are called: torch's own attention, and experts
    (mixtures in transformers keep the matrices of all in one parameter).
    """
    for name, child in module.named_modules():
        for own, weight in child.named_parameters(prefix=name, recurse=False):
            if weight.ndim == 3 and min(weight.shape[1:]) >= SMALLEST:
                count, out, dim = weight.shape
                yield _keep(own, (out, dim), f"{count} matrices in one parameter, no linear layers")
        if isinstance(child, nn.MultiheadAttention):
            reason = "nn.MultiheadAttention: torch reads its weights past the layers"
            yield _keep(name, (4 * child.embed_dim, child.embed_dim), reason)


def _linear_layers(
    module: nn.Module, splits: dict[str, tuple[int, ...]]
) -> Iterator[tuple[str, tuple[int, int]]]:
    for name, child in module.named_modules():
        if not name or not eligible(child):
            continue
        out, dim = map(int, child.weight.shape[:2])  # pyright: ignore
        if transposed(child):
            out, dim = dim, out
        if name in splits:
            for piece, width in zip(SPLIT_NAMES, splits[name], strict=True):
                yield f"{name}.{piece}", (out, width)
        else:
            yield name, (out, dim)


SPLIT_NAMES = ("attention", "mlp")


def _splits(module: nn.Module) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """FLUX single blocks: proj_out reads [attention | GELU(mlp)]; the halves need different quantizers."""
    found = []
    for name, child in module.named_modules():
        if re.fullmatch(rf"{_FLUX_SINGLE}\.proj_out", name) and eligible(child):
            out, dim = child.weight.shape[:2]  # pyright: ignore
            found.append((name, (int(out), int(dim) - int(out))))
    return tuple(found)


def _match(name: str, shape: tuple[int, int], rules: tuple[Rule, ...]) -> tuple[Choice, Rule]:
    for rule in rules:
        if found := re.fullmatch(rule.pattern, name):
            texts = (rule.group, rule.part, rule.block)
            group, part, block = (
                text.replace("{1}", (found.group(1) or "") if found.re.groups else "") for text in texts
            )
            filled = Rule(rule.pattern, rule.method, group, part, block, rule.unsigned)
            return Choice(name, shape, rule.method, "role of this model", rule.unsigned), filled
    return Choice(name, shape, "keep", "not in a quantized role of this model"), Rule(name, "keep")


def _unknown_rules(module: nn.Module, sizes: dict[str, tuple[int, int]]) -> Iterator[tuple[Choice, Rule]]:
    """The rule for models we have no table for.

    Linear layers (`Conv1D` of GPT-2 among them) and 1x1 convolutions with at least 64 input and output
    channels are quantized if they lie in a repeated block (an element of an `nn.ModuleList`; if the model has
    none, anywhere). Names of heads, embedders, timestep networks and routers stay in 16 bits, so do keys and
    values of cross-attention; modulation layers become w4a16. q, k, v and gate/up siblings of equal width
    share scales and branch.
    """
    repeated = [
        f"{name}." for name, child in module.named_modules() if isinstance(child, nn.ModuleList) and name
    ]
    inside = {name for name in sizes if any(name.startswith(prefix) for prefix in repeated)}
    for name, shape in sizes.items():
        last = name.rpartition(".")[2]
        if min(shape) < SMALLEST:
            yield _keep(name, shape, f"fewer than {SMALLEST} channels")
        elif _EDGES.search(name):
            yield _keep(name, shape, "head, embedding, timestep network or router by its name")
        elif inside and name not in inside:
            yield _keep(name, shape, "outside the repeated blocks")
        elif _MODULATION.search(name):
            yield Choice(name, shape, "w4a16", "modulation layer"), Rule(name, "w4a16")
        elif _CROSS.search(name) and any(last in names[1:] for names in _SIBLINGS):
            yield _keep(name, shape, "key or value of cross-attention")
        else:
            group = _sibling_group(name, shape[1], sizes)
            yield (
                Choice(name, shape, "svdquant", "linear layer of a repeated block"),
                Rule(name, group=group, part=group),
            )


def _keep(name: str, shape: tuple[int, int], reason: str) -> tuple[Choice, Rule]:
    return Choice(name, shape, "keep", reason), Rule(name, "keep")


def _sibling_group(name: str, width: int, sizes: dict[str, tuple[int, int]]) -> str:
    parent, _, last = name.rpartition(".")
    for names in _SIBLINGS:
        if last in names and not _CROSS.search(name):
            present = [other for other in names if f"{parent}.{other}" in sizes]
            if len(present) > 1 and all(sizes[f"{parent}.{other}"][1] == width for other in present):
                return f"{parent}.{'+'.join(present)}"
    return ""


def _groups(chosen: list[tuple[Choice, Rule]]) -> tuple[Group, ...]:
    parts: dict[str, dict[str, list[str]]] = {}
    blocks: dict[str, str] = {}
    for choice, rule in chosen:
        if choice.method != "svdquant":
            continue
        key = rule.group or choice.name
        parts.setdefault(key, {}).setdefault(rule.part, []).append(choice.name)
        blocks[key] = rule.block
    return tuple(
        Group(key, tuple(tuple(names) for names in found.values()), blocks[key])
        for key, found in parts.items()
    )
