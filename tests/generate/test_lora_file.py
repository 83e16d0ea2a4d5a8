"""LoRA files: every naming in use gives the same pairs, everything else is refused by name."""

import pytest
import torch

from fewer.core.errors import ConfigError, FileError
from fewer.generate.lora_file import LowRank, finite, read_pairs

DOWN, UP = torch.randn(3, 8), torch.randn(5, 3)


@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("lora_A.weight", "lora_B.weight"),
        ("lora_A.default.weight", "lora_B.default.weight"),
        ("lora_down.weight", "lora_up.weight"),
        ("lora.down.weight", "lora.up.weight"),
        ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
    ],
)
def test_every_naming_gives_the_same_pair(down: str, up: str) -> None:
    pairs = read_pairs({f"a.b.{down}": DOWN, f"a.b.{up}": UP})
    assert list(pairs) == ["a.b"]
    assert torch.equal(pairs["a.b"].down, DOWN) and torch.equal(pairs["a.b"].up, UP)


def test_alpha_is_the_layers_own_else_the_files_else_the_rank() -> None:
    tensors = {"a.lora_A.weight": DOWN, "a.lora_B.weight": UP}
    assert read_pairs(tensors)["a"].strength == 1
    assert read_pairs(tensors, alpha=6.0)["a"].strength == 2
    assert read_pairs(tensors | {"a.alpha": torch.tensor(9.0)}, alpha=6.0)["a"].strength == 3


def test_a_pointwise_convolution_becomes_a_matrix_and_the_product_is_the_weights_change() -> None:
    pair = read_pairs(
        {"a.lora_A.weight": DOWN[:, :, None, None], "a.lora_B.weight": UP[:, :, None, None]}, alpha=6.0
    )["a"]
    rows = torch.randn(2, 7, 8)
    assert torch.allclose(pair.product(rows, 0.5), rows @ (UP @ DOWN).T, atol=1e-5)
    assert pair.product(rows.bfloat16(), 0.5).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("error", "text", "tensors"),
    [
        (ConfigError, "LoKr", {"a.lokr_w1": DOWN}),
        (ConfigError, "LoHa", {"a.hada_w1_a": DOWN}),
        (ConfigError, "DoRA", {"a.lora_A.weight": DOWN, "a.dora_scale": UP}),
        (FileError, "one of the two factors of layer 'a'", {"a.lora_A.weight": DOWN}),
        (FileError, "one of the two factors of layer 'b'", {"b.alpha": torch.tensor(1.0)}),
        (FileError, "'a.weight' is no LoRA tensor", {"a.weight": DOWN}),
        (FileError, "no LoRA tensor of a linear layer", {"a.lora_A.weight": torch.zeros(2, 4, 3, 3)}),
        (FileError, "empty", {}),
        (FileError, "no LoRA tensor", {"a.lora_A.weight": torch.tensor(1.0), "a.lora_B.weight": UP}),
        (FileError, "no LoRA tensor", {"a.lora_A.weight": DOWN[0], "a.lora_B.weight": UP}),
        (FileError, "no LoRA tensor", {"a.lora_A.weight": DOWN[:0], "a.lora_B.weight": UP[:, :0]}),
        (FileError, "no LoRA tensor", {"a.lora_A.weight": DOWN.to(torch.int8), "a.lora_B.weight": UP}),
        (FileError, "ranks are 3 and 2", {"a.lora_A.weight": DOWN, "a.lora_B.weight": UP[:, :2]}),
        (FileError, "one finite number", {"a.alpha": torch.ones(2)}),
        (FileError, "one finite number", {"a.alpha": torch.tensor(float("nan"))}),
    ],
)
def test_everything_else_is_refused_by_name(
    error: type[Exception], text: str, tensors: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(error, match=text):
        read_pairs(tensors)


def test_not_a_number_is_seen() -> None:
    assert finite(LowRank(DOWN, UP, 1.0))
    assert not finite(LowRank(DOWN, UP * float("nan"), 1.0))
