import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "quantize_layers.py"


@pytest.fixture(scope="session")
def bench() -> ModuleType:
    """The benchmark's own recipe and measurement, so that test and benchmark cannot drift apart."""
    spec = importlib.util.spec_from_file_location("quantize_layers", BENCHMARK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TinyBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.o_proj, self.up, self.down = (
            nn.Linear(dim, dim),
            nn.Linear(dim, 2 * dim),
            nn.Linear(2 * dim, dim),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attention = torch.nn.functional.scaled_dot_product_attention(
            self.q_proj(x), self.k_proj(x), self.v_proj(x)
        )
        x = x + self.o_proj(attention)
        return x + self.down(torch.nn.functional.gelu(self.up(x)))


class TinyModel(nn.Module):
    """A decoder-like stack with an embedding, repeated blocks and a head."""

    def __init__(self, dim: int = 64, blocks: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(16, dim)
        self.blocks = nn.ModuleList(TinyBlock(dim) for _ in range(blocks))
        self.head = nn.Linear(dim, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture
def tiny() -> tuple[TinyModel, torch.Tensor]:
    torch.manual_seed(0)
    return TinyModel(), torch.randn(4, 25, 16)


@pytest.fixture
def relative() -> Callable[[torch.Tensor, torch.Tensor], float]:
    return lambda found, exact: ((found - exact).norm() / exact.norm()).item()


@pytest.fixture(scope="session")
def flux_checkpoint() -> "Callable[[str], object]":
    """A tiny FLUX, quantized once per format, as a checkpoint in bf16; and a maker of empty models for it."""
    from diffusers import FluxTransformer2DModel

    from fewer.quantize import Recipe, quantize
    from fewer.quantize.checkpoint import checkpoint_of

    made: dict[str, object] = {}

    def make(form: str) -> object:
        if form not in made:
            torch.manual_seed(0)
            model = FluxTransformer2DModel(
                in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=32,
                num_attention_heads=4, joint_attention_dim=64,
                pooled_projection_dim=48, axes_dims_rope=(8, 12, 12),
            ).to(torch.bfloat16)  # fmt: skip
            skeleton = FluxTransformer2DModel.from_config(model.config).to(torch.bfloat16)
            for parameter in model.parameters():
                parameter.data.normal_(std=0.05)
            quantize(model, form, 16, recipe=Recipe(refine_rounds=1, smooth=False))
            for module in model.modules():
                if hasattr(module, "smooth") and module.form.name != "w4a16":
                    module.smooth = (torch.rand(module.in_features) + 0.5).to(torch.bfloat16)
            for block in [model.transformer_blocks[0].attn, model.single_transformer_blocks[0].attn]:
                block.to_k.smooth = block.to_v.smooth = block.to_q.smooth
            attention = model.transformer_blocks[0].attn
            attention.add_k_proj.smooth = attention.add_v_proj.smooth = attention.add_q_proj.smooth
            config = {key: value for key, value in dict(model.config).items() if not key.startswith("_")}
            made[form] = (checkpoint_of(model, {"_class_name": "FluxTransformer2DModel"} | config), skeleton)
        return made[form]

    return make


@pytest.fixture(scope="session")
def same_layers() -> Callable[[object, object], bool]:
    """Whether two checkpoints hold the same layers, byte for byte."""

    def compare(first: object, second: object) -> bool:
        for name, layer in first.layers.items():
            one, two = layer.tensors(), second.layers[name].tensors()
            if set(one) != set(two) or layer.facts() != second.layers[name].facts():
                return False
            # the engine's files add 1 to modulation biases in 16 bits: half a step of 2**-7 is lost
            loose = 2**-7 if layer.format == "w4a16" else 0.0
            for part, tensor in one.items():
                gap = (tensor.float() - two[part].float()).abs().max()
                if tensor.dtype != two[part].dtype or gap > (loose if part == "bias" else 0):
                    return False
        return set(first.layers) == set(second.layers)

    return compare


@pytest.fixture
def sana_folder(tmp_path: Path) -> Path:
    """A tiny Sana of ours in a folder."""
    from fewer.generate.transformer import SanaParams, SanaTransformer

    torch.manual_seed(0)
    params = SanaParams(
        in_channels=4, out_channels=4, heads=2, head_dim=32, depth=1, cross_heads=2, cross_head_dim=32,
        caption_channels=16, sample_size=8,
    )  # fmt: skip
    model = SanaTransformer(params)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.05)
    model.save(tmp_path / "sana")
    return tmp_path / "sana"


@pytest.fixture
def sana_inputs() -> tuple[torch.Tensor, ...]:
    """Latents, timestep, text and its mask."""
    return torch.randn(2, 4, 8, 8), torch.tensor([10.0, 500.0]), torch.randn(2, 5, 16), torch.ones(2, 5)


@pytest.fixture
def class_folder(tmp_path: Path) -> Path:
    """A tiny condition-aware transformer of two classes in a folder of `fewer train class-conditional`."""
    from fewer.generate.conditional import ClassConditionalParams, ConditionPlan
    from fewer.generate.conditional.build import build
    from fewer.generate.conditional.formats import save_folder

    params = ClassConditionalParams(size=8, width=64, depth=2, heads=2, classes=2)
    model = build(params, ConditionPlan(rank=8), seed=0)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.05)
    save_folder(model, tmp_path / "classes", ("zero", "one"))
    return tmp_path / "classes"
