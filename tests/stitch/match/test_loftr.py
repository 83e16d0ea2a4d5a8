import math

import numpy as np
import pytest
import torch

from fewer.core.errors import FileError
from fewer.core.tensors import write_tensors
from fewer.stitch.match.loftr import SMALL, TUBE_WEIGHTS, CoarseLoFTR, load_tiny_loftr, position_table
from fewer.stitch.match.train_loftr import precision
from fewer.stitch.match.tube_pairs import TubePairPlan, make_tube_pairs, paint_walls


def test_weights_load_and_are_the_size_of_the_description() -> None:
    model = load_tiny_loftr()
    count = sum(parameter.numel() for parameter in model.parameters())
    # 159,870 of the published checkpoint less the finer half of its pyramid, which coarse matching never uses
    assert 100_000 < count < 159_870


@pytest.mark.parametrize("size", [(48, 64), (80, 32)])
def test_confidence_is_a_product_of_two_softmaxes(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    first, second = torch.rand(1, 1, *size), torch.rand(1, 1, 32, 48)
    with torch.no_grad():
        confidence = load_tiny_loftr()(first, second)
    assert confidence.shape == (1, size[0] * size[1] // 256, 6)
    assert (confidence >= 0).all()
    assert (confidence.sum(1) <= 1 + 1e-5).all()
    assert (confidence.sum(2) <= 1 + 1e-5).all()


def test_an_image_matches_itself() -> None:
    picture = torch.from_numpy(np.random.default_rng(0).random((1, 1, 12, 16), np.float32))
    picture = torch.nn.functional.interpolate(picture, (192, 256), mode="bicubic").clamp(0, 1)
    with torch.no_grad():
        confidence = load_tiny_loftr()(picture, picture)[0]
    assert (confidence.argmax(1) == torch.arange(len(confidence))).float().mean() > 0.8


def test_the_published_slip_of_the_position_table_is_kept() -> None:
    table = position_table(32, 3, 5)
    divisor = math.exp(2 * (-math.log(10000.0) / 32 // 2))
    assert table[4, 1, 3].item() == pytest.approx(math.sin(4 * divisor), abs=1e-6)
    assert table[3, 1, 3].item() == pytest.approx(math.cos(2.0), abs=1e-6)


def test_the_transformer_is_the_published_order_of_operations() -> None:
    """One attention layer against a plain loop over tokens."""
    torch.manual_seed(1)
    layer = CoarseLoFTR().loftr_coarse.layers[0].eval()
    x, source = torch.randn(1, 5, 32), torch.randn(1, 7, 32)
    with torch.no_grad():
        out = layer(x, source)
        phi = lambda t: torch.where(t > 0, t + 1, t.exp())  # noqa: E731
        q, k, v = phi(layer.q_proj(x))[0], phi(layer.k_proj(source))[0], layer.v_proj(source)[0]
        message = torch.stack(
            [
                sum((q[i] @ k[j]) * v[j] for j in range(7)) / sum(q[i] @ k[j] for j in range(7))
                for i in range(5)
            ]
        )
        message = layer.norm1(layer.merge(message))
        wanted = x[0] + layer.norm2(layer.mlp(torch.cat([x[0], message], dim=1)))
    assert torch.allclose(out[0], wanted, atol=1e-4)


def test_our_own_network_is_small_on_disk_and_finds_more_than_the_student() -> None:
    assert TUBE_WEIGHTS.stat().st_size < 300_000
    walls = paint_walls(1, 4321, length=50.0)
    found = []
    for model in (load_tiny_loftr(TUBE_WEIGHTS), load_tiny_loftr()):
        stride = model.shape.stride
        plan = TubePairPlan(stride=stride, crop=(256, 320))
        pairs = make_tube_pairs(walls, 1, plan, torch.Generator().manual_seed(5))
        with torch.no_grad():
            confidence = model(pairs.first, pairs.second)
        found.append(
            precision(confidence, pairs.index, pairs.inside, 320 // stride, 0.2 if stride == 8 else 0.02)
        )
    (right, recall), (student_right, student_recall) = found
    assert right > max(0.8, student_right - 0.05)
    assert recall > 0.7 > student_recall


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(FileError, match=r"gone\.safetensors"):
        load_tiny_loftr(tmp_path / "gone.safetensors")


def test_weights_of_our_own_training_are_known_by_their_shapes_and_others_refused(tmp_path) -> None:
    path = tmp_path / "own.safetensors"
    tensors = CoarseLoFTR(SMALL).state_dict()
    write_tensors(path, {name: value.half().contiguous() for name, value in tensors.items()})
    assert load_tiny_loftr(path).shape.stride == 8
    write_tensors(path, {"backbone.conv1.weight": torch.zeros(8, 1, 7, 7)})
    with pytest.raises(FileError, match="neither small LoFTR"):
        load_tiny_loftr(path)
