import pytest
import torch

from fewer.learn.few_labels.augment import strong_pool
from fewer.learn.few_labels.views import Views


def views_of(channels: int, strong: bool, again: int, size: tuple[int, int]) -> Views:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, channels, *size), generator=generator).to(torch.uint8)
    mean, deviation = torch.full((channels,), 0.4), torch.full((channels,), 0.3)
    return Views(images, mean, deviation, True, strong_pool("auto", channels), strong, again)


@pytest.mark.parametrize(
    ("channels", "strong", "again", "size"),
    [
        (3, True, 0, (32, 32)),
        (1, True, 0, (28, 28)),
        (1, False, 1, (9, 14)),
        (3, True, 2, (5, 5)),
    ],
)
def test_views_from_tables_are_pixel_for_pixel_those_made_one_operation_at_a_time(
    channels: int, strong: bool, again: int, size: tuple[int, int]
) -> None:
    """The tables are what a GPU replays; the other way groups the pictures by their operation."""
    views = views_of(channels, strong, again, size)
    labelled, unlabelled = (
        torch.arange(5),
        torch.randint(40, (150,), generator=torch.Generator().manual_seed(1)),
    )
    grouped = views(labelled, unlabelled, torch.Generator().manual_seed(2))
    tables = views.tables(labelled, unlabelled, torch.Generator().manual_seed(2))
    for one, other in zip(grouped, views.from_tables(*tables), strict=True):
        if one is None:
            assert other is None
        else:
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_both_ways_draw_the_same_numbers() -> None:
    views, generators = views_of(3, True, 2, (8, 8)), [torch.Generator().manual_seed(3) for _ in range(2)]
    views(torch.arange(3), torch.arange(7), generators[0])
    views.tables(torch.arange(3), torch.arange(7), generators[1])
    assert torch.equal(*(generator.get_state() for generator in generators))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_makes_the_same_views() -> None:
    views = views_of(3, True, 0, (32, 32))
    there = Views(views.images.cuda(), torch.full((3,), 0.4), torch.full((3,), 0.3), True, views.pool)
    for seed in range(3):
        rows = torch.randint(40, (70,), generator=torch.Generator().manual_seed(seed))
        pairs = [one(rows[:5], rows, torch.Generator().manual_seed(seed)) for one in (views, there)]
        for one, other in zip(*pairs, strict=True):
            if one is not None:
                torch.testing.assert_close(one, other.cpu().contiguous(), rtol=1e-6, atol=1e-6)
