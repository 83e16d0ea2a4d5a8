from pathlib import Path

import pytest
import torch

from fewer.core.errors import ConfigError, FileError
from fewer.recommend.serving.index import ExactIndex, GraphIndex, GraphPlan, recall, top_k_in_blocks


def vectors(count: int, dim: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("items", [1, 5, 123, 1000])
@pytest.mark.parametrize("block", [1, 7, 64])
@pytest.mark.parametrize("k", [1, 5, 123])
def test_top_k_in_blocks_is_exact(items: int, block: int, k: int) -> None:
    scores = vectors(3, items)
    k = min(k, items)
    values, places = top_k_in_blocks(scores, k, block)
    wanted = scores.topk(k, dim=1)
    assert torch.equal(values, wanted.values) and torch.equal(places, wanted.indices)


@pytest.mark.parametrize("batch", [1, 5])
def test_exact_search_is_a_matrix_product(batch: int) -> None:
    table, asked = vectors(3000), vectors(batch, seed=1)
    values, places = ExactIndex(table, block=100).search(asked, 10)
    wanted = (asked @ table.T).topk(10, dim=1)
    assert torch.equal(places, wanted.indices)
    torch.testing.assert_close(values, wanted.values)


def test_a_graph_finds_nearly_everything_and_survives_the_disk(tmp_path: Path) -> None:
    table, asked = vectors(2000), vectors(20, seed=1)
    graph = GraphIndex(table, GraphPlan(search_width=200))
    values, places = graph.search(asked, 10)
    assert recall(places, ExactIndex(table).search(asked, 10)[1]) > 0.95
    torch.testing.assert_close(values, (asked @ table.T).gather(1, places), atol=1e-4, rtol=1e-4)
    graph.save(tmp_path / "items.hnsw")
    again = GraphIndex.load(tmp_path / "items.hnsw", 2000, 16, GraphPlan(search_width=200))
    assert torch.equal(again.search(asked, 10)[1], places)
    (tmp_path / "items.hnsw").write_bytes((tmp_path / "items.hnsw").read_bytes()[:-9])
    with pytest.raises(FileError, match="damaged"):
        GraphIndex.load(tmp_path / "items.hnsw", 2000, 16)
    with pytest.raises(FileError, match="does not belong"):
        GraphIndex.load(tmp_path / "items.hnsw", 1999, 16)
    with pytest.raises(FileError, match="is not there"):
        GraphIndex.load(tmp_path / "nothing.hnsw", 2000, 16)


def test_k_must_fit() -> None:
    with pytest.raises(ConfigError, match="between 1 and"):
        ExactIndex(vectors(5)).search(vectors(1), 6)


def test_recall_counts_shared_items() -> None:
    assert recall(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[2, 1], [4, 9]])) == 0.75
