from dataclasses import replace

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from fewer.core.errors import DataError
from fewer.learn.distillation.audit import audit, nearest, similarity
from fewer.learn.distillation.loop import distill
from fewer.learn.distillation.training import Recipe
from tests.learn.distillation.conftest import make_pictures, tiny_plan


def short(distilled, epochs: int = 5):
    return replace(distilled, datasheet=replace(distilled.datasheet, recipe=Recipe(epochs=epochs)))


def test_real_copies_are_all_flagged() -> None:
    data, held = make_pictures(count=90), make_pictures(count=60, seed=7)
    report = audit(short(distill(data, plan=tiny_plan("random"))), data, held, networks=1)
    assert report.flagged_share == 1.0
    assert all(
        n.pixel_distance == 0 and n.similarity == pytest.approx(1, abs=1e-5) for n in report.neighbours
    )
    assert report.summary()["flagged"] == 6


def test_noise_is_not_flagged() -> None:
    data, held = make_pictures(count=90), make_pictures(count=60, seed=7)
    made = distill(data, plan=tiny_plan("dm", start="noise"))
    report = audit(short(made), data, held, networks=1)
    assert report.flagged == 0 and 0 <= report.by_loss.low <= report.by_loss.high <= 1


def test_the_copied_are_recognised_as_members() -> None:
    data, held = make_pictures(count=90), make_pictures(count=60, seed=7)
    made = short(distill(data, plan=tiny_plan("random")))
    pictures = made.pixels().permute(0, 2, 3, 1)
    rows = [int((data.images == one).flatten(1).all(1).nonzero()[0]) for one in pictures]
    report = audit(made, data, held, members=torch.tensor(rows), networks=1)
    assert report.by_distance.auc >= 0.9


def test_held_out_copies_do_not_soften_the_test() -> None:
    data, held = make_pictures(count=90), make_pictures(count=60, seed=7)
    mixed = replace(held, images=torch.cat([data.images[:15], held.images[15:]]))
    report = audit(short(distill(data, plan=tiny_plan("random"))), data, mixed, networks=1)
    assert report.duplicates == 15 and report.flagged_share == 1.0
    assert report.thresholds["pixels"] > 0


def test_multi_formation_is_audited_at_its_own_resolution() -> None:
    data, held = make_pictures(count=90), make_pictures(count=60, seed=7)
    report = audit(short(distill(data, plan=tiny_plan("dm", factor=2))), data, held, networks=1)
    assert len(report.neighbours) == 24


def test_too_little_to_compare_with_is_refused() -> None:
    data = make_pictures(count=90)
    made = distill(data, plan=tiny_plan("random"))
    with pytest.raises(DataError, match="at least 20"):
        audit(made, data, make_pictures(count=12))
    with pytest.raises(DataError, match="copies"):
        audit(made, data, data)


@pytest.mark.parametrize("count", [1, 3])
def test_nearest_is_exact(count: int) -> None:
    queries, keys = torch.rand(7, 1, 5, 5), torch.rand(23, 1, 5, 5)
    queries[2] = keys[11]
    distances, rows = nearest(queries, keys, count)
    wanted = (queries[:, None] - keys[None]).flatten(2).square().mean(2).sqrt().topk(count, largest=False)
    torch.testing.assert_close(distances.reshape(7, count), wanted.values)
    assert torch.equal(rows.reshape(7, count), wanted.indices)
    assert float(distances.reshape(7, count)[2, 0]) == 0.0


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 28)])
def test_similarity_is_that_of_torchmetrics(channels: int, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(4, channels, size, size, generator=generator)
    b = (a + 0.2 * torch.rand(4, channels, size, size, generator=generator)).clamp(0, 1)
    _, whole = structural_similarity_index_measure(a, b, data_range=1.0, return_full_image=True)
    wanted = whole[..., 5:-5, 5:-5].mean((1, 2, 3))  # without the padded border
    torch.testing.assert_close(similarity(a, b), wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(similarity(a, a), torch.ones(4))
