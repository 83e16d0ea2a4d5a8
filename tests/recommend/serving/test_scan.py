from pathlib import Path

import pytest
import torch

from fewer.core.errors import ConfigError, FileError
from fewer.recommend.serving.index import ExactIndex, recall
from fewer.recommend.serving.scan import ScanIndex, ScanPlan

faiss = pytest.importorskip("faiss")


def vectors(count: int, dim: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dim", [5, 16, 64])
def test_a_scan_finds_nearly_everything_with_exact_scores(dim: int) -> None:
    table, asked = vectors(3000, dim), vectors(20, dim, seed=1)
    values, places = ScanIndex(table, ScanPlan(rerank=200)).search(asked, 10)
    assert recall(places, ExactIndex(table).search(asked, 10)[1]) > 0.95
    torch.testing.assert_close(values, (asked @ table.T).gather(1, places), atol=1e-4, rtol=1e-4)
    assert (values[:, 1:] <= values[:, :-1]).all()


@pytest.mark.parametrize("items", [1, 5, 123])
def test_few_items_are_all_ranked(items: int) -> None:
    table, asked = vectors(items), vectors(3, seed=1)
    places = ScanIndex(table).search(asked, items)[1]
    assert torch.equal(places, ExactIndex(table).search(asked, items)[1])
    with pytest.raises(ConfigError, match="between 1 and"):
        ScanIndex(table).search(asked, items + 1)


def test_more_candidates_miss_less() -> None:
    table, asked = vectors(5000, 32), vectors(30, 32, seed=1)
    truth = ExactIndex(table).search(asked, 10)[1]
    found = [recall(ScanIndex(table, ScanPlan(rerank=n)).search(asked, 10)[1], truth) for n in (10, 50, 500)]
    assert found[0] < found[1] <= found[2] and found[2] > 0.99


def test_a_scan_survives_the_disk_and_damage_is_told(tmp_path: Path) -> None:
    table, asked = vectors(500), vectors(4, seed=1)
    index = ScanIndex(table)
    index.save(tmp_path / "items.scan")
    again = ScanIndex.load(tmp_path / "items.scan", table)
    assert torch.equal(again.search(asked, 10)[1], index.search(asked, 10)[1])
    with pytest.raises(FileError, match="does not belong"):
        ScanIndex.load(tmp_path / "items.scan", table[:-1])
    (tmp_path / "items.scan").write_bytes((tmp_path / "items.scan").read_bytes()[:-9])
    with pytest.raises(FileError, match="damaged"):
        ScanIndex.load(tmp_path / "items.scan", table)


def test_the_process_keeps_its_threads() -> None:
    before = faiss.omp_get_max_threads()
    ScanIndex(vectors(50), ScanPlan(threads=1)).search(vectors(1), 3)
    assert faiss.omp_get_max_threads() == before
