"""Foreign files that are cut, mixed up or hostile end in `FileError`, never in another exception."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fewer.core.errors import FewerError, FileError
from fewer.core.tensors import read_tensors, tensor_header, write_tensors
from fewer.quantize import Recipe, Rule, plan_layers, quantize
from fewer.quantize.checkpoint import apply_checkpoint, checkpoint_of, save_quantized
from fewer.quantize.conversion import convert
from fewer.quantize.engine_checks import layer_facts
from fewer.quantize.load import read_checkpoint

DIALECTS = ("nunchaku", "nunchaku-legacy", "nunchaku-lite", "cache-dit", "deepcompressor")
RULES = (
    Rule(r"(blocks\.\d+)\.to_[qkv]", group="{1}.qkv", part="qkv"),
    Rule(r".*norm_linear", "w4a16"),
)
METADATA = ("", "[]", "null", "{}", '{"blocks.0.to_q": {"members": 3}}', '{"blocks.0.to_q": {"rank": -1}}')


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(128, 128) for _ in range(3))
        self.norm_linear = nn.Linear(128, 128)


def model() -> nn.Module:
    root = nn.Module()
    root.blocks = nn.ModuleList([Block()])
    return root.bfloat16()


@pytest.fixture(scope="module", params=["int4", "nvfp4"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder a dialect."""
    folder, module = tmp_path_factory.mktemp(request.param), model()
    quantize(module, request.param, 16, recipe=Recipe(refine_rounds=1), plan=plan_layers(module, RULES))
    save_quantized(checkpoint_of(module, {"_class_name": "X"}), folder / "fewer")
    for dialect in DIALECTS:
        convert(folder / "fewer", folder / dialect, dialect)
    return folder


def _shorter(tensor: Tensor) -> Tensor:
    return tensor.flatten()[:-1].clone() if tensor.numel() > 1 else torch.ones(3)


DAMAGES: tuple[Callable[[Tensor], Tensor], ...] = (
    _shorter,
    lambda tensor: torch.tensor(1.0),
    lambda tensor: torch.zeros(0),
    lambda tensor: torch.full_like(tensor.float(), torch.nan).to(tensor.dtype),
    lambda tensor: tensor.float().to(torch.int64),
    lambda tensor: tensor.float().to(torch.int8),
)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_damage_is_a_file_error_and_the_whole_file_is_read(files: Path, tmp_path: Path, dialect: str) -> None:
    whole, found = read_checkpoint(files / dialect)
    assert found == dialect and whole.layers
    generator = random.Random(dialect)
    refused = 0
    for source in sorted((files / dialect).glob("*.safetensors")):
        tensors = read_tensors(source)
        told = {key: text for key, text in tensor_header(source)[1].items() if key != "fewer.sha256"}
        for other in (files / dialect).iterdir():
            (tmp_path / other.name).write_bytes(other.read_bytes())
        for _ in range(6):
            changed, metadata = dict(tensors), dict(told)
            if metadata and generator.random() < 0.3:
                metadata[generator.choice(sorted(metadata))] = generator.choice(METADATA)
            elif changed:
                name = generator.choice(sorted(changed))
                changed[name] = generator.choice(DAMAGES)(changed[name])
            write_tensors(tmp_path / source.name, changed, metadata)
            try:
                checkpoint, _ = read_checkpoint(tmp_path)
                apply_checkpoint(model(), checkpoint, whole=bool(checkpoint.plain))
            except FewerError:
                refused += 1
        write_tensors(tmp_path / source.name, tensors, told)
    assert refused >= 3


@pytest.mark.parametrize(
    "facts",
    [
        None,
        {"format": "h8", "shape": [4, 4], "rank": 0},
        {"format": "int4", "shape": [4], "rank": 0},
        {"format": "int4", "shape": [4, 2**40], "rank": 0},
        {"format": "int4", "shape": [0, 4], "rank": 0},
        {"format": "int4", "shape": [4, 4], "rank": -1},
        {"format": "int4", "shape": [4, True], "rank": 0},
        {"format": ["int4"], "shape": [4, 4], "rank": 0},
    ],
)
def test_facts_of_other_types_or_sizes_name_the_layer(facts: object) -> None:
    with pytest.raises(FileError, match=r"'blocks\.0'"):
        layer_facts(facts, "blocks.0")
    assert layer_facts({"format": "int4", "shape": (4, 6), "rank": 2}, "x") == ("int4", 4, 6, 2)
