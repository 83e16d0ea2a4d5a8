from pathlib import Path

import pytest
import torch

from fewer.core.errors import ConfigError, FileError
from fewer.core.tensors import write_tensors
from fewer.generate.conditional.for_sana import (
    GENERATORS,
    ConditionedSana,
    condition_sana,
    load_conditioned,
    save_conditioned,
)
from fewer.generate.conditional.targets import ConditionPlan
from fewer.generate.transformer.sana import SanaTransformer
from tests.generate.conditional.conftest import randomise, tiny_sana


def test_masked_text_and_other_samples_do_not_matter() -> None:
    model = condition_sana(tiny_sana(), ConditionPlan(rank=2))
    randomise(model.can)
    latents, times, text = torch.randn(2, 3, 4, 4), torch.tensor([10.0, 900.0]), torch.randn(2, 5, 6)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    with torch.no_grad():
        before = model(latents, times, text, mask)
        other = text.clone()
        other[0, 3] = 100.0
        assert torch.equal(model(latents, times, other, mask), before)
        merged = model.merge(model.embed(times[:1], text[:1], mask[:1]))
        assert torch.allclose(merged(latents[:1], times[:1], text[:1], mask[:1]), before[:1], atol=1e-5)
        assert not torch.allclose(model(latents, times, text[[1, 0]], mask)[0], before[0], atol=1e-3)


def conditioned() -> ConditionedSana:
    network = condition_sana(tiny_sana(), ConditionPlan(rank=2))
    randomise(network.can)
    return ConditionedSana(network).eval()


@torch.no_grad()
def test_a_text_prepared_beforehand_gives_the_same() -> None:
    model = conditioned()
    latents, times, text = torch.randn(2, 3, 4, 4), torch.tensor([10.0, 900.0]), torch.randn(2, 5, 6)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    whole = model(latents, times, text, mask)
    parts = model.denoise(latents, times, model.prepare(text, mask))
    assert torch.allclose(whole, parts, atol=1e-5)
    assert not torch.allclose(whole, model.base(latents, times, text, mask), atol=1e-4)


@torch.no_grad()
def test_files_hold_a_plain_transformer_and_generators(tmp_path: Path) -> None:
    model = conditioned()
    save_conditioned(model, tmp_path)
    inputs = (torch.randn(1, 3, 4, 4), torch.tensor([300.0]), torch.randn(1, 5, 6))
    assert torch.allclose(load_conditioned(tmp_path)(*inputs), model(*inputs), atol=1e-5)
    assert torch.allclose(SanaTransformer.load(tmp_path)(*inputs), model.base(*inputs), atol=1e-5)


def test_generators_of_another_kind_are_refused(tmp_path: Path) -> None:
    model = conditioned()
    save_conditioned(model, tmp_path)
    facts = {"format": "fewer-sana-can", "kind": "can", "targets": "dwconv", "rank": "2", "kernels": "4"}
    for changed, message in (
        ({"format": "other"}, "format 'other'"),
        ({"rank": "many"}, "damaged facts"),
        ({"rank": "0"}, "rank"),
        ({}, "does not fit its own plan"),
    ):
        write_tensors(tmp_path / GENERATORS, {"can.patch_embed.a.weight": torch.zeros(2)}, facts | changed)
        with pytest.raises((FileError, ConfigError), match=message):
            load_conditioned(tmp_path)
